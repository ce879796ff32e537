"""Literal forms on pipelines that hand over their latents, texts or predictions in other ways."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from scenes import differ
from tiny_guided import PIPES, Pipe
from tiny_pipelines import FAMILIES, WIDTH, noise, quiet, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import Manner, literally
from regaze.hooks.diffusion.literal_latents import LatentForm, moved_literally
from regaze.hooks.diffusion.running import counts_training_steps

SPECS: dict[str, Any] = {
    "pag": regaze.PAG(),
    "seg": regaze.SEG(sigma=1.0),
    "reweight": regaze.Reweight({1: 2.0}),
    "a_star": regaze.AStar(tokens=[1, 3], cut="last"),
}


def run(kind: Pipe, pipe: Any) -> Tensor:
    torch.manual_seed(0)
    return kind.run(pipe, True)


def written_out(pipe: Any, kind: Pipe, spec: Any) -> AbstractContextManager[None]:
    calls = kind.how == "calls"
    manner = Manner("transformer", kind.how != "none", calls, not kind.cond_first, samples=1)
    form = spec.literal()
    if isinstance(form, LatentForm):
        return moved_literally(pipe, manner, form)
    return literally(pipe, manner, [form])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ZImagePipeline", "pag"),  # Lists of latents and of predictions.
        ("ZImagePipeline", "reweight"),
        ("LTX2Pipeline", "seg"),  # Predictions of picture and sound.
        ("LTX2Pipeline", "reweight"),  # Video also sees sound, which has no words.
        ("LTX2Pipeline", "a_star"),  # Sound takes its steps with a copy of the scheduler.
        ("HunyuanVideo15Pipeline", "seg"),  # Padding that sees nothing.
        ("HunyuanVideo15Pipeline", "reweight"),
        ("AuraFlowPipeline", "reweight"),  # Learned tokens before the text.
        ("HunyuanImagePipeline", "a_star"),  # Two texts in one stream.
        ("AllegroPipeline", "a_star"),  # Text with a further axis.
    ],
)
def test_methods_equal_their_literal_form(name: str, method: str) -> None:
    kind, pipe = PIPES[name], PIPES[name].build(name)
    with regaze.attach(pipe, SPECS[method]) as attached:
        got = run(kind, pipe)
    with written_out(pipe, kind, attached.specs[0]):
        want = run(kind, pipe)
    plain = run(kind, pipe)
    assert attached.report().fired
    assert differ(got, want) < 1e-5
    assert differ(got, want) < 0.05 * differ(got, plain)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("QwenImage21Pipeline", "pag"),
        ("QwenImage21Pipeline", "a_star"),
        ("FluxKontextPipeline", "a_star"),
        ("ZImagePipeline", "a_star"),
    ],
)
def test_what_is_not_written_out_says_so(name: str, method: str) -> None:
    kind, pipe = PIPES[name], PIPES[name].build(name)
    with regaze.attach(pipe, SPECS[method]) as attached:
        run(kind, pipe)
    assert attached.report().fired
    with (
        pytest.raises(NotImplementedError, match="isn't written out here"),
        written_out(pipe, kind, attached.specs[0]),
    ):
        run(kind, pipe)


def test_a_picture_attended_to_part_by_part_is_no_clip() -> None:
    name = "QwenImage21Pipeline"
    kind, pipe = PIPES[name], PIPES[name].build(name)
    with (
        regaze.attach(pipe, regaze.EnhanceAVideo(weight=2.0)),
        pytest.raises(ValueError, match="make 1 x 4 x 4, and frames that see each other"),
    ):
        run(kind, pipe)


TIMED = [
    regaze.PAG(adaptive=0.002),
    regaze.NAG(until=0.5, embeddings={"text": noise(1, 5, WIDTH), "pooled": noise(1, 12)}),
]


@pytest.mark.parametrize("spec", TIMED, ids=lambda spec: spec.name)
def test_training_time_is_not_read_off_logarithms_of_noise(spec: Any) -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    pipe.scheduler = EDMEulerScheduler()
    with (
        regaze.attach(pipe, spec),
        pytest.raises(ValueError, match="the EDMEulerScheduler .* counts time otherwise"),
    ):
        kind.run(pipe)
    own: Any = {"start": 0.0, "adaptive": 0.0} if spec.name == "pag" else {"until": 0.0}
    with regaze.attach(pipe, dataclasses.replace(spec, **own)) as attached:
        kind.run(pipe)
    assert attached.report().fired


def test_a_scheduler_that_says_nothing_of_its_time_is_not_taken_to_count_training_steps() -> None:
    run: Any = SimpleNamespace(pipeline=SimpleNamespace(scheduler=object()))
    assert not counts_training_steps(run)
    run.pipeline.scheduler = tiny("sd").scheduler
    assert counts_training_steps(run)


@pytest.mark.parametrize("spec", TIMED, ids=lambda spec: spec.name)
def test_a_bare_transformer_may_be_given_shares_of_the_training_time(spec: Any) -> None:
    pipe, kind = tiny("flux"), FAMILIES["flux"]
    call: dict[str, Any] = {}

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        call.update(kwargs)

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    kind.run(pipe, guided=False)
    handle.remove()
    with (
        torch.no_grad(),
        regaze.attach(pipe.transformer, spec),
        pytest.raises(ValueError, match="loops around a bare transformer may count time"),
    ):
        pipe.transformer(**call)
