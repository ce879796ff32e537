"""The tutorial's method works as it says, and is as short as it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import SHORT, ask, logits
from test_docs import ROOT, code
from tiny import tiny

from regaze.interventions import parse


@pytest.mark.usefixtures("own_methods")
def test_the_tutorial_builds_and_proves_a_method() -> None:
    blocks = code(ROOT / "docs" / "own-method.md", "python")
    lines = [line for block in blocks[:2] for line in block.splitlines() if line.strip()]
    assert len(lines) < 60
    names: dict[str, Any] = {"__name__": "own_method"}
    for block in blocks:
        exec(compile(block, "own-method.md", "exec", dont_inherit=True), names)
    assert parse("sharpen:gain=2") == names["Sharpen"](gain=2)
    # Padding that a row doesn't see is no part of the mean.
    model = tiny("qwen2_vl")
    rows: list[Any] = [(SHORT, [0]), ("where is it, and what is it?", [1])]
    both = logits(model, ask(model, *rows), names["Sharpen"]())
    for found, row in zip(both, rows, strict=True):
        alone = logits(model, ask(model, row), names["Sharpen"]())[0]
        torch.testing.assert_close(found[-len(alone) :], alone, rtol=0, atol=1e-4)
