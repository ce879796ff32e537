"""When a guidance acts, on which rows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)
from tiny_pipelines import FAMILIES, TEXT, WIDTH, ddim, noise, quiet, sd_parts, tiny, vae
from torch import Tensor

import regaze


def acted(pipe: Any, family: str, spec: Any, **more: Any) -> int:
    with regaze.attach(pipe, spec) as run:
        FAMILIES[family].run(pipe, **more)
    steps = run.report().interventions[0].steps
    assert steps is not None
    return steps


@pytest.mark.parametrize(("start", "stop", "steps"), [(0, 1, 10), (0, 0.5, 5), (0.2, 0.7, 5)])
@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "wan", "qwen"])
def test_the_window_is_in_shares_of_the_steps(
    family: str, start: float, stop: float, steps: int
) -> None:
    spec = regaze.PAG(start=start, stop=stop)
    assert acted(tiny(family), family, spec, num_inference_steps=10) == steps


def test_the_window_counts_the_steps_that_an_image_goes_through() -> None:
    # A strength of 0.7 runs 7 of 10 steps; the first half of these is 4.
    spec = regaze.PAG(stop=0.5)
    assert acted(tiny("img2img"), "img2img", spec, num_inference_steps=10) == 4


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, HeunDiscreteScheduler])
def test_other_schedulers(scheduler: Any) -> None:
    pipe = quiet(FAMILIES["sd"].build())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = FAMILIES["sd"].run(pipe)
    with regaze.attach(pipe, regaze.PAG(stop=0.99)) as run:
        assert not torch.equal(FAMILIES["sd"].run(pipe), plain)
    assert run.report().fired


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_delta_is_added_to_whatever_is_predicted(kind: str) -> None:
    """One DDIM step is linear in the prediction, so the guidance scales the latents' change."""
    pipe = quiet(FAMILIES["sd"].build())
    pipe.scheduler = ddim(prediction_type=kind)
    once: dict[str, Any] = {"num_inference_steps": 1}
    plain = FAMILIES["sd"].run(pipe, **once)
    moved = []
    for scale in (1.0, 2.0):
        with regaze.attach(pipe, regaze.PAG(scale=scale)):
            moved.append(FAMILIES["sd"].run(pipe, **once) - plain)
    assert (moved[1] - 2 * moved[0]).abs().max() < 1e-5 * plain.abs().max()
    assert moved[0].abs().max() > 0


# -- rows --------------------------------------------------------------------------------------


def denoise(unet: Any, rows: int, **attach: Any) -> tuple[Tensor, Tensor]:
    """A bare U-Net's prediction, plain and guided."""
    call = (noise(2, 4, 8, 6).repeat(rows // 2, 1, 1, 1), torch.tensor(500))
    text = noise(rows, TEXT, WIDTH, seed=1)
    with torch.no_grad():
        plain = unet(*call, text).sample
        with regaze.attach(unet, regaze.PAG(scale=2.0), **attach):
            return plain, unet(*call, encoder_hidden_states=text).sample


def test_all_rows_of_a_bare_denoiser_are_conditional() -> None:
    plain, guided = denoise(tiny("sd").unet, 2)
    assert not torch.isclose(plain, guided).all(3).all(2).all(1).any()


def test_cond_rows_tell_them_from_the_others() -> None:
    plain, guided = denoise(tiny("sd").unet, 4, cond_rows=slice(2, 4))
    delta = guided - plain
    torch.testing.assert_close(delta[:2], delta[2:], atol=1e-6, rtol=1e-5)
    plain, alone = denoise(tiny("sd").unet, 4, cond_rows=slice(None))
    torch.testing.assert_close((alone - plain)[2:], delta[2:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="equal share"):
        denoise(tiny("sd").unet, 4, cond_rows=slice(1, 4))


def test_one_denoiser_has_one_word_on_its_rows() -> None:
    unet = tiny("sd").unet
    with (
        regaze.attach(unet, regaze.PAG(), cond_rows=slice(2, 4)),
        pytest.raises(ValueError, match="other cond_rows"),
    ):
        regaze.attach(unet, regaze.PAG())
    assert not unet._forward_hooks


def test_a_bare_denoiser_knows_no_steps() -> None:
    with (
        pytest.raises(ValueError, match="a bare denoiser doesn't tell"),
        regaze.attach(tiny("sd").unet, regaze.PAG(stop=0.5)),
    ):
        tiny("sd").unet(noise(1, 4, 8, 6), torch.tensor(500), noise(1, TEXT, WIDTH))


@pytest.mark.parametrize("batch", [1, 2])
def test_three_branches_raise(batch: int) -> None:
    parts = sd_parts(in_channels=8) | {"vae": vae()}
    pipe = quiet(StableDiffusionInstructPix2PixPipeline(**parts))
    call = FAMILIES["sd"].call(batch, True)
    call = {k: v for k, v in call.items() if k not in ("height", "width")}
    call |= {"image": noise(batch, 3, 64, 48).sigmoid(), "image_guidance_scale": 1.5}
    pipe(**call)
    with (
        regaze.attach(pipe, regaze.PAG()),
        pytest.raises(
            ValueError,
            match="which rows of .* are conditional can.t be told: it runs three branches",
        ),
    ):
        pipe(**call)


def test_seg_in_the_papers_sense_blurs_the_unconditional_branch() -> None:
    """``(1 - g + gamma) uncond + g cond - gamma perturbed``, on one step's prediction."""
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(2, True)
    seen: dict[str, Tensor] = {}
    step = pipe.scheduler.step

    def note(prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["prediction"] = prediction
        return step(prediction, *args, **kwargs)

    def prediction(*specs: Any, guidance: float = 5.0) -> Tensor:
        pipe.scheduler.step = note
        try:
            with regaze.attach(pipe, *specs):
                pipe(**call | {"num_inference_steps": 1, "guidance_scale": guidance})
        finally:
            del pipe.scheduler.step
        return seen["prediction"]

    gamma = 3.0
    paper = regaze.SEG(scale=gamma, sense="paper")
    plain, guided = prediction(), prediction(paper)
    # The unconditional branch alone: run it as if it were the conditional one.
    call["prompt_embeds"] = call["negative_prompt_embeds"]
    alone, moved = prediction(guidance=1.0), prediction(regaze.SEG(scale=gamma), guidance=1.0)
    torch.testing.assert_close(guided - plain, moved - alone, atol=2e-5, rtol=1e-4)
    # Without guidance the weight is gamma - 1, on the only branch there is.
    less = prediction(paper, guidance=1.0)
    torch.testing.assert_close((less - alone) * 1.5, moved - alone, atol=2e-5, rtol=1e-4)


def test_seg_in_the_papers_sense_needs_both_branches_in_one_call() -> None:
    with (
        regaze.attach(tiny("wan"), regaze.SEG(sense="paper")),
        pytest.raises(NotImplementedError, match='sense="code"'),
    ):
        FAMILIES["wan"].run(tiny("wan"))


# -- specs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: regaze.PAG(scale=float("nan")), "scale must be a finite number"),
        (lambda: regaze.PAG(scale=float("inf")), "finite"),
        (lambda: regaze.SoftPAG(u=1.1), r"u must be a finite number in \[0, 1\]"),
        (lambda: regaze.SoftPAG(heads={"L1": {"0": 2}}), "own u"),
        (lambda: regaze.SoftPAG(target="identiy"), "did you mean identity"),
        (lambda: regaze.SoftPAG(target="temperature"), "tau"),
        (lambda: regaze.SoftPAG(tau=2.0), "tau"),
        (lambda: regaze.SoftPAG(heads=[3, 4]), "must look like"),
        (lambda: regaze.SoftPAG(heads="L1H0+H3"), "must look like"),
        (lambda: regaze.SoftPAG(heads="L1H0+L1H0"), "twice"),
        (lambda: regaze.SoftPAG(heads={"L1": [0]}, layers=(1,)), "not both"),
        (lambda: regaze.PAG(start=0.5, stop=0.5), "never act"),
        (lambda: regaze.PAG(variant="text"), "variant"),
        (lambda: regaze.SEG(sigma=-1), "sigma"),
        (lambda: regaze.PAG(layers=(1.5,)),  # type: ignore[arg-type]
          "layers holds"),
    ],
)  # fmt: skip
def test_wrong_fields_raise(make: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make()


def test_forms_of_a_head_list() -> None:
    same: list[Any] = [
        regaze.SoftPAG(heads={"L18": [11], "L0": [17, 2]}),
        regaze.SoftPAG(heads={18: (11,), 0: (2, 17)}),
        regaze.SoftPAG(heads="L0H17 + L18H11+l0h2"),
        regaze.parse("softpag:heads=L0H2+L0H17+L18H11"),
    ]
    assert len({spec.heads for spec in same}) == 1
    assert same[0].to_dict()["heads"] == "L0H2+L0H17+L18H11"
    assert regaze.SoftPAG(heads="L1H0*0.25") == regaze.SoftPAG(heads={"L1": {"0": 0.25}})


def test_a_file_of_heads(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"scale": 3.0, "u": 0.5, "heads": {"L18": [11], "L0": [17]}}))
    spec = regaze.SoftPAG.from_file(path)
    assert spec == regaze.SoftPAG(scale=3.0, u=0.5, heads="L18H11+L0H17")
    path.write_text(json.dumps(spec.to_dict()))
    assert regaze.SoftPAG.from_file(path) == spec
    path.write_text(json.dumps({"head": {}}))
    with pytest.raises(ValueError, match="did you mean heads"):
        regaze.SoftPAG.from_file(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        regaze.SoftPAG.from_file(path)


def test_methods_of_the_other_side_are_refused() -> None:
    with pytest.raises(ValueError, match="acts on vision-language models"):
        regaze.attach(tiny("sd"), regaze.PAI())
    with pytest.raises(ValueError, match="neither a pipeline nor a denoiser"):
        regaze.attach(tiny("sd").unet.mid_block, regaze.PAG())
    with pytest.raises(TypeError, match="vae_decoder|no unet"):
        regaze.attach(_NoDenoiser(), regaze.PAG())


class _NoDenoiser(type(tiny("sd")).__mro__[1]):  # type: ignore[misc]
    """A pipeline without a denoiser that is known."""

    def __init__(self) -> None:
        pass

    @property
    def components(self) -> dict[str, Any]:
        return {"vae_decoder": None}


def test_a_record_names_the_layers_that_were_used() -> None:
    with regaze.attach(tiny("sd"), regaze.PAG(scale=1.5)) as run:
        pass
    (spec,) = run.specs
    assert spec.layers == ("mid_block.attentions.0.transformer_blocks.0.attn1",)  # type: ignore[attr-defined]
