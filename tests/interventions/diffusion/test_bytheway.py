"""ByTheWay: exactness, promises and bad inputs on a U-Net with motion modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, noise, quiet, state, tiny
from tiny_videos import VIDEOS, animatediff_call
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import ByTheWay, from_dict, parse
from regaze.interventions.diffusion.bytheway import counterpart, resized

KIND = VIDEOS["motion"]
_PIPES: list[Any] = []


@pytest.fixture
def pipe() -> Any:
    if not _PIPES:
        _PIPES.append(quiet(KIND.build()))
    return _PIPES[0]


def run(pipe: Any, batch: int = 1, guided: bool = True, frames: int = 4, **more: Any) -> Tensor:
    latents: Tensor = pipe(**{**animatediff_call(batch, guided, frames), **more})[0]
    return latents


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize(
    ("frames", "beta"), [(4, 3.0), (7, 0.1)], ids=["closed form", "transform, adaptive"]
)
def test_it_equals_whole_transforms_and_leaves_nothing(
    pipe: Any, frames: int, beta: float, guided: bool
) -> None:
    plain = run(pipe, 2, guided, frames)
    before = state(pipe.unet)
    with regaze.attach(pipe, ByTheWay(tau=1, beta=beta, stop=0.5)) as found:
        got = run(pipe, 2, guided, frames)
    (spec,) = found.specs
    manner = KIND.running(guided, batch=2, frames=frames)
    with literally(pipe, manner, [spec.literal()]):  # type: ignore[attr-defined]
        want = run(pipe, 2, guided, frames)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-3 * scale
    (report,) = found.report().interventions
    assert (report.fired, report.steps) == (True, 2)
    assert state(pipe.unet) == before
    assert torch.equal(run(pipe, 2, guided, frames), plain)


@pytest.mark.parametrize("layers", [("down_blocks.0",), ("up_blocks.1",), ("up_blocks.2",)])
def test_guidance_beside_it_leads_away_from_what_the_edited_model_predicts(
    pipe: Any, layers: tuple[str, ...]
) -> None:
    specs = [ByTheWay(tau=1, beta=2.0, stop=1.0), regaze.PAG(layers=layers)]
    with regaze.attach(pipe, *specs):
        forked = run(pipe)
    with regaze.attach(pipe, *specs, fork=False):
        whole = run(pipe)
    assert (forked - whole).abs().max() < 1e-5 * whole.abs().max()


def test_without_its_counterparts_a_layer_is_led_by_none(pipe: Any) -> None:
    later = tuple(
        site.name
        for site in regaze.hooks.diffusion.sites(pipe)
        if site.kind == "temporal" and site.block == "up_blocks.2"
    )
    with pytest.raises(ValueError, match=r"is led by up_blocks\.1\..*, which is not among"):
        regaze.attach(pipe, ByTheWay(layers=later))
    plain = run(pipe)
    with regaze.attach(pipe, ByTheWay(layers=later, alpha=0.0, tau=1)):
        assert not torch.equal(run(pipe), plain)


def test_maps_are_resized_place_by_place() -> None:
    maps = noise(2, 6, 1, 2, 2).softmax(-1)  # Two rows of 2 x 3 places.
    got = resized(maps.flatten(0, 1), (2, 3), (4, 6)).unflatten(0, (2, 4, 6))
    image = maps.unflatten(1, (2, 3))[:, None, :, :, 0, 1, 0]
    want = torch.nn.functional.interpolate(image, (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[..., 0, 1, 0], want[:, 0])
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 4, 6, 1, 2))
    assert counterpart("up_blocks.3.motion_modules.0.attn1") == "up_blocks.1.motion_modules.0.attn1"


def test_bad_inputs_raise(pipe: Any) -> None:
    for family in ("sd", "sd3", "wan"):
        with pytest.raises(ValueError, match="bytheway: .* has no temporal attention in"):
            regaze.attach(tiny(family), ByTheWay())
    with regaze.attach(pipe, ByTheWay()), pytest.raises(
        ValueError, match="tau=7 needs 16 frames or more, and this clip has 4; use tau=1"
    ):  # fmt: skip
        run(pipe)
    # The band would be all of the spectrum, and renormalising undo its factor.
    with regaze.attach(pipe, ByTheWay(tau=2)), pytest.raises(ValueError, match="needs 6 frames"):
        run(pipe, frames=5)
    with pytest.raises(ValueError, match="which comes after it"):
        regaze.attach(pipe, ByTheWay(layers=("down_blocks.0",)))
    with pytest.raises(ValueError, match="self-attention, which sees no text"):
        regaze.attach(pipe, ByTheWay(layers=("up_blocks.1.attentions",)))
    for fields in ({"tau": 1.5}, {"alpha": 2}, {"beta": -1}, {"stop": 0}):
        with pytest.raises(ValueError, match="bytheway: "):
            ByTheWay(**fields)  # type: ignore[arg-type]
    kind, video = FAMILIES["animatediff"], tiny("animatediff")
    with regaze.attach(video, ByTheWay(tau=0)):
        kind.run(video)  # Its up_blocks.1 alone.


def test_specs_survive_json_and_their_own_labels() -> None:
    for spec in (ByTheWay(), ByTheWay(alpha=0.1, beta=10, tau=3, layers=("up_blocks.1",), stop=1)):
        assert from_dict(spec.to_dict()) == spec == parse(spec.label)
    assert ByTheWay.preset("videocrafter2") == ByTheWay(alpha=0.1, beta=10.0)
