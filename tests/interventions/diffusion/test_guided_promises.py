"""What every guidance method promises on every pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusion_matrix import METHODS, Method, pairs
from tiny_pipelines import FAMILIES, state, tiny
from torch import Tensor

import regaze
from regaze.interventions import from_dict, get, names, parse
from regaze.interventions.diffusion.guided import Guided

DIFFERENT = ("sd", "sd35", "flux", "animatediff")
"""Families that differ in how attention is reached and how branches are called."""


@pairs("pag", "softpag-heads")
def test_detaching_restores_the_pipeline(family: str, method: Method) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe), state(denoiser)
    with regaze.attach(pipe, method.on(kind)):
        kind.run(pipe)
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)


@pytest.mark.parametrize("family", DIFFERENT)
def test_they_come_off_in_any_order_and_others_stay(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    seen: list[int] = []
    mine = denoiser.register_forward_hook(lambda m, a, o: seen.append(1))
    plain, before = kind.run(pipe), state(denoiser)
    calls = len(seen)
    pag, soft = METHODS["pag"].on(kind), METHODS["softpag-heads"].on(kind)
    with regaze.attach(pipe, soft):
        alone = kind.run(pipe)
    first = regaze.attach(pipe, pag)
    second = regaze.attach(pipe, soft)
    together = kind.run(pipe)
    first.detach()
    assert torch.equal(kind.run(pipe), alone)
    assert not torch.equal(together, alone)
    second.detach()
    second.detach()
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)
    mine.remove()
    # Once a pass of the pipeline's own; perturbed passes are none of others' business.
    assert len(seen) == 5 * calls


@pytest.mark.parametrize("family", DIFFERENT)
def test_nothing_stays_after_an_exception(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe), state(denoiser)
    spec = METHODS["pag"].on(kind)
    with regaze.attach(pipe, spec) as run:
        target = denoiser.get_submodule(run.specs[0].layers[0])  # type: ignore[attr-defined]
        stock, count = target.processor, [0]

        def fails(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == fails_at:
                raise KeyError("out of memory, say")
            return stock(*args, **kwargs)

        for fails_at in (1, 2):  # noqa: B007 (read by the closure). In the main branch, in the perturbed one.
            count[0] = 0
            object.__setattr__(target, "processor", fails)
            with pytest.raises(KeyError):
                kind.run(pipe)
            target.processor = stock
        kind.run(pipe)
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_strength_zero_is_an_exact_no_op(method: Method) -> None:
    family = "sd3" if "sd3" in method.families else method.families[0]
    pipe, kind = tiny(family), FAMILIES[family]
    plain = kind.run(pipe)
    with regaze.attach(pipe, method.idle) as run:
        assert torch.equal(kind.run(pipe), plain)
    (report,) = run.report().interventions
    assert report.exempt or report.effect == 0


def test_a_run_in_which_nothing_happened_has_not_fired() -> None:
    pipe = tiny("sd")
    with regaze.attach(pipe, regaze.PAG()) as run:
        pass
    assert not run.report().fired
    assert "NEVER FIRED" in str(run.report())


@pairs("pag", "seg", families=(*DIFFERENT, "sdxl", "sd3", "pixart", "wan", "controlnet"))
def test_a_batch_gives_what_single_prompts_give(family: str, method: Method) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, method.on(kind)):
        batch, single = kind.run(pipe, 2), kind.run(pipe, 1)
    assert (batch[:1] - single).abs().max() < 1e-5 * batch.abs().max()


def test_several_images_of_a_prompt() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(1, True)
    call["latents"] = kind.call(2, True)["latents"]
    with regaze.attach(pipe, regaze.PAG()):
        (both,) = pipe(**call, num_images_per_prompt=2)[:1]
        call["latents"] = call["latents"][1:]
        (second,) = pipe(**call)[:1]
    assert (both[1:] - second).abs().max() < 1e-5 * both.abs().max()


@pytest.mark.parametrize("family", DIFFERENT)
def test_guidances_add_up(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    specs = [METHODS["pag"].on(kind), METHODS["softpag-query-mean"].on(kind)]
    steps: dict[str, Any] = {"num_inference_steps": 1}
    plain = kind.run(pipe, **steps)
    moved = []
    for spec in specs:
        with regaze.attach(pipe, spec):
            moved.append(kind.run(pipe, **steps) - plain)
    with regaze.attach(pipe, *specs) as run:
        together = kind.run(pipe, **steps) - plain
    assert (together - sum(moved)).abs().max() < 1e-5 * plain.abs().max()
    assert run.report().fired


@pairs("pag")
def test_a_fork_equals_a_whole_extra_pass(family: str, method: Method) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, method.on(kind), METHODS["softpag-heads"].on(kind)):
        forked = kind.run(pipe)
    with regaze.attach(pipe, method.on(kind), METHODS["softpag-heads"].on(kind), fork=False):
        whole = kind.run(pipe)
    assert (forked - whole).abs().max() < 1e-5 * whole.abs().max()


def test_two_pipelines_and_a_deep_copy_do_not_see_each_other() -> None:
    kind = FAMILIES["sd"]
    one, other = tiny("sd"), kind.build()
    plain = kind.run(one)
    with regaze.attach(one, regaze.PAG()):
        guided = kind.run(one)
        copied = copy.deepcopy(one.unet)
        assert torch.equal(kind.run(other), plain)
        unet, one.unet = one.unet, copied
        assert torch.equal(kind.run(one), plain)
        one.unet = unet
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pairs(families=("sd", "sd35", "flux"))
def test_half_precision(family: str, method: Method, dtype: torch.dtype) -> None:
    kind = FAMILIES[family]
    pipe = copy.deepcopy(tiny(family)).to(dtype)

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    call = {name: cast(value) for name, value in kind.call(2, True).items()}
    with regaze.attach(pipe, replace(method.on(kind), scale=0.5)) as run:
        got = pipe(**call)[0]
    assert got.dtype == dtype
    assert got.isfinite().all()
    assert run.report().fired


def test_every_method_is_in_the_matrix() -> None:
    guided = {name for name in names(Guided.acts_on) if issubclass(get(name), Guided)}
    assert {method.acts.name for method in METHODS.values()} == guided


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_specs_survive_json_and_their_own_labels(method: Method) -> None:
    for spec in (method.acts, method.idle, method.on(FAMILIES["sd3"])):
        assert from_dict(spec.to_dict()) == spec
    assert isinstance(method.acts, Guided)
    if method.acts.layers is None:
        assert parse(method.acts.label) == method.acts
