"""Conditional rows, and whose they are: evidence or an error."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from scenes import differ
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, TEXT, WIDTH, ddim, noise, quiet, tiny, vae
from torch import Tensor

import regaze
from regaze.hooks.diffusion.capture import capture

PAG = regaze.PAG(scale=3.0)
TEXTS = torch.cat([noise(2, TEXT, WIDTH, seed=2), noise(2, TEXT, WIDTH, seed=1)])


@torch.no_grad()
def loop(
    unet: Any,
    text: Tensor = TEXTS,
    sampler: Any = None,
    scale: float = 5.0,
    cond_first: bool = False,
) -> Tensor:
    """A denoising loop of one's own, [unconditional, conditional] or the other way round."""
    sampler, z = copy.deepcopy(sampler or ddim()), noise(2, 4, HEIGHT, COLUMNS)
    sampler.set_timesteps(3)
    for t in sampler.timesteps:
        noised = sampler.scale_model_input(torch.cat([z] * 2), t)
        u, c = unet(noised, t, encoder_hidden_states=text).sample.chunk(2)[:: 1 - 2 * cond_first]
        z = sampler.step(u + scale * (c - u), t, z).prev_sample
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


SAY_WHICH = r"cond_rows=slice\(2, 4\)\) for the last, .* or slice\(0, 2\) for the first"


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
@pytest.mark.parametrize("scale", [1.5, 12.0])
def test_a_loop_of_ones_own_shows_which_half_is_conditional(scheduler: Any, scale: float) -> None:
    """By the latents that it makes of both, which lie nearer to the conditional one."""
    pipe, sampler = tiny("sd"), scheduler.from_config(ddim().config)
    settings: dict[str, Any] = {"sampler": sampler, "scale": scale}

    def run() -> Tensor:
        return loop(pipe.unet, **settings)

    with regaze.attach(pipe, PAG) as attached:
        got = run()
    assert "last half conditional, as in StableDiffusionPipeline" in str(attached.report())
    assert torch.equal(got, guided(pipe.unet, run, cond_rows=slice(2, 4)))
    assert not torch.equal(got, run())

    def other_way_round() -> Tensor:
        return loop(pipe.unet, torch.cat(TEXTS.chunk(2)[::-1]), cond_first=True, **settings)

    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match=SAY_WHICH):
        other_way_round()
    got = guided(pipe, other_way_round, cond_rows=slice(0, 2))
    assert differ(got, guided(pipe.unet, run, cond_rows=slice(2, 4))) < 1e-4


def test_a_loop_that_does_not_show_which_half_is_conditional_raises() -> None:
    pipe = tiny("sd")
    with regaze.attach(pipe, PAG):
        loop(pipe.unet)
        loop(pipe.unet)  # The same prompts once more.
        with pytest.raises(ValueError, match=SAY_WHICH):
            loop(pipe.unet, 2 * TEXTS, scale=0.5)  # Both count alike.
        predict(pipe.unet, torch.cat([ROWS] * 2), 3 * TEXTS)  # A single step shows nothing.
        with pytest.raises(ValueError, match=SAY_WHICH):
            predict(pipe.unet, torch.cat([ROWS] * 2), 4 * TEXTS)


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_callback_that_runs_the_denoiser_says_which_half_is_conditional(scale: float) -> None:
    """The callback's rows aren't those of the pipeline that runs around it."""
    pipe, kind = tiny("sd"), FAMILIES["sd"]

    def again(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
        latents: Tensor = tensors["latents"]
        guided = pipe.unet(torch.cat([latents] * 2), time, torch.cat(TEXTS.chunk(2)[::-1])).sample
        return {"latents": latents + 0.1 * guided.chunk(2)[0]}

    with (
        regaze.attach(pipe, PAG),
        pytest.raises(ValueError, match="again calls the denoiser while StableDiffusionPipeline"),
    ):
        kind.run(pipe, guided=scale > 1, callback_on_step_end=again)


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


def predict(unet: Any, latents: Tensor, text: Tensor) -> Any:
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text).sample


ROWS = noise(2, 4, HEIGHT, COLUMNS)


ONE_STEP = (
    r"ended after one guided step, whose last half .*cond_rows=slice\(2, 4\)\), or .*\(0, 2\)"
)


def test_a_single_step_that_nothing_confirmed_raises_when_what_acted_comes_off() -> None:
    pipe = tiny("sd")
    doubled = torch.cat([ROWS] * 2)
    attached = regaze.attach(pipe, PAG)
    got = predict(pipe.unet, doubled, TEXTS)
    assert "ended after one guided step" in str(attached.report())
    with pytest.raises(ValueError, match=ONE_STEP):
        attached.detach()
    assert "ended after one guided step" in str(attached.report())  # And it is off.
    assert not torch.equal(predict(pipe.unet, doubled, TEXTS), got)
    with regaze.attach(pipe, PAG, cond_rows=slice(2, 4)) as attached:
        assert torch.equal(predict(pipe.unet, doubled, TEXTS), got)
    assert "one guided step" not in str(attached.report())
    with pytest.raises(ValueError, match=ONE_STEP), capture(pipe, ("mid",)):
        predict(pipe.unet, doubled, TEXTS)


def test_a_single_step_is_a_doubt_of_what_acted_in_it_alone() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    doubled, later = torch.cat([ROWS] * 2), regaze.PAG(scale=2.0)
    with regaze.attach(pipe, PAG):
        loop(pipe.unet)
        with pytest.raises(ValueError, match=ONE_STEP), regaze.attach(pipe, later):
            predict(pipe.unet, doubled, 2 * TEXTS)
            kind.run(pipe)  # That a pipeline runs in between confirms nothing.
        attached = regaze.attach(pipe, later)
        with pytest.raises(ValueError, match=SAY_WHICH):
            predict(pipe.unet, doubled, 3 * TEXTS)  # One step of other prompts.
        attached.detach()


def test_a_single_step_of_a_thread_that_ended_is_a_doubt_too() -> None:
    pipe = tiny("sd")

    def step() -> None:
        predict(pipe.unet, torch.cat([ROWS] * 2), TEXTS)

    with pytest.raises(ValueError, match=ONE_STEP), regaze.attach(pipe, PAG) as attached:
        for run in (step, lambda: loop(pipe.unet)):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        loop(pipe.unet)
        assert "one guided step" in str(attached.report())


def test_an_error_on_its_way_is_not_hidden_by_a_doubt() -> None:
    pipe = tiny("sd")
    with pytest.raises(KeyError, match="mine"), regaze.attach(pipe, PAG):
        predict(pipe.unet, torch.cat([ROWS] * 2), TEXTS)
        raise KeyError("mine")


@pytest.mark.parametrize(
    "latents",
    [ROWS.repeat_interleave(2, 0), ROWS[:1].expand(3, -1, -1, -1), ROWS[[0, 1, 0]]],
    ids=["side by side", "three branches", "one without its pair"],
)
def test_equal_latents_with_other_text_are_branches_wherever_they_lie(latents: Tensor) -> None:
    unet = tiny("sd").unet
    text = TEXTS[: len(latents)]
    with regaze.attach(unet, PAG), pytest.raises(ValueError, match="equal latents in rows with"):
        predict(unet, latents, text)
    with regaze.attach(unet, PAG, cond_rows=slice(None)) as attached:
        predict(unet, latents, text)
    assert attached.report().fired
    with regaze.attach(unet, PAG) as attached:
        predict(unet, latents, TEXTS[:1].expand(len(latents), -1, -1))
    assert attached.report().fired


def test_a_call_for_each_branch_of_a_bare_denoiser_raises() -> None:
    unet = tiny("sd").unet
    with regaze.attach(unet, PAG):
        predict(unet, ROWS, TEXTS[2:])
        with pytest.raises(ValueError, match="other text than in the call before"):
            predict(unet, ROWS, TEXTS[:2])
        predict(unet, ROWS, TEXTS[2:])
        predict(unet, ROWS + 1, TEXTS[:2])  # Another prompt's picture.
    with regaze.attach(unet, PAG, cond_rows=slice(None)) as attached:
        predict(unet, ROWS, TEXTS[2:])
        predict(unet, ROWS, TEXTS[:2])
    assert attached.report().fired


@pytest.mark.parametrize(
    ("family", "guided", "rows", "said"),
    [
        ("sd", True, slice(0, 2), "of the 4 rows of this call 2 to 3 are conditional"),
        ("sd", True, slice(1, 2), "of the 4 rows of this call 2 to 3 are conditional"),
        ("sd", True, slice(None), "of the 4 rows of this call 2 to 3 are conditional"),
        ("sd", False, slice(1, 2), "all 2 rows of this call are conditional"),
        ("flux", True, slice(None), "runs each branch in a call of its own"),
    ],
)
def test_a_word_that_the_running_pipeline_contradicts_raises(
    family: str, guided: bool, rows: slice, said: str
) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with (
        regaze.attach(pipe, PAG, cond_rows=rows),
        pytest.raises(ValueError, match=rf"contradicts what .*{said}; leave cond_rows out"),
    ):
        kind.run(pipe, guided=guided)


def test_a_word_that_agrees_changes_nothing() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    want = guided(pipe, lambda: kind.run(pipe))
    assert torch.equal(guided(pipe, lambda: kind.run(pipe), cond_rows=slice(2, None)), want)


def test_a_word_for_one_prompt_does_not_hold_for_two() -> None:
    unet = tiny("sd").unet
    with regaze.attach(unet, PAG, cond_rows=slice(1, 2)):
        predict(unet, ROWS[[0, 0]], TEXTS[:2])
        with pytest.raises(ValueError, match="further branches of the same latents, which they"):
            predict(unet, ROWS[[0, 1, 0, 1]], TEXTS)
    with pytest.raises(ValueError, match="takes every 2th row"):
        regaze.attach(unet, PAG, cond_rows=slice(0, 4, 2))


def modular(guider: Any) -> Any:
    stock = quiet(FAMILIES["sdxl"].build())
    pipe = StableDiffusionXLDenoiseStep().init_pipeline()
    pipe.update_components(unet=stock.unet, scheduler=stock.scheduler, guider=guider)
    return pipe


def steps(pipe: Any, count: int = 3) -> Tensor:
    """The latents that a modular pipeline's denoising blocks make of a stock pipeline's call."""
    call = FAMILIES["sdxl"].call(1, True)
    pipe.scheduler.set_timesteps(count)
    ids = torch.tensor([[64.0, 48.0, 0.0, 0.0, 64.0, 48.0]])
    state = BlockState(
        **call, timesteps=pipe.scheduler.timesteps, add_time_ids=ids, negative_add_time_ids=ids,
        timestep_cond=None, cross_attention_kwargs=None, ip_adapter_embeds=None,
        negative_ip_adapter_embeds=None, generator=None, eta=0.0,
    )  # fmt: skip
    for i, t in enumerate(state.timesteps):
        for block in pipe.blocks.sub_blocks.values():
            pipe, state = block(pipe, state, i=i, t=t)
    latents: Tensor = state.latents
    return latents


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_guider_names_the_branches_of_a_modular_pipeline(scale: float) -> None:
    stock, kind = tiny("sdxl"), FAMILIES["sdxl"]
    pipe = modular(ClassifierFreeGuidance(guidance_scale=scale))
    for spec in (PAG, regaze.PAG(scale=3.0, stop=0.5)):
        with regaze.attach(pipe.unet, spec) as attached:
            got = steps(pipe)
        assert attached.report().fired
        with regaze.attach(stock, spec):
            want = kind.run(stock, 1, scale > 1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert (got - kind.run(stock, 1, scale > 1)).abs().max() > 1e-2
    with pytest.raises(TypeError, match="is a modular pipeline.*its U-Net or transformer alone"):
        regaze.attach(pipe, PAG)


def test_another_guiders_branches_are_refused() -> None:
    skip = LayerSkipConfig(
        [0], fqn="mid_block.attentions.0.transformer_blocks", skip_attention=False,
        skip_attention_scores=True, skip_ff=False,
    )  # fmt: skip
    window = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    pipe = modular(PerturbedAttentionGuidance(perturbed_guidance_config=skip, **window))
    with regaze.attach(pipe.unet, PAG), pytest.raises(ValueError, match="pred_cond_skip.*neither"):
        steps(pipe)


def test_a_guider_of_another_kind_may_pass_on_what_is_added() -> None:
    def added(guider: Any, scale: float) -> Tensor:
        """What one step's latents move by; they are linear in the prediction."""
        pipe = modular(guider)
        plain = steps(pipe, 1)
        with regaze.attach(pipe.unet, regaze.PAG(scale=scale)) as attached:
            moved = steps(pipe, 1) - plain
        assert attached.report().fired
        return moved

    want = added(ClassifierFreeGuidance(guidance_scale=5.0), 2.0)
    for guider in (AdaptiveProjectedGuidance(), AdaptiveProjectedGuidance(guidance_scale=1.0)):
        torch.testing.assert_close(added(guider, 2.0), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "guider",
    [
        ClassifierFreeZeroStarGuidance(),
        TangentialClassifierFreeGuidance(),
        ClassifierFreeGuidance(guidance_rescale=0.7),
    ],
    ids=["zero star", "tangential", "rescaled"],
)
def test_a_guider_that_scales_or_drops_what_is_added_raises(guider: Any) -> None:
    pipe = modular(guider)
    with (
        regaze.attach(pipe.unet, PAG),
        pytest.raises(ValueError, match="doesn't pass on what guidance adds to its branches"),
    ):
        steps(pipe)


def test_a_name_of_diffusers_means_its_own_class() -> None:
    """A changed copy of a file keeps its classes' names, and may guide or attend otherwise."""

    class Copied(UNet2DConditionModel):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class Copy(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, **call: Any) -> Any:
            return super().__call__(**call)

    pipe = tiny("sd")
    Copied.__name__ = Copied.__qualname__ = "UNet2DConditionModel"
    Copy.__name__ = Copy.__qualname__ = "StableDiffusionPipeline"
    with pytest.raises(ValueError, match=r"FAMILIES\['.*test_conditional.UNet2DConditionModel'\]"):
        regaze.attach(Copied(**pipe.unet.config), PAG)
    copy = quiet(Copy(**pipe.components, requires_safety_checker=False))
    with regaze.attach(copy, PAG), pytest.raises(ValueError, match="guidance isn't known here"):
        copy(**FAMILIES["sd"].call(1, True))


def test_a_method_put_in_anothers_place_is_not_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, stock = tiny("sd"), StableDiffusionPipeline.__call__
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", lambda self, **k: stock(self, **k))
    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match="guidance isn't known here"):
        pipe(**FAMILIES["sd"].call(1, True))
