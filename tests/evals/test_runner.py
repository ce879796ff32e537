from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from toy import ToyTask, toy_model

from regaze.evals import records, results, runner
from regaze.evals.conditions import Condition, baseline_first
from regaze.evals.generation import Answerer
from regaze.evals.models import identify, processor_settings
from regaze.evals.records import ConfigMismatchError
from regaze.evals.results import RunResult, take
from regaze.evals.task import Item
from regaze.interventions import PAI, VHR

MODEL, PROCESSOR = toy_model()
IDENTITY = {"name": "toy", "weights_sha256": "toy"}


def run(out: Path, *conditions: str, task: ToyTask | None = None, **options: Any) -> RunResult:
    settings = {"batch_size": 4, "identity": IDENTITY, **options}
    parsed = [Condition.parse(text) for text in conditions]
    return runner.run(task or ToyTask(), MODEL, PROCESSOR, parsed, out=out, **settings)


def answers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All lines of a run as they are on the disk, without the times."""
    return {
        path.parent.name: [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted(out.glob(f"*/{records.PREDICTIONS}"))
    }


# Conditions


def test_conditions_are_read_with_their_settings_and_compose_with_plus() -> None:
    assert Condition.parse("none") == Condition()
    assert Condition.parse("vhr:alpha=3") == Condition((VHR(alpha=3),))
    assert Condition.parse("vhr:alpha=3+pai:alpha=1e+0").specs == (VHR(alpha=3), PAI(alpha=1.0))
    assert Condition.parse("vhr:alpha=3+pai").label == "vhr:alpha=3+pai"
    assert Condition().label == "none"


def test_the_baseline_comes_first_and_only_once() -> None:
    vhr = Condition((VHR(),))
    assert baseline_first([vhr]) == [Condition(), vhr]
    assert baseline_first([vhr, Condition()]) == [Condition(), vhr]
    with pytest.raises(ValueError, match="given twice: vhr"):
        baseline_first([vhr, Condition.parse("vhr")])


# Which items


def items(**groups: int) -> list[Item]:
    return [Item(f"{g}/{i}", f"image {i}", "?", g) for g, n in groups.items() for i in range(n)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, ["a/0"]),
        (3, ["a/0", "a/1", "b/0"]),
        (6, ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1"]),
        (99, ["a/0", "a/1", "a/2", "a/3", "a/4", "b/0", "b/1"]),
    ],
)
def test_a_limit_takes_the_first_items_of_each_group_in_order(
    limit: int, expected: list[str]
) -> None:
    assert [item.id for item in take(items(a=5, b=2), limit)] == expected


def test_no_items_and_a_limit_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to ask"):
        take([], None)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        take(items(a=1), 0)


# Answers


def test_every_condition_answers_every_item_once_in_order(tmp_path: Path) -> None:
    task = ToyTask()
    result = run(tmp_path, "vhr:alpha=4", task=task)
    assert [a.label for a in result.answers] == ["none", "vhr:alpha=4"]
    for condition in answers(tmp_path).values():
        assert [line["id"] for line in condition] == [item.id for item in task.items]
        assert [line["cluster"] for line in condition] == [item.cluster for item in task.items]
    texts = [[record.text for record in a.records.values()] for a in result.answers]
    assert texts[0] != texts[1]


def test_answers_are_what_the_model_says_to_the_same_batch(tmp_path: Path) -> None:
    task = ToyTask()
    result = run(tmp_path)
    batch = task.items[4:8]
    answerer = Answerer(MODEL, PROCESSOR, task.max_new_tokens)
    alone = answerer([i.prompt for i in batch], [task.load_image(i) for i in batch])
    stored = [asdict(result.answers[0].records[item.id]) for item in batch]
    for answer, record in zip(alone, stored, strict=True):
        assert asdict(answer).items() <= record.items()


def test_a_batch_reads_each_of_its_images_once(tmp_path: Path) -> None:
    task = ToyTask(images=2)
    run(tmp_path, task=task, batch_size=6)
    assert task.loads == ["image 0", "image 1"] * 2


def test_the_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    before = identify(MODEL), MODEL.config._attn_implementation
    run(tmp_path, "vhr:alpha=4", limit=4)
    assert (identify(MODEL), MODEL.config._attn_implementation) == before


def test_identities_tell_models_apart() -> None:
    other, _ = toy_model()
    assert identify(other) == identify(MODEL)
    next(other.parameters()).data.view(-1)[0] += 1
    assert identify(other) != identify(MODEL)


def test_using_a_processor_does_not_change_what_is_recorded_of_it() -> None:
    _, processor = toy_model()
    before = processor_settings(processor)
    processor.tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=2)
    assert processor_settings(processor) == before


# Missing images


def test_a_missing_image_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    result = run(tmp_path, task=ToyTask(missing=["image 1"]))
    failed = {key: r.error for key, r in result.answers[0].records.items() if not r.ok}
    assert list(failed) == [f"{g}/1-{n}" for g in ("easy", "hard") for n in range(3)]
    assert set(failed.values()) == {"no image file image 1.png"}
    assert len(result.answers[0].records) == 30
    manifest = result.answers[0].manifest
    assert manifest["counts"] == {"answered": 24, "errors": 6, "truncated": 24}


def test_missing_images_do_not_pile_up_and_are_answered_once_they_are_there(
    tmp_path: Path,
) -> None:
    missing = ToyTask(missing=["image 1"])
    run(tmp_path, task=missing)
    lines = answers(tmp_path)
    run(tmp_path, task=missing)
    assert answers(tmp_path) == lines
    result = run(tmp_path, task=ToyTask())
    assert all(record.ok for record in result.answers[0].records.values())
    assert {r.attempt for r in result.answers[0].records.values() if r.cluster == "image 1"} == {2}
    assert len(answers(tmp_path)["none"]) == 36


def test_a_run_without_any_readable_image_ends_with_errors_only(tmp_path: Path) -> None:
    result = run(tmp_path, task=ToyTask(images=1, missing=["image 0"]))
    assert [record.finish for record in result.answers[0].records.values()] == ["error"] * 6


# What is on the disk


def test_the_manifest_says_how_the_answers_were_made(tmp_path: Path) -> None:
    result = run(tmp_path, "vhr:alpha=4", limit=8)
    manifest = result.answers[1].manifest
    assert manifest["model"] == "toy"
    assert manifest["profile"] == "toy/plain"
    config = manifest["config"]
    assert config["interventions"][0]["alpha"] == 4
    assert config["interventions"][0]["layers"], "the fields the model decides are filled in"
    assert config["decoding"]["do_sample"] is False
    assert config["decoding"]["max_new_tokens"] == 5
    assert config["processor"]["chat_template"] == PROCESSOR.chat_template
    assert manifest["config_sha256"] == records.digest(config)
    assert manifest["counts"]["answered"] == 8
    (session,) = manifest["sessions"]
    assert session["firing"]["fired"] is True
    assert session["packages"]["transformers"]


def test_a_finished_run_is_not_asked_again(tmp_path: Path) -> None:
    run(tmp_path, "vhr:alpha=4")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    task = ToyTask()
    result = run(tmp_path, "vhr:alpha=4", task=task)
    assert task.loads == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert len(result.answers[1].records) == 30


def test_another_condition_joins_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path, "vhr:alpha=4")
    before = answers(tmp_path)
    result = run(tmp_path, "vhr:alpha=4", "pai:alpha=2")
    assert [a.label for a in result.answers] == ["none", "vhr:alpha=4", "pai:alpha=2"]
    assert {name: answers(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 5}, "batch_size: 4 there, 5 now"),
        ({"max_new_tokens": 6}, "decoding.max_new_tokens: 5 there, 6 now"),
        ({"limit": 20}, "items: 8 there, 20 now"),
        ({"identity": {"name": "toy", "weights_sha256": "x"}}, 'model.weights_sha256: "toy" there'),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run(tmp_path, limit=8)
    before = answers(tmp_path)
    with pytest.raises(ConfigMismatchError, match=named):
        run(tmp_path, **{"limit": 8, **change})
    assert answers(tmp_path) == before


def test_a_condition_that_does_not_fit_the_model_stops_before_the_first_answer(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="layers"):
        run(tmp_path, "vhr:layers=[77]")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a run directory: it has no run\.json"):
        results.load(ToyTask(), tmp_path)


# Interventions that never act

SILENT = "var:sink_dims=[0],tau=1"


def test_an_intervention_that_never_acts_is_called_silent(tmp_path: Path) -> None:
    result = run(tmp_path, SILENT, "vhr:alpha=4", limit=8)
    assert [a.silent for a in result.answers] == [False, True, False]


def test_it_stays_silent_when_there_is_nothing_left_to_ask(tmp_path: Path) -> None:
    run(tmp_path, SILENT, limit=8)
    assert run(tmp_path, SILENT, limit=8).answers[1].silent


# Killed runs

KILLED = """
import os, random, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy import ToyTask, toy_model
from regaze.evals import records, runner
from regaze.evals.conditions import Condition

model, processor = toy_model()
append = records.append
rng = random.Random(0)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def go(fatal):
    writes = 0
    def fragile(path, fresh):
        nonlocal writes
        writes += 1
        if writes < fatal:
            return append(path, fresh)
        size = path.stat().st_size if path.exists() else 0
        append(path, fresh)
        written = path.stat().st_size - size
        os.truncate(path, size + rng.choice([0, 1, written // 2, written - 1, written]))
        die()
    records.append = fragile
    runner.run(ToyTask(3), model, processor, [Condition.parse("vhr:alpha=4")], out=Path({out!r}),
               batch_size=4, identity={identity!r})

kills = 0
while True:
    child = os.fork()
    if child == 0:
        rng.seed(kills)
        go(1 + kills % 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
        continue
    print(kills, status)
    break
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork and SIGKILL")
def test_runs_killed_while_writing_end_like_one_that_was_not(tmp_path: Path, root: Path) -> None:
    run(tmp_path / "whole", "vhr:alpha=4", task=ToyTask(3))
    script = KILLED.format(
        tests=str(root / "tests"), out=str(tmp_path / "killed"), identity=IDENTITY
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    kills, status = map(int, done.stdout.split()[-2:])
    assert status == 0
    assert kills >= 8
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")
    manifests = [
        json.loads((tmp_path / name / "vhr_alpha=4" / records.MANIFEST).read_text())
        for name in ("whole", "killed")
    ]
    assert manifests[0]["config"] == manifests[1]["config"]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert not results.load(ToyTask(3), tmp_path / "killed").answers[1].silent


def test_an_interrupt_leaves_a_directory_that_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "whole")

    def interrupt(label: str, done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=interrupt)
    assert len(answers(tmp_path / "cut")["none"]) == 8
    run(tmp_path / "cut")
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")


def test_progress_is_told_for_every_batch(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run(tmp_path, limit=6, progress=lambda *step: told.append(step))
    assert told == [("none", 0, 6), ("none", 4, 6), ("none", 6, 6)]
