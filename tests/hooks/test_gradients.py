"""Backward passes give the gradient of the edited forward pass, checkpointed or not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from matrix import EDITS
from tiny import tiny
from torch import Tensor

from regaze.hooks import attach
from regaze.interventions import Intervention

IDS = ("pai", "vaf", "var", "var-code", "vhr", "vhr-mask")
EVERY = [EDITS[name].acts for name in ("pai", "vaf", "var", "vhr")]
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]


def model_for(family: str, reentrant: bool | None) -> Any:
    model = tiny(family, fresh=True).model.train()
    if reentrant is not None:
        options = {"use_reentrant": reentrant}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    return model


def loss_of(model: Any, family: str, rows: list[Row]) -> Tensor:
    inputs = ask(tiny(family), *rows)
    found: Tensor = model(**inputs, use_cache=False).logits[:, -3:].square().mean()
    return found


def gradient(
    family: str, specs: list[Intervention], rows: list[Row], reentrant: bool | None = None
) -> Tensor:
    model = model_for(family, reentrant)
    with attach(model, *specs) as run:
        loss_of(model, family, rows).backward()
        assert run.report().fired
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["one", "two"])
def test_checkpointing_gives_the_same_gradient(name: str, rows: list[Row], reentrant: bool) -> None:
    specs = [EDITS[name].acts]
    want = gradient("llava", specs, rows)
    assert want.isfinite().all()
    assert want.norm() > 1e-3
    got = gradient("llava", specs, rows, reentrant)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    plain = gradient("llava", [], rows)
    assert (got - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next", "mistral3"])
def test_all_methods_together_are_checkpointed(family: str, reentrant: bool) -> None:
    want = gradient(family, EVERY, ROWS)
    got = gradient(family, EVERY, ROWS, reentrant)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", IDS)
def test_gradients_are_those_of_differences(name: str) -> None:
    """Along a direction of the head's weights, which no threshold depends on."""
    model = tiny("llava", fresh=True).model
    weight = model.get_decoder().layers[-1].self_attn.v_proj.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with attach(model, EDITS[name].acts):
        loss_of(model, "llava", ROWS).backward()
        slope = float((weight.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-3 * direction)
                values.append(float(loss_of(model, "llava", ROWS)))
                weight.sub_(sign * 1e-3 * direction)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.02)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_backward_pass_may_run_on_another_thread_and_after_other_passes(
    reentrant: bool,
) -> None:
    want = gradient("llava", EVERY, ROWS[:1])
    model = model_for("llava", reentrant)
    with attach(model, *EVERY):
        loss = loss_of(model, "llava", ROWS[:1])
        with torch.no_grad():
            loss_of(model, "llava", ROWS)
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    got = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_pass_after_detaching_raises(reentrant: bool) -> None:
    model = model_for("llava", reentrant)
    with attach(model, EDITS["pai"].acts):
        loss = loss_of(model, "llava", ROWS[:1])
    with pytest.raises(RuntimeError, match="detached before the backward pass"):
        loss.backward()


def test_a_pass_from_before_attaching_cannot_be_run_again() -> None:
    model = model_for("llava", False)
    loss = loss_of(model, "llava", ROWS[:1])
    with (
        attach(model, EDITS["pai"].acts),
        pytest.raises(RuntimeError, match="gradient_checkpointing_disable"),
    ):
        loss.backward()


def test_a_tower_that_keeps_arguments_to_itself_is_not_checkpointed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_for("llava", False)
    tower = type(model.get_decoder())
    stock = tower.forward

    def forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, inputs_embeds: Any = None, use_cache: Any = None,
    ) -> Any:  # fmt: skip
        return stock(
            self, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
        )

    monkeypatch.setattr(tower, "forward", forward)
    ids = ask(tiny("llava"), (SHORT, []))["input_ids"]
    with (
        attach(model, EDITS["pai"].acts),
        pytest.raises(NotImplementedError, match="gradient_checkpointing_disable"),
    ):
        model.get_decoder()(input_ids=ids)


def test_counting_is_done_once() -> None:
    reports = []
    for reentrant in (None, True, False):
        model = model_for("llava", reentrant)
        with attach(model, *EVERY) as run:
            loss_of(model, "llava", ROWS).backward()
        reports.append(run.report())
    for report in reports[1:]:
        for one, other in zip(report.interventions, reports[0].interventions, strict=True):
            assert one.prompts == other.prompts
            assert [x.calls for x in one.layers] == [x.calls for x in other.layers]
