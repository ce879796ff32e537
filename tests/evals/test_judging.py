"""From a run's answers to the judge's files and back, without a judge and without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmhals import release, reply
from typer.testing import CliRunner

from regaze.cli.commands import judge as app
from regaze.evals.benchmarks.source import Source
from regaze.evals.judging import export_answers, score_verdicts
from regaze.evals.runs import files, records, store
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import items_digest
from regaze.evals.task import POOLED

LABELS = ("none", "var")


def made(folder: Path, seeds: tuple[int, ...] = (0,)) -> Path:
    """A run of four questions under two conditions."""
    task = release(folder)
    out = folder / "run"
    source = Source("mmhal", (str(folder / "response_template.json"),), str(folder))
    order = [{"label": label, "folder": label} for label in LABELS]
    plan = {"source": source.noted(), "limit": None, "conditions": order}
    files.write_json(out / "run.json", plan)
    for label in LABELS:
        config = {"items_sha256": items_digest(task.items), "seeds": list(seeds)}
        firing = None if label == "none" else {"fired": True, "interventions": []}
        session = {"firing": firing, "cost": None}
        manifest = {"config": config, "config_sha256": "x", "sessions": [session]}
        files.write_json(out / label / store.MANIFEST, manifest)
        answers = [
            Record(item.id, item.cluster, seed=seed, text=f"{label} {item.id} {seed}")
            for item in task.items
            for seed in seeds
        ]
        records.append(out / label / records.PREDICTIONS, answers)
    return out


def judge(path: Path, *ratings: int, model: str = "gpt-4-0314") -> None:
    said = [reply(f"Rating: {rating}", model) for rating in ratings]
    path.with_name(f"{path.stem}.verdicts.json").write_text(json.dumps(said))


def test_answers_go_out_and_verdicts_come_back(tmp_path: Path) -> None:
    run = made(tmp_path)
    none, var = export_answers(run, tmp_path / "judge")
    assert [path.name for path in (none, var)] == ["none.json", "var.json"]
    rows = json.loads(var.read_text())
    assert [row["model_answer"] for row in rows] == [f"var {n} 0" for n in range(1, 5)]
    judge(none, 6, 0, 4, 2)
    judge(var, 6, 6, 4, 3)
    (scores,) = score_verdicts(run, tmp_path / "judge").scores
    rates = [one.score and one.score.sections[POOLED] for one in scores.conditions]
    assert [rate and rate["rating"].value for rate in rates] == [3, 4.75]
    assert [rate and rate["hallucination_rate"].value for rate in rates] == [0.5, 0]
    assert scores.profile == "official, judged by gpt-4-0314"


def test_each_seed_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = export_answers(made(tmp_path, seeds=(0, 1)), tmp_path / "judge")
    assert [path.name for path in paths] == [
        *("none.seed0.json", "none.seed1.json", "var.seed0.json", "var.seed1.json")
    ]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path)
    none, var = export_answers(run, tmp_path / "judge")
    with pytest.raises(ValueError, match=r"holds no verdicts: no file \*\.verdicts\.json"):
        score_verdicts(run, tmp_path / "judge")
    judge(none, 6, 6, 6, 6)
    judge(var, 6, 6, 6, 6, model="gpt-4o")
    with pytest.raises(ValueError, match=r"verdicts of gpt-4-0314 and gpt-4o, which can't be"):
        score_verdicts(run, tmp_path / "judge")


def test_runs_of_other_benchmarks_need_no_judge(tmp_path: Path) -> None:
    source = Source("pope", n_images=2)
    plan: dict[str, Any] = {"source": source.noted(), "limit": None, "conditions": []}
    files.write_json(tmp_path / "run" / "run.json", plan)
    with pytest.raises(ValueError, match="isn't one run of MMHal-Bench"):
        export_answers(tmp_path / "run", tmp_path / "judge")


def test_the_commands_do_the_same(tmp_path: Path) -> None:
    run = made(tmp_path)
    given = [str(run), str(tmp_path / "judge")]
    said = CliRunner().invoke(app, ["export", *given])
    assert said.exit_code == 0, said.output
    assert "none.verdicts.json" in said.output
    for name in LABELS:
        judge(tmp_path / "judge" / f"{name}.json", 6, 0, 4, 2)
    said = CliRunner().invoke(app, ["score", *given, "--json"])
    assert json.loads(said.stdout)["tasks"][0]["profile"] == "official, judged by gpt-4-0314"
