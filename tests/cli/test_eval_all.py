"""Several benchmarks and all methods in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call, evaluate, one_line

from regaze.interventions import Intervention, get, names
from regaze.interventions.lvlm.tool import Tool


def test_all_methods_on_two_benchmarks(model: str, tmp_path: Path) -> None:
    arguments = ("--split", "test", "--n-images", "2", "--max-new-tokens", "2", "--with", "all")
    result = call(
        *("eval", "pope", "chair", "--model", model, "--out", str(tmp_path), *arguments),
        *("--with", "vhr", "--json"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [task["title"] for task in found["tasks"]] == [
        "POPE on prior-free scenes",
        "CHAIR on prior-free scenes",
    ]
    for task in found["tasks"]:
        labels = [c["label"] for c in task["conditions"]]
        assert labels[:2] == ["none", "vhr"]
        assert "highlight:spans=[<image>]" in labels
        methods = {n for n in names(Intervention.acts_on) if not issubclass(get(n), Tool)}
        asked = {label.partition(":")[0] for label in labels[1:]}
        # Every method is asked or named with its reason, none silently skipped.
        assert asked | set(found["left_out"]) == methods
        assert not asked & set(found["left_out"])
    assert found["left_out"]["adhh"].startswith("adhh acts on listed heads, and none are given")
    assert "left out: pasta: pasta points at a part of the prompt" in one_line(result)
    assert (tmp_path / "pope" / "run.json").exists()
    assert (tmp_path / "chair" / "run.json").exists()


def test_what_belongs_to_one_benchmark_is_refused_for_two(model: str, tmp_path: Path) -> None:
    for wrong, said in (
        (("pope", "pope"), "pope pope: name each benchmark once"),
        (("pope", "chair", "--data", "x"), "--data belongs to one benchmark: run pope and chair"),
        (("pope", "chair", "--profile", "x"), "--profile belongs to one benchmark"),
    ):
        result = call("eval", *wrong, "--model", model, "--out", str(tmp_path / "run"))
        assert result.exit_code == 2
        assert said in one_line(result)
    assert not (tmp_path / "run").exists()


def test_a_method_that_is_named_must_act_also_beside_all(model: str, tmp_path: Path) -> None:
    both = ("--with", "all", "--with", "vicrop", "--limit", "12")
    result = evaluate(model, tmp_path, *both, images=2)
    assert result.exit_code == 1
    assert "never fired, so not reported: vicrop" in one_line(result)


def test_tune_prints_settings_to_take(model: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    fixed = ("--model", model, "--trials", "2", "--n-images", "2", "--out", str(tmp_path))
    result = call("tune", "pai:gamma=1.2", "--on", "pope", *fixed)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "tuned.json").read_text())
    assert f"--with '{stored['best']['with']}'" in result.stdout
    assert json.dumps(stored["best"]["spec"]) in result.stdout
    assert stored["source"]["split"] == "validation"
    assert all(trial["spec"]["gamma"] == 1.2 for trial in stored["trials"])
    again = call("tune", "pai:gamma=1.2", "--on", "pope", *fixed, "--json")
    assert json.loads(again.stdout) == stored
    result = call("tune", "tidal", *fixed)
    assert result.exit_code == 2
    assert "nothing is known to search in tidal" in one_line(result)
    for method, said in (("highlight", "set spans to"), ("adhh", "set heads to")):
        result = call("tune", method, "--model", "nowhere", "--out", str(tmp_path / "none"))
        assert result.exit_code == 2 and said in one_line(result)
    assert not (tmp_path / "none").exists()
