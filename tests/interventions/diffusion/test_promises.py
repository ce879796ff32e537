"""Promises of every method for pipelines, in every scene that it acts in."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from methods import Method, promised
from scenes import KINDS, PAIRS, differ, plain, rows_of, stage, steps, traces
from tiny_pipelines import Family
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import WholeForm, literally
from regaze.hooks.diffusion.literal_latents import LatentForm, moved_literally
from regaze.interventions import from_dict

SOME = ("sd", "sd35", "flux", "pairs-flux", "clip-hunyuan", "frames-sd3")
"""Scenes that differ in how attention is reached and how branches are called."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@promised("undo", *SOME)
def test_detaching_restores_the_pipeline(scene: str, method: Method) -> None:
    pipe, kind = stage(scene)
    denoiser = getattr(pipe, kind.denoiser)
    few = steps(method.id)
    want, before = plain(scene, **few), traces(pipe, denoiser)
    with regaze.attach(pipe, method.on(scene)) as run:
        edited = kind.run(pipe, **few)
    assert run.report().fired
    assert differ(edited, want) > 1e-3
    assert traces(pipe, denoiser) == before
    assert torch.equal(kind.run(pipe, **few), want)


@promised("idle", *SOME)
def test_strength_zero_changes_nothing(scene: str, method: Method) -> None:
    pipe, kind = stage(scene)
    with regaze.attach(pipe, method.off(scene)) as run:
        got = kind.run(pipe)
    assert torch.equal(got, plain(scene))
    (report,) = run.report().interventions
    assert report.exempt or report.effect == 0


def written_out(pipe: Any, kind: Family, spec: Any, guided: bool) -> AbstractContextManager[None]:
    form, manner = spec.literal(), kind.running(guided)
    if isinstance(form, WholeForm):
        return form.within(pipe, manner)
    if isinstance(form, LatentForm):
        return moved_literally(pipe, manner, form)
    return literally(pipe, manner, [form])


def check(scene: str, method: Method, guided: bool) -> None:
    pipe, kind = stage(scene)
    few = steps(method.id)
    alone = plain(scene, guided, **few)
    with regaze.attach(pipe, method.on(scene)) as run:
        got = kind.run(pipe, guided=guided, **few)
    with written_out(pipe, kind, run.specs[0], guided):
        want = kind.run(pipe, guided=guided, **few)
    assert run.report().fired
    assert differ(got, want) < method.within
    assert differ(got, alone) > 1e-4
    if guided:
        assert torch.equal(kind.run(pipe, **few), alone), "a bit is left of it"


@promised("literal")
def test_it_equals_its_literal_form(scene: str, method: Method) -> None:
    check(scene, method, guided=True)


@promised("literal", *KINDS, *PAIRS)
def test_it_does_without_classifier_free_guidance(scene: str, method: Method) -> None:
    check(scene, method, guided=False)


@promised("batch", *SOME, "sdxl", "sd3", "pixart", "wan", "qwen", "animatediff", "controlnet")
def test_a_batch_gives_what_single_samples_give(scene: str, method: Method) -> None:
    pipe, kind = stage(scene)
    with regaze.attach(pipe, method.on(scene)):
        batch, single = (kind.run(pipe, size, **steps(method.id)) for size in (2, 1))
    assert differ(rows_of(kind, batch, 0), single) < method.within


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@promised("half", *SOME)
def test_half_precision(scene: str, method: Method, dtype: torch.dtype) -> None:
    pipe, kind = stage(scene)
    spec, half = method.on(scene), copy.deepcopy(pipe).to(dtype)
    call = {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in kind.call(kind.samples, True).items()
    }
    with regaze.attach(pipe, spec):
        want = kind.run(pipe)
    with regaze.attach(half, spec) as run:
        got = half(**call)[0]
    assert run.report().fired
    assert got.dtype == dtype
    # Latents move by where a map is largest, which in bfloat16 may be another token.
    assert differ(got.float(), want) < (0.1 if dtype == torch.float16 else 0.15)


@promised("undo", "sd", "pairs-flux", "clip-wan", "frames-sd")
def test_sequential_offloading(scene: str, method: Method) -> None:
    pipe, kind = stage(scene)
    own, few = copy.deepcopy(pipe), steps(method.id)
    denoiser = getattr(own, kind.denoiser)
    with regaze.attach(own, method.on(scene)):
        want = kind.run(own, **few)
        cpu_offload(denoiser, execution_device=torch.device("cpu"))
        got = kind.run(own, **few)
        remove_hook_from_submodules(denoiser)
    assert differ(got, want) < 1e-5


@promised("json", "none")
def test_specs_survive_json(scene: str, method: Method) -> None:
    spec = method.on(scene)
    for one in (spec, method.off(scene)):
        assert from_dict(one.to_dict()) == one
    for control in spec.controls().values():
        assert type(control) is type(spec) and control != spec
    for name, preset in type(spec).presets.items():
        assert type(spec).preset(name) == type(spec)(**preset.fields)
