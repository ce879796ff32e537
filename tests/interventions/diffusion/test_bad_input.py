"""Bad input of every method for diffusion models: one line, which begins with the method's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny_painter
import torch
from tiny_guided import PIPES
from tiny_pipelines import FAMILIES, tiny

import regaze
from regaze.hooks.diffusion.text import Part, Prompt
from regaze.hooks.diffusion.works import Run
from regaze.interventions.base import get, names
from regaze.interventions.diffusion.consistent import Consistent
from regaze.interventions.diffusion.where import ByLayers

METHODS = [get(name) for name in names("diffusers pipelines")]
STRANGE: tuple[Any, ...] = (
    math.nan, math.inf, -1, 1e300, True, 3.5, 1j, "", "x", b"x", [], {}, [[]], [math.nan], [True],
    [-1], [None], ["", ""], object(),
)  # fmt: skip
"""Values that no field or few fields are made for."""

SQUARE = [((0, 0, 1, 1), "a red circle")]
OTHER = np.ones((4, 6))
"""A mask of other proportions than the picture's."""
GREY = np.full((32, 32, 3), 90, np.uint8)
PICTURES: dict[str, Any] = {"background": GREY, "object": GREY, "refine": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_all_methods_are_here() -> None:
    assert len(METHODS) >= 19


@pytest.mark.parametrize(
    "cls", [cls for cls in METHODS if issubclass(cls, ByLayers)], ids=lambda cls: cls.name
)
@pytest.mark.parametrize("layer", ["mid", 3])
def test_a_single_layer_stands_for_a_list_of_it(cls: Any, layer: str | int) -> None:
    assert cls(layers=layer) == cls(layers=[layer])
    assert cls(layers=layer).layers == (layer,)


@pytest.mark.filterwarnings("ignore:overflow|Casting complex")
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)
def test_a_strange_value_is_taken_or_refused_in_one_line(cls: Any) -> None:
    refused = 0
    for field in dataclasses.fields(cls):
        for value in STRANGE:
            try:
                cls(**{field.name: value})
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{cls.name}: "), (field.name, value, error)
                assert "\n" not in str(error) and len(str(error)) < 300
    assert refused > len(dataclasses.fields(cls)) * len(STRANGE) / 2


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.name)
def test_numbers_are_finite_in_float32(cls: Any) -> None:
    for field in dataclasses.fields(cls):
        if type(field.default) is float:
            for value in (math.nan, math.inf, -math.inf, 1e39, -1e39, True, "1"):
                with pytest.raises(ValueError, match=f"^{cls.name}: {field.name} must be"):
                    cls(**{field.name: value})


def paint(spec: Any) -> None:
    """Two steps of a U-Net that knows the painting world's words."""
    pipe = tiny_painter.shared().pipeline
    with regaze.attach(pipe, spec):
        pipe(
            "a red circle and a blue square", num_inference_steps=2, guidance_scale=1.0,
            output_type="latent", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def run(family: str, spec: Any, **more: Any) -> None:
    """A pipeline of a family, which is given embeddings."""
    pipe, kind = tiny(family), FAMILIES[family]
    call = kind.call(2 if spec.name == "consistedit" else 1, False)
    if spec.name == "consistedit":
        call["latents"] = call["latents"][:1].expand(2, *call["latents"].shape[1:])
    with regaze.attach(pipe, spec):
        pipe(**{**call, **more})


def edit(source: str, changed: str, **fields: Any) -> None:
    """A pair of prompts as a pipeline that knows its prompts would hand it over."""
    prompts = tuple(Prompt(text, (), ()) for text in (source, changed))
    text = (Part("text", slice(0, 8), prompts),)
    Consistent(spec=regaze.ConsistEdit(**fields)).begin(Run(samples=2, steps=2, text=text))


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    # A mask of the wrong size.
    "regions: mask": (lambda: paint(regaze.Regions([(OTHER, "x")])), "a mask of 4 x 6 "),
    "consistedit: mask": (
        lambda: run("sd3", regaze.ConsistEdit(mask=np.ones((4, 4)))), "a mask of 4 x 4 "
    ),
    "primecomposer: mask": (
        lambda: paint(regaze.PrimeComposer(**PICTURES, mask=OTHER)), "a mask of 4 x 6 "
    ),
    "a_star: mask": (
        lambda: paint(regaze.AStar(("circle", "square"), layout=[[[1, 0]]])), "1 masks for 2"
    ),
    # Regions that overlap without a rule.
    "regions: overlap": (lambda: paint(regaze.Regions(SQUARE * 2)), "overlap; say"),
    # A word that isn't in the prompt.
    **{
        f"{spec.name}: word": (partial(paint, spec), "'star' isn't in the prompt")
        for spec in (
            regaze.AStar(("circle", "star")),
            regaze.AttendAndExcite(("circle", "star")),
            regaze.Reweight({"star": 2.0}),
            regaze.StructuredDiffusion(["star"]),
        )
    },
    "primecomposer: word": (
        lambda: paint(regaze.PrimeComposer(**PICTURES, mask=(0, 0, 0.5, 0.5), subject="star")),
        "'star' isn't in the prompt",
    ),
    # Edits without a difference.
    "consistedit: same": (lambda: edit("a cat", "a cat", mask="all"), "is its source's"),
    "consistedit: more": (lambda: edit("a cat", "a red cat"), "only adds words"),
    # A model without frames.
    **{
        f"{spec.name}: frames": (partial(run, family, spec), message)
        for spec, family, message in (
            (regaze.ByTheWay(), "sd", "has no temporal attention"),
            (regaze.EnhanceAVideo(), "sd3", "no weight was published"),
            (regaze.RadialAttention(), "sd3", "no decay was published"),
        )
    },
    "enhance_a_video: picture": (
        lambda: run("sd3", regaze.EnhanceAVideo(weight=1.0)), "frames that see each other"
    ),
    "radial: picture": (
        lambda: run("sd3", regaze.RadialAttention(decay=0.2, start=0.0)), "which frame each"
    ),
    # A text whose words lie in columns that aren't known.
    **{
        f"{spec.name}: columns": (
            partial(run, family, spec), "given embeddings"
        )
        for spec, family in (
            (regaze.AStar(("circle",)), "sd"),
            (regaze.AttendAndExcite(("circle",)), "sd"),
            (regaze.Reweight({"red": 2.0}), "flux"),
            (regaze.StructuredDiffusion(["a cat"]), "sd"),
            (regaze.ConsistEdit(words="hat"), "sd3"),
        )
    },
    # What lies in no file.
    "nag: file": (lambda: paint(regaze.NAG(embeddings="none.safetensors")), "can't be read"),
    "regions: file": (
        lambda: paint(regaze.Regions(SQUARE, embeddings="none.safetensors")), "can't be read"
    ),
    "consistedit: file": (
        lambda: run("sd3", regaze.ConsistEdit(source="none.safetensors")), "can't be read"
    ),
    "reweight: no strength": (lambda: regaze.Reweight("a cat"), "gives no word a strength"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused_in_one_line(case: str) -> None:
    act, message = CASES[case]
    with pytest.raises(ValueError, match=message) as raised:
        act()
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{case.partition(':')[0]}: ")


def test_regions_do_not_lie_in_reference_pictures() -> None:
    kind = PIPES["FluxKontextPipeline"]
    pipe = kind.build("FluxKontextPipeline")
    spec = regaze.Regions(SQUARE, embeddings={"text": torch.zeros(1, 5, 16)})
    with (
        regaze.attach(pipe, spec),
        pytest.raises(ValueError, match="^regions: .*reference pictures, whose tokens lie in no"),
    ):
        kind.run(pipe, guided=False)
