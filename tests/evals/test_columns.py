"""The page about every method in three worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import TOY_IDENTITY, toy_model

from regaze.evals import columns, results
from regaze.evals.asking.every import Every
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.source import Source
from regaze.evals.reports.columns_page import page
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import quiet
from regaze.evals.study import prepare, study
from regaze.interventions import parse


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("drawn")
    conditions = [Condition.parse(text) for text in ("pai", "vhr")]
    (run,) = study(
        [prepare(Source("pope", n_images=2), out)],
        Loaded(*toy_model(), TOY_IDENTITY),
        conditions,
        progress=lambda _: quiet,
    )
    usual = {"pai": "pai", "vhr": "vhr"}
    return {"usual": usual, "tables": [results.table_of(s) for s in run.scores]}


def test_every_method_is_asked_in_the_world_of_pictures_and_stands_beside_the_drawn(
    drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(*toy_model(), TOY_IDENTITY)
    some = Every([parse("pai"), parse("vaf")], {"paint": "no vision tower"})
    monkeypatch.setattr(columns, "load", lambda name: loaded)
    monkeypatch.setattr(columns, "every_method", lambda loaded: some)
    files.write_json(tmp_path / "results.json", drawn)
    given = ["--out", str(tmp_path / "runs"), "--docs", str(tmp_path), "--scenes", "2"]
    columns.main(given)
    stored = files.read_json(tmp_path / "results-smol.json")
    assert list(stored["tables"]) == ["smol"]
    table = stored["tables"]["smol"]
    assert (table["items"], table["scenes"]) == (12, 2)
    assert set(table["rows"]) | set(table["silent"]) >= {"none", "pai", "vaf"}
    text = (tmp_path / "results-smol.md").read_text("utf-8")
    assert text == page(stored, drawn)
    accuracy = text.split("## Accuracy")[1].split("##")[0]
    lines = {line.split(" | ")[0]: line.split(" | ")[1:] for line in accuracy.splitlines()}
    both = [100 * t["rows"]["none"]["metrics"]["accuracy"] for t in (drawn["tables"][0], table)]
    assert [cell.rstrip(" |") for cell in lines["| none"]] == [f"{value:.1f}" for value in both]
    assert "can't act" in lines["| `vhr`"][1]
    assert "can't act" in lines["| `vaf`"][0]
    assert "- `paint`: no vision tower" in text
    columns.main([*given, "--page"])
    assert (tmp_path / "results-smol.md").read_text("utf-8") == text
