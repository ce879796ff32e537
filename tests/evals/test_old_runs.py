"""Run directories that were written before there was one driver open as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from regaze.evals.compare_runs import compare_runs
from regaze.evals.pictures import head_tests
from regaze.evals.reopening import reopen
from regaze.evals.scoring.compare import to_json

DATA = Path(__file__).parent.parent / "data" / "runs"
EXPECTED = json.loads((DATA / "expected.json").read_text())
SINCE = ("unwanted",)
KINDS = ("questions", "pictures", "clips")


def values(conditions: Any) -> dict[str, Any]:
    """Every metric of every group of every condition; those that came since have no value."""
    return {
        condition["label"]: {
            group: {
                name: metric["value"]
                for name, metric in found.items()
                if not (name in SINCE and metric["value"] is None)
            }
            for group, found in condition["score"]["groups"].items()
        }
        for condition in conditions
    }


def copied(kind: str, folder: Path) -> Path:
    """A copy of a stored run: scores are kept in its directory."""
    return Path(shutil.copytree(DATA / kind, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_run_has_the_scores_that_it_had(kind: str, tmp_path: Path) -> None:
    (scored,) = reopen(copied(kind, tmp_path / "a"))
    assert values(to_json(scored.scores[0])["conditions"]) == EXPECTED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_of_any_kind_are_compared(kind: str, tmp_path: Path) -> None:
    a, b = (copied(kind, tmp_path / name) for name in "ab")
    for path in b.glob("*/manifest.json"):
        path.write_text(path.read_text().replace('"regaze": "0.1.0"', '"regaze": "0.2.0"', 1))
    (pair,) = compare_runs(a, b)
    assert list(pair.differences) == ['regaze: "0.1.0" in A, "0.2.0" in B']
    found = values(to_json(pair.scores[0])["conditions"])
    for name in "AB":
        assert {k[3:]: v for k, v in found.items() if k.startswith(name)} == EXPECTED[kind]
    change = next(c.change for c in pair.scores[0].conditions if c.label == "B: none")
    assert change is not None and not change.lost and not change.gained


@pytest.mark.parametrize(("kind", "other"), [("pictures", "noise"), ("clips", "data_sha256")])
def test_pictures_from_other_noise_or_clips_are_not_compared(
    kind: str, other: str, tmp_path: Path
) -> None:
    a, b = (copied(kind, tmp_path / name) for name in "ab")
    for path in b.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["config"][other] = "x"
        path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"can't be compared: .*{other}"):
        compare_runs(a, b)


def test_an_old_search_of_heads_is_read() -> None:
    rows = {(row["round"], row["test"]) for row in head_tests.read(DATA / "heads")}
    assert {test for number, test in rows if number == 1} == {"chosen"}
    assert {test for number, test in rows if number == 0} > {"chosen"}
