"""Stock pipelines with PAG attached against diffusers' own PAG pipelines, on the same weights."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPAGPipeline,
    PixArtSigmaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)
from tiny_pipelines import FAMILIES, quiet, sd3_parts, tiny
from torch import Tensor

import regaze

THEIRS: dict[str, Any] = {
    "sd": StableDiffusionPAGPipeline,
    "sdxl": StableDiffusionXLPAGPipeline,
    "sd3": StableDiffusion3PAGPipeline,
    "pixart": PixArtSigmaPAGPipeline,
    "animatediff": AnimateDiffPAGPipeline,
}
# A plain "mid" would have diffusers perturb the motion modules' attention over frames too.
LAYERS = {"sd3": "blocks.(1|2)", "pixart": "blocks.(2|3)", "animatediff": "mid_block.attentions"}


def both(family: str, guided: bool, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the plain pipeline, of ours, and of diffusers' PAG pipeline."""
    ours, kind = tiny(family), FAMILIES[family]
    layers = LAYERS.get(family, "mid")
    takes = inspect.signature(THEIRS[family].__init__).parameters
    parts = {name: part for name, part in ours.components.items() if name in takes}
    if family == "sd":
        parts["requires_safety_checker"] = False
    theirs = quiet(THEIRS[family](**parts, pag_applied_layers=layers))
    steps = {"num_inference_steps": 10, **more}
    with regaze.attach(ours, regaze.PAG(scale=3.0, layers=layers, variant="image")):  # type: ignore[arg-type]
        got = kind.run(ours, guided=guided, **steps)
    kept = dict(theirs.transformer.attn_processors) if hasattr(theirs, "transformer") else None
    want = kind.run(theirs, guided=guided, **steps, pag_scale=3.0)
    if kept:
        theirs.transformer.set_attn_processor(kept)
    return kind.run(ours, guided=guided, **steps), got, want


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("family", THEIRS)
def test_latents_after_ten_steps_equal_those_of_diffusers(family: str, guided: bool) -> None:
    plain, got, want = both(family, guided)
    assert (got - want).abs().max() < 1e-4 * max(1.0, want.abs().max().item())
    assert (got - plain).abs().max() > 1e-2


def test_diffusers_leaves_out_the_norms_of_queries_and_keys_in_sd35() -> None:
    """diffusers' perturbed layers run without q/k norm in both branches; ours keep it."""
    pipe = quiet(StableDiffusion3Pipeline(**sd3_parts(qk_norm="rms_norm")))
    theirs = quiet(
        StableDiffusion3PAGPipeline(**sd3_parts(qk_norm="rms_norm"), pag_applied_layers="blocks.1")
    )
    kind = FAMILIES["sd3"]
    # So small a scale changes next to nothing, if the branch beside it is right.
    with regaze.attach(pipe, regaze.PAG(scale=1e-6, layers=(1,), variant="image")):
        ours = kind.run(pipe)
    plain = kind.run(pipe)
    assert (ours - plain).abs().max() < 1e-4
    assert (kind.run(theirs, pag_scale=1e-6) - plain).abs().max() > 1e-2


def test_guidance_rescale_takes_its_deviation_from_the_guided_branch() -> None:
    """Stock pipelines rescale by the std of the conditional input: ours differs on purpose."""
    _, got, want = both("sdxl", True, guidance_rescale=0.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    _, got, want = both("sdxl", True, guidance_rescale=0.7)
    assert (got - want).abs().max() > 1e-3
