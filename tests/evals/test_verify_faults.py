"""A certificate finds wrong engines out, at the right line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from matrix import EDITS
from methods import LAYERS
from tiny import tiny
from tiny_pipelines import FAMILIES, quiet
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import regaze
from regaze.evals.verify import Certificate
from regaze.hooks import Columns, Edit, Host, MapForm, dispatch
from regaze.hooks.attach import ModelAttachment
from regaze.interventions import PAG, Intervention

LANGUAGE = ("prefill", "decode")


def failed(certificate: Certificate) -> set[str]:
    return {line.promise for line in certificate.failures}


@dataclass(frozen=True)
class Toy(Intervention):
    """A method whose fused form each test gives; its formula subtracts 3 from image logits."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "look away"
    paper: ClassVar[str] = "none"
    on: bool = True

    def resolve(self, host: Host) -> Toy:
        return self

    def idle(self) -> Toy:
        return replace(self, on=False)

    def literal(self) -> MapForm:
        return MapForm(LAYERS, lambda z, m: torch.where(m.last & m.image, z - 3, z))

    def bind(self, host: Host) -> Edit:
        return ToyEdit(LAYERS if self.on else ())


class ToyEdit(Edit):
    rows = "last"

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image, logits - 3, logits)


@pytest.fixture()
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Certificate]:
    """Verify the toy method with another fused form."""

    def verify(edit: Any) -> Certificate:
        model = tiny("llava")
        monkeypatch.setattr(ToyEdit, "edit_logits", edit)
        return regaze.verify(model.model, Toy(), processor=model.processor)

    return verify


def right(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
    return torch.where(columns.image, logits - 3, logits)


def test_the_toy_is_right_as_it_is(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(right)
    assert certificate.passed and not certificate.failures, str(certificate)


def test_an_edit_that_is_not_applied(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(lambda self, layer, logits, columns: logits)
    assert failed(certificate) == {"fired", *LANGUAGE}


def test_an_edit_that_misses_decoding(wrong: Callable[[Any], Certificate]) -> None:
    read: list[int] = []

    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        read.append(logits.shape[-1])
        prompt = logits.shape[-1] in (min(read), certificate_lengths[-1])
        return right(self, layer, logits, columns) if prompt else logits

    model = tiny("llava")
    from regaze.evals.verify.language import Language

    asked = Language(model.model, model.processor)._given
    certificate_lengths = [asked[0]["input_ids"].shape[1], asked[1]["input_ids"].shape[1]]
    certificate = wrong(edit)
    assert "decode" in failed(certificate)
    assert "prefill" not in failed(certificate)


def test_an_edit_of_another_strength(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(
        lambda self, layer, logits, columns: torch.where(columns.image, logits - 2.9, logits)
    )
    assert failed(certificate) == set(LANGUAGE)


def test_a_mask_that_is_lost_on_the_way(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(right)  # Registers the engine's masks.
    known = ALL_MASK_ATTENTION_FUNCTIONS
    name = next(name for name in known.valid_keys() if name == dispatch.PREFIX + "sdpa")
    monkeypatch.setitem(known._global_mapping, name, lambda *args, **more: None)
    assert "batch" in failed(wrong(right))


def test_an_edit_that_reads_the_other_rows_columns(wrong: Callable[[Any], Certificate]) -> None:
    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image[:1], logits - 3, logits)

    assert failed(wrong(edit)) == {"batch"}


def test_an_edit_that_depends_on_the_thread(wrong: Callable[[Any], Certificate]) -> None:
    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        here = threading.current_thread() is threading.main_thread()
        return right(self, layer, logits, columns) if here else logits

    assert failed(wrong(edit)) == {"threads"}


def test_an_idle_spec_that_acts(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "idle", lambda self: self)
    assert failed(wrong(right)) == {"idle"}


def test_a_method_without_a_literal_form(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "literal", Intervention.literal)
    certificate = wrong(right)
    assert {certificate.of(part).verdict for part in LANGUAGE} == {"skipped"}
    assert certificate.of("prefill").detail == "no literal form of toy"
    assert not certificate.failures


@pytest.mark.parametrize("left", ["hook", "weight", "attribute", "mode"])
def test_something_that_stays_after_detaching(
    left: str, wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    detach, model = ModelAttachment.detach, tiny("llava").model
    weight = model.lm_head.weight.detach().clone()
    undo: list[Callable[[], Any]] = []

    def leave(self: ModelAttachment) -> None:
        detach(self)
        if undo:
            return
        if left == "hook":
            undo.append(model.register_forward_hook(lambda m, a, o: None).remove)
        elif left == "weight":
            model.lm_head.weight.data[0] += 1
            undo.append(lambda: model.lm_head.weight.data.copy_(weight))
        elif left == "attribute":
            model.lm_head.left = True
            undo.append(lambda: delattr(model.lm_head, "left"))
        else:
            mode: Any = torch.overrides.BaseTorchFunctionMode()
            mode.__enter__()
            undo.append(lambda: mode.__exit__(None, None, None))

    monkeypatch.setattr(ModelAttachment, "detach", leave)
    try:
        assert "undo" in failed(wrong(right))
    finally:
        for one in undo:
            one()


@pytest.fixture()
def biased() -> Iterator[Any]:
    """A model whose attention adds a bias that no mask shows."""
    name = "biased"

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
    ) -> Any:
        bias = torch.linspace(0, 2, key.shape[2])
        mask = bias.expand(1, 1, query.shape[2], -1) + (0 if mask is None else mask)
        eager = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return eager(module, query, key, value, mask, **more)

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model = tiny("llava", fresh=True)
    model.model.config.text_config._attn_implementation = name
    yield model
    for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        known._local_mapping.pop(name, None)  # type: ignore[attr-defined]


def test_attention_with_an_unknown_bias(biased: Any) -> None:
    certificate = regaze.verify(biased.model, EDITS["pai"].acts, processor=biased.processor)
    assert certificate.of("maps").verdict == "failed"
    assert not certificate.passed


def test_guidance_by_another_perturbation(monkeypatch: pytest.MonkeyPatch) -> None:
    from regaze.interventions.diffusion import pag

    kind = FAMILIES["sd3"]
    monkeypatch.setattr(pag, "_alone", lambda call: 1.01 * call.value)
    certificate = regaze.verify(
        quiet(kind.build()), PAG(layers=kind.perturb), call=kind.call(2, True)
    )
    assert "steps" in failed(certificate) and "fired" not in failed(certificate)
