"""Bars of a run: numbers stay whole where the terminal is narrow."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from regaze.evals.runs import progress


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_long_label_gives_way_to_the_numbers(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=said, width=width))
    with progress.bars() as follow:
        step = follow("CHAIR on scenes that follow the prior")
        step("vhr:layers=[2,3],heads=random", 200, 200)
        step("[red]vhr", 20, 200)
    first, second = said.getvalue().splitlines()
    assert first.startswith("CHAIR on") and " 200/200" in first and "0:00:00" in first
    assert " 20/200" in second and "-:--:--" in second
    if width == 160:
        assert "vhr:layers=[2,3],heads=random" in first and "[red]vhr" in second
