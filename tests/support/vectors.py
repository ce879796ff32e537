"""Conformance vectors: numbers computed by the papers' own code and by peer libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from regaze.hooks.attention import row_logits

Tensors = dict[str, Tensor]

_HERE = Path(__file__).resolve().parent.parent / "data" / "conformance"
FOLDER = Path(os.environ.get("REGAZE_CONFORMANCE") or _HERE)


def vectors(method: str) -> tuple[Tensors, Tensors]:
    """A method's inputs and what its code made of them."""
    folder = FOLDER / method
    return load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")


def meta(method: str) -> dict[str, Any]:
    """The description of a method's vectors."""
    found: dict[str, Any] = json.loads((FOLDER / method / "meta.json").read_text(encoding="utf-8"))
    return found


def cases(
    method: str, chosen: Callable[[Mapping[str, Any]], bool] = lambda case: True
) -> list[Any]:
    """A method's cases as parameters of a test; one that is skipped where there are no vectors."""
    if not (FOLDER / method / "meta.json").exists():
        reason = f"no vectors in {FOLDER / method}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=case["name"]) for case in meta(method)["cases"] if chosen(case)]


def named(prefix: str) -> Callable[[Mapping[str, Any]], bool]:
    """True if a case's name begins so."""
    return lambda case: str(case["name"]).startswith(prefix)


def attention_inputs(inputs: Tensors, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a case; a decode step appends to its prefill's."""
    if not name.endswith(".decode"):
        return inputs[f"{name}.q"], inputs[f"{name}.k"], inputs[f"{name}.v"]
    prefill = name.removesuffix(".decode") + ".prefill"
    key = torch.cat([inputs[f"{prefill}.k"], inputs[f"{name}.k_new"]], 2)
    value = torch.cat([inputs[f"{prefill}.v"], inputs[f"{name}.v_new"]], 2)
    return inputs[f"{name}.q"], key, value


def causal_logits(query: Tensor, key: Tensor, edit: Any) -> Tensor:
    """Logits of all rows; ``edit(unmasked logits)`` comes before the causal mask."""
    rows, columns = query.shape[2], key.shape[2]
    logits: Tensor = edit(row_logits(query, key, query.shape[-1] ** -0.5))
    visible = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    return logits.masked_fill(~visible, -torch.inf)


def span(length: int, start: int, end: int) -> Tensor:
    """A mask of so many columns, true at ``start ... end``."""
    columns = torch.arange(length)
    return (columns >= start) & (columns < end)
