"""The checker: right on ground truth and through the autoencoder; every kind of mistake told."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from regaze.evals.sandbox.drawing import Object
from regaze.evals.sandbox.painting import SUBSETS, painter_path
from regaze.evals.sandbox.painting.checker import Counts, check, objective, total
from regaze.evals.sandbox.painting.detector import detect
from regaze.evals.sandbox.painting.scenes import (
    BACKGROUND,
    SIZE,
    paint,
    right_picture,
    scene,
    wanted,
)
from regaze.evals.sandbox.painting.stages import pixels

PLACES = {"left": (16.0, 20.0), "right": (48.0, 20.0), "low": (32.0, 47.0)}


def picture(**things: str) -> Image.Image:
    """Things by place, e.g. ``picture(left="red circle")``."""
    return paint([thing(place, *name.split()) for place, name in things.items()])


def thing(place: str, colour: str, shape: str) -> Object:
    return Object(shape, colour, *PLACES[place], 11.0, 0.0)


def counts(prompt: str, **things: str) -> dict[str, int]:
    found = check([picture(**things)], [prompt])[0].counts
    return {f.name: n for f in fields(Counts) if (n := getattr(found, f.name))}


def test_ground_truth_is_right() -> None:
    scenes = [scene("test", i) for i in range(600)]
    verdicts = check([s.image for s in scenes], [s.wanted for s in scenes])
    sums = total(verdicts)
    assert sums["clean"] == sums["images"] == 600
    assert sums["related"] == sums["relations"] > 50
    for s, verdict in zip(scenes, verdicts, strict=True):
        for item in s.objects:  # in drawn units, two to a pixel
            blob = next(b for b in verdict.blobs if b.colour == item.colour)
            assert (blob.x, blob.y) == pytest.approx((item.cx / 2, item.cy / 2), abs=0.4)


@pytest.mark.parametrize("subset", SUBSETS)
def test_right_pictures_of_prompts_are_right(subset: str) -> None:
    asked = wanted("test", subset, 150)
    images = [right_picture(w, i).image for i, w in enumerate(asked)]
    sums = total(check(images, [w.prompt for w in asked]))
    assert sums["clean"] == 150
    assert sums["related"] == sums["relations"] == (150 if subset == "relation" else 0)


def test_ceiling_through_the_autoencoder() -> None:
    asked = wanted("test", "composition", 200)
    drawn = pixels([right_picture(w, i).image for i, w in enumerate(asked)])
    vae = AutoencoderKL.from_pretrained(painter_path("painter-mmdit") / "vae").eval()
    with torch.no_grad():
        again = vae.decode(vae.encode(drawn).latent_dist.mode()).sample.clamp(-1, 1)
    images = ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert total(check([Image.fromarray(i) for i in images], asked))["clean"] >= 198


PAIR = "a red circle and a blue square"
TRIPLE = "a red circle, a blue square and a white cross"


@pytest.mark.parametrize(
    ("prompt", "things", "expected"),
    [
        (PAIR, ("red circle", "blue square"), {"found": 2}),
        (PAIR, ("blue square", "red circle"), {"found": 2}),
        (PAIR, ("red circle",), {"found": 1, "missing": 1}),
        (PAIR, (), {"missing": 2}),
        (PAIR, ("red square", "blue circle"), {"swapped": 2}),
        (PAIR, ("red circle", "red square"), {"found": 1, "leaked": 1}),
        (PAIR, ("red circle", "blue circle"), {"found": 1, "leaked": 1}),
        (PAIR, ("red square",), {"leaked": 1, "missing": 1}),
        (PAIR, ("red circle", "blue triangle"), {"found": 1, "wrong": 1}),
        (PAIR, ("red circle", "green square"), {"found": 1, "wrong": 1}),
        (PAIR, ("red circle", "green cross"), {"found": 1, "missing": 1, "extra": 1}),
        (PAIR, ("red circle", "blue square", "red circle"), {"found": 2, "extra": 1}),
        (TRIPLE, ("red circle", "blue square", "white cross"), {"found": 3}),
        (TRIPLE, ("red circle", "blue cross", "white square"), {"found": 1, "swapped": 2}),
        (TRIPLE, ("red square", "blue cross", "white circle"), {"leaked": 3}),
        (TRIPLE, ("red circle", "blue square"), {"found": 2, "missing": 1}),
        ("a red circle and a red square", ("red circle", "red square"), {"found": 2}),
        ("a red circle and a red square", ("red circle", "red circle"), {"found": 1, "leaked": 1}),
        ("a red circle and a blue circle", ("red circle", "red circle"), {"found": 1, "leaked": 1}),
        ("a red circle and a blue circle", ("red circle",), {"found": 1, "missing": 1}),
    ],
)
def test_every_fate(prompt: str, things: tuple[str, ...], expected: dict[str, int]) -> None:
    shown = dict(zip(PLACES, things, strict=False))
    assert counts(prompt, **shown) == expected | {"wanted": prompt.count(" a ") + 1}


WITHOUT = "a red circle without a blue square"


@pytest.mark.parametrize(
    ("things", "expected", "right"),
    [
        (("red circle",), {"found": 1}, True),
        (("red circle", "blue square"), {"found": 1, "unwanted": 1}, False),
        (("blue square",), {"missing": 1, "unwanted": 1}, False),
        (("red circle", "blue square", "blue square"), {"found": 1, "unwanted": 2}, False),
        (("red circle", "blue circle"), {"found": 1, "extra": 1}, True),
        (("red square",), {"wrong": 1}, False),
    ],
)
def test_what_must_not_be_there(
    things: tuple[str, ...], expected: dict[str, int], right: bool
) -> None:
    shown = dict(zip(PLACES, things, strict=False))
    assert counts(WITHOUT, **shown) == expected | {"wanted": 1}
    found = check([picture(**shown)], [WITHOUT])[0].counts
    assert found.right is right
    others = expected.get("unwanted", 0) + expected.get("extra", 0)
    assert found.score == expected.get("found", 0) / (1 + others)


def test_a_shapeless_blob_is_malformed() -> None:
    image = picture(left="red circle")
    image.paste((50, 85, 215), (20, 22, 31, 24))
    image.paste((50, 85, 215), (20, 22, 22, 31))
    verdict = check([image], [PAIR])[0]
    assert (verdict.counts.found, verdict.counts.malformed) == (1, 1)
    assert not verdict.counts.compositional
    assert [b.shape for b in verdict.blobs if b.colour == "blue"] == [None]


def test_verdicts_of_a_picture() -> None:
    right, extra, lost = (
        check([image], [PAIR])[0].counts
        for image in (
            picture(left="red circle", right="blue square"),
            picture(left="red circle", right="blue square", low="green cross"),
            picture(left="red circle"),
        )
    )
    assert (right.right, right.clean, right.compositional, right.score) == (True, True, False, 1)
    assert (extra.right, extra.clean, extra.compositional) == (True, False, False)
    assert extra.score == pytest.approx(2 / 3)
    assert (lost.right, lost.clean, lost.compositional, lost.score) == (False, False, True, 0.5)


@pytest.mark.parametrize(
    ("relation", "places"),
    [
        ("left of", ("left", "right")),
        ("right of", ("right", "left")),
        ("above", ("left", "low")),
        ("below", ("low", "left")),
    ],
)
def test_relations(relation: str, places: tuple[str, str]) -> None:
    first, second = places
    prompt = f"a red circle {relation} a blue square"
    image = picture(**{first: "red circle", second: "blue square"})
    other = picture(**{second: "red circle", first: "blue square"})
    lost = picture(**{first: "red circle"})
    assert [v.related for v in check([image, other, lost], [prompt] * 3)] == [True, False, None]


def test_touching_objects_of_two_colours_are_two_blobs() -> None:
    beside = Object("square", "white", 20.0, 32.0, 12.0, 0.0)
    image = paint([beside, Object("circle", "green", 37.0, 32.0, 9.0, 0.0)])
    assert {(b.colour, b.shape) for b in detect(image)} == {
        ("white", "square"),
        ("green", "circle"),
    }


def test_sums_and_scores() -> None:
    images = [picture(left="red circle", right="blue square"), picture(left="red circle")]
    assert objective(images, [PAIR, PAIR]) == [1.0, 0.5]
    sums = total(check(images, [PAIR, PAIR]))
    assert (sums["images"], sums["right"], sums["found"], sums["missing"]) == (2, 1, 3, 1)
    assert total([])["images"] == 0


def test_bad_input_is_refused() -> None:
    empty = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    with pytest.raises(ValueError, match="2 pictures but 1 prompts"):
        check([empty, empty], [PAIR])
    with pytest.raises(ValueError, match="64 x 64 pixels.*32 x 32 RGB"):
        check([empty.resize((64, 64))], [PAIR])
    with pytest.raises(ValueError, match="mode L"):
        check([empty.convert("L")], [PAIR])
