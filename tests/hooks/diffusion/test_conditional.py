"""Conditional rows where a pipeline runs, and whose they are: evidence or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from own_loops import PAG, TEXTS, guided, loop
from tiny_pipelines import FAMILIES, quiet, tiny, vae
from torch import Tensor

import regaze


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
