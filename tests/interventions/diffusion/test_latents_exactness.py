"""Moved latents against diffusers' own Attend-and-Excite pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    StableDiffusionAttendAndExcitePipeline,
)
from making import move
from tiny_pipelines import FAMILIES, quiet, sd_parts, tiny

import regaze
from regaze.hooks.diffusion import gradients, text_maps


@pytest.mark.parametrize("family", ["sd", "img2img", "flux"])
def test_every_chosen_layer_is_read_in_every_step(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, move(regaze.AStar, family)) as run:
        kind.run(pipe)
    (report,) = run.report().interventions
    assert report.steps == 3
    assert all(layer.calls == 3 and layer.effect > 0 for layer in report.layers)
    assert run.specs[0].layers == tuple(layer.name for layer in report.layers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no-cfg"])
def test_latents_equal_those_of_diffusers_own_pipeline(guided: bool) -> None:
    """The official settings, for two prompts with tokens of their own, refinement included."""
    ours, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    parts = {k: v for k, v in sd_parts().items() if k != "unet"}
    parts |= {"unet": ours.unet, "scheduler": ours.scheduler}
    theirs = quiet(StableDiffusionAttendAndExcitePipeline(**parts))
    tokens = ((1, 3), (2,))
    call = kind.call(2, guided) | {"num_inference_steps": 10}
    want = theirs(
        prompt=None, token_indices=[list(one) for one in tokens], max_iter_to_alter=5,
        thresholds={0: 0.05, 2: 0.5, 4: 0.8}, attn_res=(4, 3), **call,
    )[0]  # fmt: skip
    with regaze.attach(ours, regaze.AttendAndExcite(tokens=tokens)) as run:
        got = ours(**call)[0]
    scale = max(1.0, want.abs().max().item())
    assert (got - want).abs().max() < 2e-4 * scale
    (report,) = run.report().interventions
    assert report.layers[0].calls > 5 + 20  # Some steps were refined to the limit.
    assert (got - ours(**call)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "controlnet"])
def test_a_pass_that_ends_early_gives_the_gradient_of_a_whole_one(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    layers = ("down_blocks.0",) if family in ("sd", "sdxl", "controlnet") else (1,)
    spec = move(regaze.AStar, family, layers=layers)
    last = list(getattr(pipe, kind.denoiser).children())[-1]
    passes: list[int] = []
    hook = last.register_forward_hook(lambda m, a, o: passes.append(1))
    with regaze.attach(pipe, spec):
        early = kind.run(pipe)
    ended = len(passes)

    reader: Any = text_maps.Reader
    monkeypatch.setattr(gradients, "Reader", lambda *args, stop: reader(*args, stop=False))
    with regaze.attach(pipe, spec):
        whole = kind.run(pipe)
    hook.remove()
    assert len(passes) - ended == ended + 3  # Three gradient passes reached the last module.
    assert torch.equal(early, whole)
