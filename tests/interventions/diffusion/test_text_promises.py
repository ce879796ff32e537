"""What methods that edit what the picture reads of texts promise on every pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusion_matrix import TEXT_METHODS, TextMethod, text_pairs
from tiny_pipelines import FAMILIES, TEXT, WIDTH, noise, quiet, state, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import from_dict


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def differ(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@text_pairs("nag", "regions", "reweight", "primecomposer")
def test_detaching_restores_the_pipeline(family: str, method: TextMethod) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe), state(denoiser)
    with regaze.attach(pipe, method.make()) as run:
        edited = kind.run(pipe)
    assert run.report().fired
    assert all(layer.effect > 0 for layer in run.report().interventions[0].layers)
    assert differ(edited, plain) > 1e-3
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)


@text_pairs(families=("sd", "sd3", "flux", "wan"))
def test_strength_zero_is_an_exact_no_op(family: str, method: TextMethod) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    idle = method.make().idle()
    with regaze.attach(pipe, idle) as run:
        got = kind.run(pipe)
    assert torch.equal(got, kind.run(pipe))
    assert run.report().interventions[0].exempt


@text_pairs(families=("sd", "sdxl", "sd35", "flux", "wan", "animatediff"))
def test_a_batch_gives_what_single_prompts_give(family: str, method: TextMethod) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, method.make()):
        batch, single = kind.run(pipe, 2), kind.run(pipe, 1)
    assert differ(batch[:1], single) < 1e-5


def test_several_images_of_a_prompt() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(1, True) | {"latents": kind.call(2, True)["latents"]}
    text = noise(1, 7, WIDTH, seed=9)
    with regaze.attach(pipe, regaze.NAG(embeddings={"text": text})):
        both = pipe(**call, num_images_per_prompt=2)[0]
        second = pipe(**call | {"latents": call["latents"][1:]})[0]
    assert differ(both[1:], second) < 1e-5


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@text_pairs("nag", "nag-l2", "nag-shared", "regions", "regions-short")
def test_a_second_text_equals_its_literal_form(
    family: str, method: TextMethod, guided: bool
) -> None:
    pipe, kind, spec = tiny(family), FAMILIES[family], method.make()
    with regaze.attach(pipe, spec):
        got = kind.run(pipe, guided=guided)
    with spec.literal().within(pipe, kind.running(guided)):
        want = kind.run(pipe, guided=guided)
    assert differ(got, want) < 1e-5
    assert differ(got, kind.run(pipe, guided=guided)) > 1e-3


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@text_pairs("reweight", "reweight-values", "reweight-logits")
def test_reweighting_equals_its_literal_form(family: str, method: TextMethod, guided: bool) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, method.make()) as run:
        got = kind.run(pipe, guided=guided)
    form: Any = run.specs[0].literal()  # type: ignore[attr-defined]
    frames = 3 if family == "animatediff" else 1
    with literally(pipe, kind.running(guided, frames=frames), [form]):
        want = kind.run(pipe, guided=guided)
    assert differ(got, want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@text_pairs("nag", "regions", "reweight", "primecomposer", families=("sd", "sd35", "flux"))
def test_half_precision(family: str, method: TextMethod, dtype: torch.dtype) -> None:
    kind = FAMILIES[family]
    pipe = copy.deepcopy(tiny(family)).to(dtype)
    call = {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in kind.call(2, True).items()
    }
    with regaze.attach(pipe, method.make()) as run:
        got = pipe(**call)[0]
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert run.report().fired


@text_pairs("nag", "regions", "reweight", "primecomposer", families=("sd", "flux"))
def test_sequential_offloading(family: str, method: TextMethod) -> None:
    pipe, kind = quiet(FAMILIES[family].build()), FAMILIES[family]
    with regaze.attach(pipe, method.make()):
        want = kind.run(pipe)
        denoiser = getattr(pipe, kind.denoiser)
        cpu_offload(denoiser, execution_device=torch.device("cpu"))
        try:
            got = kind.run(pipe)
        finally:
            remove_hook_from_submodules(denoiser)
    assert differ(got, want) < 1e-5


@text_pairs("nag", families=("sd", "sd3", "flux", "wan"))
def test_guidance_beside_it_leads_away_from_what_it_predicts(
    family: str, method: TextMethod
) -> None:
    """The branch reads both texts, too: where nothing is perturbed, guidance adds nothing."""
    pipe, kind = tiny(family), FAMILIES[family]
    spec = method.make()
    with regaze.attach(pipe, spec):
        alone = kind.run(pipe)
    if family in ("sd3", "flux"):
        with pytest.raises(ValueError, match="more text than the prompt's"):
            regaze.attach(pipe, spec, regaze.PAG(layers=(1,)))
        return
    nothing = regaze.SoftPAG(u=1e-9, layers=kind.perturb)
    with regaze.attach(pipe, spec, nothing) as run:
        beside = kind.run(pipe)
    assert differ(beside, alone) < 1e-5
    assert "adds to what the denoiser is called with" in str(run.report())


def test_the_negative_prompt_of_guidance_is_taken_if_no_other_is_given() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    negative = noise(2, TEXT, WIDTH, seed=2)
    with regaze.attach(pipe, regaze.NAG()):
        got = kind.run(pipe)
    with regaze.attach(pipe, regaze.NAG(embeddings={"text": negative})):
        assert torch.equal(got, kind.run(pipe))


def test_a_negative_that_is_the_prompt_changes_nothing() -> None:
    pipe, kind = tiny("flux"), FAMILIES["flux"]
    call = kind.call(2, False)
    same = {"text": call["prompt_embeds"], "pooled": call["pooled_prompt_embeds"]}
    with regaze.attach(pipe, regaze.NAG(embeddings=same)):
        got = kind.run(pipe, guided=False)
    assert differ(got, kind.run(pipe, guided=False)) < 1e-5


def test_windows_in_steps_and_in_training_time() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    text = {"text": noise(1, 7, WIDTH, seed=9)}
    windows: tuple[tuple[dict[str, Any], int | None], ...] = (
        ({}, 3),
        ({"stop": 0.5}, 2),
        ({"start": 0.6}, 1),
        ({"until": 0.5}, None),
    )
    for window, steps in windows:
        with regaze.attach(pipe, regaze.NAG(embeddings=text, **window)) as run:
            kind.run(pipe)
        times = [float(t) for t in pipe.scheduler.timesteps]
        want = sum(t >= 500 for t in times) if steps is None else steps
        assert run.report().interventions[0].steps == want


@pytest.mark.parametrize("method", TEXT_METHODS.values(), ids=TEXT_METHODS)
def test_specs_survive_json(method: TextMethod) -> None:
    spec = method.make()
    assert from_dict(spec.to_dict()) == spec
    for control in spec.controls().values():
        assert type(control) is type(spec) and control != spec
    for preset in type(spec).presets.values():
        assert replace(spec, **preset.fields) != spec
