"""Conditional rows, and whose they are: evidence or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, TEXT, WIDTH, ddim, noise, quiet, tiny, vae
from torch import Tensor

import regaze

PAG = regaze.PAG(scale=3.0)
TEXTS = torch.cat([noise(2, TEXT, WIDTH, seed=2), noise(2, TEXT, WIDTH, seed=1)])


@torch.no_grad()
def loop(unet: Any, text: Tensor = TEXTS, halves: int = 2) -> Tensor:
    """A denoising loop of one's own, [unconditional, conditional]."""
    sampler, z = ddim(), noise(2, 4, HEIGHT, COLUMNS)
    sampler.set_timesteps(2)
    for t in sampler.timesteps:
        noised = unet(torch.cat([z] * halves), t, encoder_hidden_states=text).sample
        u, c = noised.chunk(2) if halves == 2 else (noised, noised)
        z = sampler.step(u + 5 * (c - u), t, z).prev_sample
    return z


def guided(target: Any, run: Any, **told: Any) -> Tensor:
    with regaze.attach(target, PAG, **told) as attached:
        latents: Tensor = run()
    assert attached.report().fired
    return latents


def test_a_sibling_pipeline_works_as_if_attached_to() -> None:
    pipe = quiet(FAMILIES["sd"].build())
    pipe.register_modules(vae=vae())
    other = quiet(StableDiffusionImg2ImgPipeline.from_pipe(pipe))

    def run() -> Tensor:
        return FAMILIES["img2img"].run(other)

    plain, got, want = run(), guided(pipe, run), guided(other, run)
    assert torch.equal(got, want)
    assert not torch.equal(got, plain)
    # Neither steps nor images are another pipeline's.
    with regaze.attach(pipe, regaze.PAG(stop=0.5)) as attached:
        run()
    assert attached.report().interventions[0].steps == 2


def test_a_loop_of_ones_own_has_the_half_that_its_pipeline_has() -> None:
    pipe = tiny("sd")

    def run() -> Tensor:
        return loop(pipe.unet)

    assert torch.equal(guided(pipe, run), guided(pipe.unet, run, cond_rows=slice(2, 4)))
    assert not torch.equal(guided(pipe, run), run())


def test_a_bare_denoiser_with_two_halves_raises() -> None:
    unet = tiny("sd").unet
    with (
        regaze.attach(unet, PAG),
        pytest.raises(ValueError, match=r"equal latents in rows with.*cond_rows=slice\(None\)"),
    ):
        loop(unet)
    assert not torch.equal(guided(unet, lambda: loop(unet), cond_rows=slice(None)), loop(unet))
    # The same text twice is no guidance.
    same = torch.cat([TEXTS[:2]] * 2)
    guided(unet, lambda: loop(unet, same))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_what_a_stranger_calls_raises(family: str) -> None:
    pipe = tiny(family)
    denoiser = getattr(pipe, FAMILIES[family].denoiser)
    seen: list[dict[str, Any]] = []
    hook = denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append({"args": args, **kwargs}), with_kwargs=True
    )
    FAMILIES[family].run(pipe, guided=False, num_inference_steps=1)
    hook.remove()
    args = seen[0].pop("args")
    with (
        torch.no_grad(),
        regaze.attach(pipe, PAG),
        pytest.raises(ValueError, match="called by something else than a pipeline of its own"),
    ):
        denoiser(*args, **seen[0])
    with torch.no_grad(), regaze.attach(pipe, PAG, cond_rows=slice(None)) as run:
        denoiser(*args, **seen[0])
    assert run.report().fired


def test_a_pipeline_of_ones_own_class_raises() -> None:
    pipe = quiet(FAMILIES["sd"].build())
    stock = type(pipe)

    class Mine(stock):  # type: ignore[valid-type, misc]
        def __call__(self, **call: Any) -> Any:
            return loop(self.unet)

    mine = quiet(Mine(**pipe.components, requires_safety_checker=False))
    with regaze.attach(mine, PAG), pytest.raises(ValueError, match="how Mine runs guidance"):
        mine()


def test_prompts_that_are_the_same_tensor_do_not_tell_the_branches_apart() -> None:
    pipe, kind = tiny("flux"), FAMILIES["flux"]
    call = kind.call(1, True)
    call["negative_prompt_embeds"] = call["prompt_embeds"]
    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match="can't tell whether this call"):
        pipe(**call)


def test_other_latents_in_both_halves_raise() -> None:
    """A caller between the pipeline and its denoiser changes one branch's latents."""
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    unet, stock = pipe.unet, pipe.scheduler.scale_model_input
    pipe.scheduler.scale_model_input = lambda x, t: (
        stock(x, t) * torch.arange(1, 5)[:, None, None, None]
    )
    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match="halves of the same latents"):
        kind.run(pipe)
    assert type(unet).__name__ == "UNet2DConditionModel"


def test_the_same_guidance_twice_comes_off_one_by_one() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    plain = kind.run(pipe)
    with regaze.attach(pipe, PAG):
        once = kind.run(pipe)
    with regaze.attach(pipe, PAG):
        with regaze.attach(pipe, PAG):
            twice = kind.run(pipe)
        assert torch.equal(kind.run(pipe), once)
    assert torch.equal(kind.run(pipe), plain)
    assert not torch.equal(twice, once)
