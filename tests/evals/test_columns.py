"""The page about every method in three worlds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
from toy import TOY_IDENTITY, toy_model

from regaze.evals import columns, columns_why, results
from regaze.evals.asking.every import Every
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.source import Source
from regaze.evals.reports.columns_page import page
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import quiet
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.sandbox.smol.scenes import NAMES, PARTNER
from regaze.evals.sandbox.smol.tasks import find_scene
from regaze.evals.sandbox.smol.words import question
from regaze.evals.study import prepare, study
from regaze.evals.task import Item
from regaze.interventions import parse

End = Literal["eos", "length"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("drawn")
    conditions = [Condition.parse(text) for text in ("pai", "vhr")]
    jobs = [prepare(Source(name, n_images=2), out / name) for name in ("pope", "chair")]
    model = Loaded(*toy_model(), TOY_IDENTITY)
    runs = study(jobs, model, conditions, progress=lambda _: quiet)
    tables = [results.table_of(scores) for run in runs for scores in run.scores]
    tuned = {"pai": {"with": "vhr"}}
    return {"usual": {"pai": "pai", "vhr": "vhr"}, "tuned": tuned, "tables": tables}


def test_every_method_is_asked_in_the_worlds_of_pictures_and_stands_beside_the_drawn(
    drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(*toy_model(), TOY_IDENTITY)
    some = Every([parse("pai"), parse("m3id")], {"paint": "no vision tower"})
    asked: list[str] = []

    def load(name: str) -> Loaded:
        asked.append(name)
        return loaded

    monkeypatch.setattr(columns, "load", load)
    monkeypatch.setattr(columns, "every_method", lambda loaded: some)
    files.write_json(tmp_path / "results.json", drawn)
    given = ["--out", str(tmp_path / "runs"), "--docs", str(tmp_path), "--scenes", "2"]
    given += ["--validation", "2", "--trials", "1", "--twin", "2", "--captions", "2"]
    columns.main(given)
    assert asked == ["smol", "smol-twin"]
    stored = files.read_json(tmp_path / "results-smol.json")
    tables = stored["tables"]
    assert list(tables) == ["smol", "twin", "captions"]
    assert [(t["items"], t["scenes"]) for t in tables.values()] == [(12, 2), (12, 2), (2, 2)]
    assert {"none", "pai", "m3id"} <= {*tables["smol"]["rows"], *tables["smol"]["silent"]}
    assert not {*tables["twin"]["rows"], *tables["twin"]["silent"]} & {"m3id"}
    assert list(stored["tuned"]) == ["pai"]
    assert "| `pai` |" in (tmp_path / "results-smol.md").read_text("utf-8").split("## Tuned")[1]
    text = (tmp_path / "results-smol.md").read_text("utf-8")
    assert text == page(stored, drawn)
    accuracy = text.split("## Accuracy")[1].split("##")[0]
    lines = {line.split(" | ")[0]: line.split(" | ")[1:] for line in accuracy.splitlines()}
    shown = [drawn["tables"][0], tables["smol"], tables["twin"]]
    both = [100 * t["rows"]["none"]["metrics"]["accuracy"] for t in shown]
    assert [cell.rstrip(" |") for cell in lines["| none"]] == [f"{value:.1f}" for value in both]
    assert "can't act" in lines["| `vhr`"][1]
    assert lines["| `m3id`"][0] == "can't act" and "not asked" in lines["| `m3id`"][2]
    assert "- `paint`: no vision tower" in text
    assert "Written about a run of other sizes" in text
    assert "Described: 2 (drawn scenes, `sandbox`) and 2 (scenes, `smol`)." in text
    become = text.split("## Captions: what becomes of them")[1].split("##")[0]
    assert "Of the 2 captions" in become and "| none | 100 % |" in become
    old = copy.deepcopy(drawn)  # as stored before precision was kept
    for row in old["tables"][1]["rows"].values():
        del row["metrics"]["precision"]
    for known, kept in ((drawn, True), (old, False)):
        exact = page(stored, known).split("## Captions: precision")[1].split("##")[0]
        assert "| scenes, `smol` |" in exact
        assert ("drawn scenes" in exact) == kept
    assert {*stored["why"]["captions"]} >= {"none", "pai", "m3id"}
    columns.main([*given, "--page"])
    assert (tmp_path / "results-smol.md").read_text("utf-8") == text


def test_a_table_is_asked_again_with_the_stored_settings_and_the_others_stay(
    drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(*toy_model(), TOY_IDENTITY)
    monkeypatch.setattr(columns, "load", lambda name: loaded)
    monkeypatch.setattr(columns, "every_method", lambda loaded: Every([parse("pai")], {}))
    files.write_json(tmp_path / "results.json", drawn)
    docs = ["--docs", str(tmp_path)]
    first = ["--scenes", "2", "--validation", "0", "--twin", "0", "--captions", "0"]
    columns.main([*docs, "--out", str(tmp_path / "first"), *first])
    before = files.read_json(tmp_path / "results-smol.json")
    assert "## Captions" not in (tmp_path / "results-smol.md").read_text("utf-8")
    # What is stored decides, not what could act by now.
    stored = {**before, "usual": {"pai": "pai:alpha=0.5"}, "left_out": {"vhr": "known"}}
    files.write_json(tmp_path / "results-smol.json", stored)
    again = ["--out", str(tmp_path / "again"), "--only", "captions", "--captions", "3"]
    columns.main([*docs, *again, "--scenes", "40"])
    after = files.read_json(tmp_path / "results-smol.json")
    assert after["sizes"] == {**before["sizes"], "captions": 3}
    assert after["tables"]["smol"] == before["tables"]["smol"]
    assert after["why"]["smol"] == before["why"]["smol"]
    assert after["visual_mass"] == before["visual_mass"]
    assert (after["usual"], after["left_out"]) == (stored["usual"], stored["left_out"])
    captions = after["tables"]["captions"]
    assert captions["scenes"] == 3
    assert {*captions["rows"], *captions["silent"]} == {"none", "pai:alpha=0.5"}
    assert not (tmp_path / "again" / "smol").exists()
    files.write_json(tmp_path / "results-smol.json", {**stored, "model": "other"})
    with pytest.raises(ValueError, match="the stored results are of other, not of"):
        columns.main([*docs, *again])


def test_what_becomes_of_captions() -> None:
    task = Source("chair", split="smol-test", n_images=2).tasks()[0]

    def answers(label: str, said: list[tuple[str, int, End]]) -> Answers:
        records = {
            item.id: Record(item.id, "i", text, n_new_tokens=count, finish=finish)
            for item, (text, count, finish) in zip(task.items, said, strict=True)
        }
        return Answers(label, records, {"sessions": []})

    plain = answers("none", [("a cat and a dog", 2, "eos"), ("a dog", 2, "eos")])
    edited = answers("vaf", [("a cat and a dog", 2, "eos"), ("a dog, a dog", 5, "length")])
    found = columns_why.told(RunResult(task, task.items, [plain, edited], Path()))
    assert found["none"] == {"same": 1, "tokens": 2, "cut": 0, "twice": 0}
    assert found["vaf"] == {"same": 0.5, "tokens": 3.5, "cut": 0.5, "twice": 0.5}


def test_what_a_question_asks_about() -> None:
    for item in Source("pope", split="smol-test", n_images=40).tasks()[0].items:
        shown, group = find_scene(str(item.image)), columns_why.asked_about(item)
        kind = next(name for name in NAMES if item.prompt == question(name))
        assert (group in ("seen", "unseen")) == (item.target == "yes")
        assert (group == "unseen") == (kind in shown.unseen)
        assert (group == "partner") == (item.target == "no" and PARTNER.get(kind) in shown.kinds)


def test_moves_are_medians_of_margins_and_shares_of_answers() -> None:
    ids = ["a", "b", "c"]
    items = [Item(key, "i", "q", target="yes") for key in ids]

    def answers(
        label: str, said: dict[str, tuple[str, float, Literal["eos", "length"]]], layers: Any
    ) -> Answers:
        report = {"fired": True, "interventions": [{"layers": layers}]}
        records = {
            key: Record(key, "i", text, finish=finish, margin=margin)
            for key, (text, margin, finish) in said.items()
        }
        return Answers(label, records, {"sessions": [{"firing": layers and report}]})

    plain = answers("none", {key: ("Yes", 1.0, "eos") for key in ids}, None)
    layers = [
        {"layer": -1, "effect": 9.0},
        {"layer": 3, "effect": 0.25},
        {"layer": 4, "effect": 0.5},
        {"layer": 5, "effect": 0.0},
    ]
    edited = answers(
        "vaf",
        {"a": ("Yes, there", 3.0, "length"), "b": ("No.", -1.0, "eos"), "c": ("A", 1.5, "eos")},
        layers,
    )
    group = {"a": "seen", "b": "seen", "c": "other"}
    run = RunResult(
        Source("pope", split="smol-test", n_images=2).tasks()[0], items, [plain, edited], Path()
    )
    found = columns_why.moves(run, lambda item: group[item.id])
    assert found["none"]["acted"] is None
    assert found["vaf"] == {
        "questions": {"seen": 2, "other": 1},
        "yes": {"seen": 0.5, "other": 0.0},
        "shift": {"seen": 0.0, "other": 0.5},
        "neither": 0.3333,
        "cut": 0.3333,
        "acted": {"layers": 2, "layer": 4, "effect": 0.5},
    }
