"""Moved latents under other precisions, offloading, compilation, schedulers and loops."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import accelerate
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from largest import largest
from making import move
from tiny_pipelines import FAMILIES, quiet, sd_parts, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion import descent, gradients
from regaze.hooks.diffusion.literal_latents import moved_literally


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["sd", "sd35", "flux"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    kind = FAMILIES[family]
    pipe = copy.deepcopy(tiny(family)).to(dtype)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    call = {name: cast(value) for name, value in kind.call(2, True).items()}
    spec = move(regaze.AStar, family, step_size=1.0)
    once = {"num_inference_steps": 1}
    moved = []
    for model, settings in ((pipe, call), (tiny(family), kind.call(2, True))):
        seen: list[Tensor] = []
        step = model.scheduler.step

        def note(output: Tensor, t: Any, sample: Tensor, *args: Any, s: Any = step,
                 seen: list[Tensor] = seen, **kwargs: Any) -> Any:  # fmt: skip
            seen.append(sample.float())
            return s(output, t, sample, *args, **kwargs)

        model.scheduler.step = note
        with regaze.attach(model, spec):
            model(**settings | once)
        del model.scheduler.step
        moved.append(seen[0] - settings["latents"].float())
    assert torch.cosine_similarity(moved[0].flatten(), moved[1].flatten(), 0) > 0.9
    with regaze.attach(pipe, spec) as run:
        got = pipe(**call)[0]
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert run.report().fired


def test_inference_mode_checkpointing_and_frozen_or_trainable_weights() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    spec = move(regaze.AStar, "sd")
    with regaze.attach(pipe, spec):
        want = kind.run(pipe)
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.conv_in.requires_grad_(False)
        assert torch.equal(kind.run(pipe), want)
        with (
            torch.inference_mode(),
            pytest.raises(ValueError, match="without it"),
        ):
            kind.run(pipe)
    assert pipe.unet.is_gradient_checkpointing
    assert [p.requires_grad for p in pipe.unet.conv_in.parameters()] == [False, False]
    assert all(p.requires_grad for p in pipe.unet.conv_out.parameters())
    assert all(p.grad is None for p in pipe.unet.parameters())


@pytest.mark.parametrize("sequential", [False, True])
def test_offload(sequential: bool) -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    spec = move(regaze.AStar, "sd")
    with regaze.attach(pipe, spec):
        want = kind.run(pipe)
    if sequential:
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    else:
        _, hook = accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    with regaze.attach(pipe, spec):
        assert torch.equal(kind.run(pipe), want)


def test_groups_that_are_offloaded_raise() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    pipe.unet.enable_layerwise_casting(torch.float16, torch.float32)
    with (
        regaze.attach(pipe, move(regaze.AStar, "sd")),
        pytest.raises(ValueError, match="layerwise casting change weights"),
    ):
        kind.run(pipe)


def test_masks_of_the_own_pass_need_it_uncompiled() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    pipe.unet.compile(backend="eager")
    plain = kind.run(pipe)
    with (
        regaze.attach(pipe, move(regaze.AStar, "sd")),
        pytest.raises(ValueError, match='masks="before"'),
    ):
        kind.run(pipe)
    with regaze.attach(pipe, move(regaze.AStar, "sd", masks="before")) as run:
        assert not torch.equal(kind.run(pipe), plain)
    assert run.report().fired


# -- schedulers --------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_latents_not_of_the_scaled_input() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    seen: dict[str, Tensor] = {}
    measure: Any = gradients.measure

    def note(source: Any, *args: Any) -> Any:
        loss, gradient = measure(source, *args)
        if not seen:
            z = args[-1]
            ahead = z - 0.02 * gradient / gradient.norm()
            lower = measure(source, *args[:-1], ahead)[0]
            seen.update(gradient=gradient, drop=(loss - lower).sum() / 0.02, scale=source.scale(z))
        return loss, gradient

    with pytest.MonkeyPatch.context() as patch, regaze.attach(pipe, move(regaze.AStar, "sd")):
        patch.setattr(descent, "measure", note)
        kind.run(pipe)
    # The loss falls along the gradient as fast as the gradient says.
    torch.testing.assert_close(seen["drop"], seen["gradient"].norm(), rtol=0.1, atol=0)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_other_schedulers(scheduler: Any) -> None:
    """A second-order scheduler calls the denoiser twice a step, and its latents move once."""
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = kind.run(pipe)
    with regaze.attach(pipe, move(regaze.AStar, "sd")) as run:
        moved = kind.run(pipe)
    assert not torch.equal(moved, plain)
    assert run.report().interventions[0].steps == 3
    spec: Any = run.specs[0]
    with moved_literally(pipe, kind.running(), spec.literal()):
        want = kind.run(pipe)
    assert (moved - want).abs().max() < 0.01 * (moved - plain).abs().max()


def test_a_scheduler_that_corrects_latents_raises() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with regaze.attach(pipe, move(regaze.AStar, "sd")) as run:
        with pytest.raises(ValueError, match="would discard the update"):
            kind.run(pipe)
        pipe.scheduler = UniPCMultistepScheduler.from_config(
            pipe.scheduler.config, disable_corrector=[0, 1, 2]
        )
        kind.run(pipe)
    assert run.report().fired


def test_a_scheduler_exchanged_while_attached_is_followed() -> None:
    kind = FAMILIES["sd"]
    pipe = quiet(kind.build())
    with regaze.attach(pipe, move(regaze.AStar, "sd")):
        kind.run(pipe)
        old, pipe.scheduler = pipe.scheduler, EulerDiscreteScheduler()
        got = kind.run(pipe)
    assert "step" not in vars(old) | vars(pipe.scheduler)
    with regaze.attach(pipe, move(regaze.AStar, "sd")):
        assert torch.equal(kind.run(pipe), got)


def test_the_wrapped_step_keeps_its_signature() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    names: list[Any] = []
    unet = pipe.unet
    hook = unet.register_forward_hook(
        lambda m, a, o: names.append(list(inspect.signature(pipe.scheduler.step).parameters))
    )
    with regaze.attach(pipe, move(regaze.AStar, "sd")):
        kind.run(pipe)
    hook.remove()
    assert "step" not in vars(pipe.scheduler)
    assert all(n == list(inspect.signature(pipe.scheduler.step).parameters) for n in names)


class _OwnLoop(StableDiffusionPipeline):  # type: ignore[misc]
    """A pipeline that goes past the scheduler's step, or hands it other latents."""

    other = False

    @torch.no_grad()
    def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
        self.scheduler.set_timesteps(3)
        timesteps = self.scheduler.timesteps
        self._guidance_scale = 1.0
        for i, t in enumerate(timesteps):  # noqa: B007 (read from outside)
            noise = self.unet(latents, t, encoder_hidden_states=text)[0]
            if self.other:
                latents = self.scheduler.step(noise, t, latents + 1)[0]
            else:
                latents = latents - 0.1 * noise
        return latents


def test_latents_that_are_never_taken_raise() -> None:
    pipe = _OwnLoop(**sd_parts())
    call = FAMILIES["sd"].call(1, False)
    # How a pipeline of one's own runs guidance isn't known.
    with regaze.attach(pipe, move(regaze.AStar, "sd"), cond_rows=slice(None)):
        with pytest.raises(RuntimeError, match="were never taken"):
            pipe(call["latents"], call["prompt_embeds"])
        pipe.other = True
        with pytest.raises(RuntimeError, match="got a sample that isn't the latents"):
            pipe(call["latents"], call["prompt_embeds"])
    assert "step" not in vars(pipe.scheduler)


def test_no_map_of_all_tokens_on_all_tokens_is_ever_made() -> None:
    pipe, kind = tiny("sd3"), FAMILIES["sd3"]
    call = kind.call(1, False) | {"height": 256, "width": 256, "num_inference_steps": 1}
    call["latents"] = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with regaze.attach(pipe, move(regaze.AStar, "sd3")) as run, largest() as watched:
        pipe(**call)
    assert run.report().fired
    tokens, heads, width = 16 * 16 + 5, 4, 32
    # The MLP's hidden layer is the largest thing there is, in the backward pass too.
    assert watched.numbers <= 4 * width * tokens < heads * tokens * tokens
