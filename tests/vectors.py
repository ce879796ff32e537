"""Conformance vectors: numbers computed by the papers' own code and by peer libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

_HERE = Path(__file__).resolve().parent / "data" / "conformance"
FOLDER = Path(os.environ.get("REGAZE_CONFORMANCE") or _HERE)


def vectors(method: str) -> tuple[Tensors, Tensors]:
    """A method's inputs and what its code made of them."""
    folder = FOLDER / method
    return load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")


def meta(method: str) -> dict[str, Any]:
    """What is said of a method's vectors."""
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
    """Whether a case's name begins so."""
    return lambda case: str(case["name"]).startswith(prefix)
