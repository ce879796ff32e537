"""CARVE's settings, and its pictures where the paper's own code has nothing to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import as_deep, tiny

import regaze
from regaze.hooks.host import find_host
from regaze.interventions import CARVE, parse
from regaze.interventions.lvlm.carve_regions import (
    bounds,
    elsewhere,
    magnify,
    middle,
    strongest,
)


def resolve(spec: CARVE, layers: int = 3) -> CARVE:
    model = tiny("qwen2_vl")
    return spec.resolve(as_deep(find_host(model.model, model.processor), layers))


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (28, range(20, 26)),
        (32, range(20, 26)),
        (40, range(20, 26)),
        (64, range(40, 52)),
        (6, (4,)),
        (1, (0,)),
    ],
)
def test_layers_are_the_papers_in_its_models_and_as_deep_in_others(
    depth: int, layers: range
) -> None:
    assert resolve(CARVE(), depth).layers == tuple(layers)


def test_layers_may_be_fractions_of_the_depth() -> None:
    assert resolve(CARVE(layers=(0.5, 1.0)), 6).layers == (3, 4, 5)
    assert resolve(CARVE(layers=(0.99, 1.0)), 6).layers == (5,)
    assert resolve(parse("carve:layers=[0.5,1.0]"), 6).layers == (3, 4, 5)  # type: ignore[arg-type]
    assert resolve(CARVE(layers=(2, 1)), 6).layers == (1, 2)


@pytest.mark.parametrize("layers", [(0.5,), (0.8, 0.2), (0.5, 1.5), (0.1, 0.5, 0.9)])
def test_other_fractions_raise(layers: Any) -> None:
    with pytest.raises(ValueError, match="two rising fractions"):
        resolve(CARVE(layers=layers))


def test_layers_that_do_not_exist_or_none_at_all_raise() -> None:
    with pytest.raises(ValueError, match="holds 7, but this qwen2_vl has 3"):
        resolve(CARVE(layers=(7,)))
    with pytest.raises(ValueError, match="at least one layer"):
        resolve(CARVE(layers=()))


def test_the_papers_sense_and_the_codes_variants() -> None:
    paper = resolve(CARVE())
    assert (paper.steps, paper.rule, paper.shown, paper.share) == (
        "last",
        "attention",
        "refined",
        0,
    )
    variants = [resolve(CARVE(sense=f"v{number}")) for number in (1, 2, 3, 4)]  # type: ignore[arg-type]
    assert [v.steps for v in variants] == ["first", "first", "first", "all"]
    assert [v.rule for v in variants] == ["drop_small", "size", "attention", "attention"]
    assert {(v.shown, v.share, v.fit) for v in variants} == {("both", 0.2, "fill")}
    assert resolve(CARVE(sense="v4", steps="last")).steps == "last"


def test_a_resolved_spec_holds_every_number_and_resolves_to_itself() -> None:
    spec = resolve(CARVE())
    assert None not in vars(spec).values()
    assert resolve(spec) == spec
    assert regaze.from_dict(spec.to_dict()) == spec


def test_crops_are_padded_for_processors_that_cut_out_the_middle() -> None:
    llava = tiny("llava")
    assert CARVE().resolve(find_host(llava.model, llava.processor)).fit == "pad"
    assert resolve(CARVE()).fit == "fill"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("carve:sense=v5", "did you mean v"),
        ("carve:steps=final", "unknown steps"),
        ("carve:top=0", "top must be"),
        ("carve:regions=0", "regions must be"),
        ("carve:shown=crop", "unknown shown"),
        ('carve:general=""', "general must be a question"),
        ("carve:wher=random", "did you mean where"),
    ],
)
def test_wrong_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_it_cannot_be_attached_and_says_what_to_call() -> None:
    with pytest.raises(ValueError, match=r"regaze\.look_closer\(") as error:
        regaze.attach(tiny("llava").model, CARVE())
    assert "\n" not in str(error.value)


def test_its_control_is_a_random_region() -> None:
    assert CARVE(regions=1).controls() == {"random region": CARVE(regions=1, where="random")}


# Pictures


def hill(x: int, y: int) -> np.ndarray[Any, Any]:
    """A map of 40 x 60 pixels that falls off around a point."""
    rows, columns = np.mgrid[:40, :60]
    found: np.ndarray[Any, Any] = -np.hypot(rows - y, columns - x)
    return found


def patches(x: int, y: int) -> np.ndarray[Any, Any]:
    """Attention "1 1 4 6" with one strong patch."""
    found = np.full((1, 1, 4, 6), 0.01, np.float32)
    found[0, 0, y, x] = 0.5
    return found


def test_a_share_of_zero_makes_the_number_of_regions_a_bound() -> None:
    pixels = np.zeros((30, 30))
    pixels[::6, ::6] = np.arange(1, 26).reshape(5, 5)
    assert strongest(pixels, top=0.02, regions=2, share=0).sum() == 2
    assert strongest(pixels, top=0.02, regions=2, share=0.2).sum() == 3  # a fifth of 18


@pytest.mark.parametrize("bad", [np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_a_map_without_a_peak_raises(bad: Any) -> None:
    with pytest.raises(ValueError, match="constant or not finite"):
        strongest(bad)


def test_filling_may_exceed_the_picture_and_padding_keeps_its_size() -> None:
    image = Image.new("RGB", (60, 40), (200, 100, 50))
    mask = np.zeros((40, 60), bool)
    mask[10:20, 20:40] = True
    assert magnify(image, mask, "fill").size == (80, 40)
    padded = magnify(image, mask, "pad")
    assert padded.size == (60, 40)
    assert padded.getpixel((30, 20)) == (200, 100, 50)
    assert padded.getpixel((30, 2)) == (0, 0, 0)


def test_a_random_region_has_the_same_area_and_box_and_goes_everywhere() -> None:
    mask = strongest(hill(10, 10), top=0.05)
    box = bounds(mask)
    places = set()
    for seed in range(60):
        moved = elsewhere(mask, np.random.default_rng(seed))
        new = bounds(moved)
        assert moved.sum() == mask.sum()
        assert (new[2] - new[0], new[3] - new[1]) == (box[2] - box[0], box[3] - box[1])
        places.add((new[0] > 30, new[1] > 15))
    assert len(places) == 4


def test_the_control_draws_the_same_region_again_and_leaves_the_original_first() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    spec = resolve(CARVE(where="random", regions=1, shown="both"))
    looks = [spec.look(image, patches(1, 1), np.full((1, 1, 4, 6), 0.01)) for _ in range(2)]
    assert looks[0].box == looks[1].box
    assert looks[0].shown[0] is image
    assert looks[0].shown[1] is looks[0].crop


def test_what_only_the_question_looks_at_is_shown() -> None:
    image = Image.new("RGB", (60, 40))
    query, general = patches(1, 2), patches(4, 0)
    query[0, 0, 0, 4] = 0.5  # what it always looks at
    look = resolve(CARVE(regions=1, top=0.05)).look(image, query, general)
    left, top, right, bottom = look.box
    assert left >= 5 and right <= 25
    assert top >= 15 and bottom <= 35
    assert look.shown == (look.crop,)


def test_what_the_processor_cuts_off_is_not_looked_at() -> None:
    llava = tiny("llava").processor.image_processor
    assert middle(llava, (60, 40)) == (10, 0, 50, 40)
    assert middle(llava, (40, 60)) == (0, 10, 40, 50)
    assert middle(tiny("qwen2_vl").processor.image_processor, (60, 40)) is None
    assert middle(tiny("llava_next").processor.image_processor, (60, 40)) is None
    image = Image.new("RGB", (60, 40))
    query = np.full((1, 1, 3, 3), 0.01, np.float32)
    query[0, 0, 1, 0] = 0.5
    spec = resolve(CARVE(regions=1, top=0.1))
    look = spec.look(image, query, np.full((1, 1, 3, 3), 0.01), (10, 0, 50, 40))
    assert np.isnan(look.contrast[:, :10]).all() and np.isfinite(look.contrast[:, 10:50]).all()
    assert look.box[0] == 10 and look.box[2] <= 30
    assert look.mask.shape == (40, 60)
