from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import TOY_IDENTITY, toy_model

from regaze.evals import results
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.source import Source
from regaze.evals.reports.results_page import page
from regaze.evals.reports.results_reading import learnt
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import quiet
from regaze.evals.study import prepare, study

LABELS = ("vhr:alpha=9", "vhr:alpha=9,heads=random", "pai", "vicrop", "none@blank")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("results")
    jobs = [prepare(Source(name, n_images=3), out / name) for name in ("pope", "chair")]
    loaded = Loaded(*toy_model(), TOY_IDENTITY)
    conditions = [Condition.parse(label) for label in LABELS]
    runs = study(jobs, loaded, conditions, progress=lambda _: quiet, max_new_tokens=3)
    search = {
        "with": "vhr:alpha=9",
        "objective": "auc",
        "value": 0.75,
        "usual": None,
        "baseline": 0.5,
        "trials": 4,
        "refused": 1,
    }
    return {
        "model": "toy",
        "sizes": {"pope": 3, "chair": 3, "validation": 2, "trials": 4},
        "times": {"pope": {"pai": 1.25}, "chair": {"pai": 1.5}},
        "left_out": {"adhh": "it acts on listed heads"},
        "tuned": {"vhr": search, "pai": {**search, "with": "pai"}},
        "usual": {"pai": "pai", "vhr": "vhr", "vicrop": "vicrop"},
        "tables": [results.table_of(s) for run in runs for s in run.scores],
    }


def row(text: str, *begins: str) -> list[str]:
    """The cells of the only row that begins so."""
    start = "| " + " | ".join(begins) + " |"
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in found.split(" |")][len(begins) : -1]


def test_the_page_says_what_is_stored(stored: dict[str, Any], tmp_path: Path) -> None:
    # From the file alone, as the command makes it.
    files.write_json(tmp_path / "results.json", stored)
    results.main(["--page", "--docs", str(tmp_path)])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text == page(stored)
    pope, _, chair = text.partition("## POPE")[2].partition("## CHAIR")
    change = stored["tables"][0]["rows"]["vhr:alpha=9"]["changes"]["yes_ratio"]
    cells = row(pope, "`vhr`", "tuned")
    expected = f"{100 * change['delta']:+.1f} [{100 * change['low']:+.1f}, "
    assert change["delta"] != 0
    assert cells[2].replace("−", "-").lstrip("*").startswith(expected)
    assert row(pope, "`pai`", "default")[-1] == "1.25"
    assert row(chair, "`pai`", "default")[-1] == "1.50"
    assert "`pai` | tuned" not in text
    assert row(pope, "`vicrop`", "default: never acted")[0] == ""
    assert row(pope, "`vhr`", "default: not asked")[0] == ""
    assert len(row(pope, "control: random heads", "`vhr:alpha=9,heads=random`")) == len(cells)
    settings = row(text, "`vhr`", "50.0")
    assert settings == ["–", "75.0", "`vhr:alpha=9`", "1 of 4"]
    assert "- `adhh`: it acts on listed heads" in text
    assert "\n- CHAIR is older.\n" in page({**stored, "note": "CHAIR is older."})
    assert "- `vicrop` never acted on these prompts" in text
    _, chair_table = stored["tables"]
    acted = {**stored, "tables": [stored["tables"][0], {**chair_table, "silent": []}]}
    assert f"- `vicrop` never acted in {stored['tables'][0]['title']}\n" in page(acted)


def test_marks_tell_better_from_worse_and_what_holds_after_correction(
    stored: dict[str, Any],
) -> None:
    change = {"delta": 0.1, "low": 0.05, "high": 0.15, "p": 0.01, "p_holm": 0.04}
    (table, _) = stored["tables"]
    changes = {
        **table["rows"]["pai"]["changes"],
        "accuracy": change,
        "auc": {"delta": -0.1, "low": -0.15, "high": -0.05, "p": 0.01, "p_holm": 0.2},
        "yes_ratio": dict.fromkeys(change),
    }
    rows = {**table["rows"], "pai": {**table["rows"]["pai"], "changes": changes}}
    text = page({**stored, "tables": [{**table, "rows": rows}]})
    assert row(text, "`pai`", "default") == [
        "**+10.0 [+5.0, +15.0]** ▲",
        "−10.0 [−15.0, −5.0] ▼",
        "–",
        "threshold only",
        "1.25",
    ]
    assert "- `pai`: **accuracy +10.0** (prior-free)" in text.partition("Worse:")[0]
    assert "- `pai`: AUC −10.0 (prior-free)" in text.partition("Worse:")[2]


def test_what_rounds_to_nothing_bears_no_mark(stored: dict[str, Any]) -> None:
    change = {"delta": 0.0003, "low": 0.0001, "high": 0.0006, "p": 0.01, "p_holm": 0.04}
    text = page(with_change(stored, "accuracy", change))
    assert row(text, "`pai`", "default")[0] == "0.0 [0.0, +0.1]"
    assert "`pai`: " not in text.partition("## By setting")[2].partition("## POPE")[0]


def with_change(stored: dict[str, Any], metric: str, change: dict[str, float]) -> dict[str, Any]:
    """The first table alone, with one change of pai's."""
    (table, _) = stored["tables"]
    changes = {**table["rows"]["pai"]["changes"], metric: change}
    rows = {**table["rows"], "pai": {**table["rows"]["pai"], "changes": changes}}
    return {**stored, "tables": [{**table, "rows": rows}]}


def test_the_reading_counts_intervals(stored: dict[str, Any]) -> None:
    up = {"delta": 0.02, "low": 0.01, "high": 0.03, "p": 0.01, "p_holm": 0.04}
    flat = {"delta": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0}
    (found,) = [
        line for line in reading_of(with_change(stored, "auc", up)) if "As they come" in line
    ]
    assert found == (
        "- **As they come, prior-free scenes**: of 1 settings AUC rises in 1: "
        "`pai` +2.0 [+1.0, +3.0] (holds); it falls in none."
    )
    lines = reading_of(with_change(stored, "auc", {**up, "p_holm": 0.2}))
    assert any("`pai` +2.0 [+1.0, +3.0]; it falls" in line for line in lines)
    assert any(
        line.startswith("- **What a better AUC costs**, by intervals: `pai` nothing (time 1.25)")
        for line in lines
    )
    assert any("`pai` +2.0 [+1.0, +3.0] prior-free, its control: none was" in x for x in lines)
    # Accuracy alone.
    still = with_change(stored, "auc", flat)
    table = still["tables"][0]
    table["rows"]["pai"]["changes"]["accuracy"] = up
    (found,) = [line for line in reading_of(still) if "moved while AUC" in line and "`pai`" in line]
    assert "`pai` +2.0 [+1.0, +3.0]" in found
    assert not any("AUC rises in 1" in line for line in reading_of(still) if "come" in line)


def test_the_reading_says_how_many_validation_gains_are_found_again(
    stored: dict[str, Any],
) -> None:
    (line,) = [line for line in reading_of(stored) if "Luck" in line]
    # Both searches promise 25 points; only vhr's chose another setting than the default.
    assert "1 settings other than the defaults" in line


def reading_of(stored: dict[str, Any]) -> list[str]:
    return learnt(stored).splitlines()
