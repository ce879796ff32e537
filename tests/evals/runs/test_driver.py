"""The protocol of all runs, with a model that is a stub."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ranks import together
from stored import answers_on_disk
from stub_works import StubTask, StubWork, run_stub

from regaze.evals.runs import files, lines, records, sessions, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.distributed import World
from regaze.evals.runs.results import load

LABEL = "vhr:alpha=4"
FOLDER = "vhr_alpha=4"


def manifest(out: Path, folder: str = FOLDER) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / folder / store.MANIFEST).read_text())
    return found


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_every_condition_does_every_batch_with_every_seed_the_unedited_model_first(
    tmp_path: Path,
) -> None:
    work = StubWork()
    result = run_stub(tmp_path, LABEL, work=work)
    pairs = [[f"item {n}", f"item {n + 1}"] for n in (0, 2, 4)]
    each = [(seed, batch, batch) for seed in (0, 1) for batch in pairs]
    assert work.asked == [(label, *one) for label in ("none", LABEL) for one in each]
    assert [answers.label for answers in result.answers] == ["none", LABEL]
    assert [len(answers.by_seed[1]) for answers in result.answers] == [6, 6]
    keys = [(line["id"], line["seed"]) for line in answers_on_disk(tmp_path)[FOLDER]]
    assert keys == [(f"item {n}", seed) for seed in (0, 1) for n in range(6)]


def test_a_manifest_holds_settings_specs_notes_and_what_was_verified(tmp_path: Path) -> None:
    source, proof = {"benchmark": "stub"}, {"passed": True}
    work = StubWork(limit=6)
    run_stub(tmp_path, LABEL, work=work, source=source, certificates={LABEL: proof})
    told = manifest(tmp_path)
    assert told["condition"] == told["noted"] == LABEL
    assert told["model"] == "stub"
    assert told["config"]["setting"] == 0
    assert told["config"]["image"] == "given"
    assert told["config"]["interventions"][0]["alpha"] == 4
    assert told["config_sha256"] == files.digest(told["config"])
    assert told["certificate"] == proof
    assert "certificate" not in manifest(tmp_path, "none")
    assert told["counts"] == {"answered": 12, "errors": 0, "truncated": 0, "blank": 0}
    (session,) = told["sessions"]
    assert session["answered"] == 12
    assert session["firing"] == {"fired": True, "interventions": []}
    run = store.read_run(tmp_path)
    assert run["source"] == source
    assert run["limit"] == 6
    assert [place["folder"] for place in run["conditions"]] == ["none", FOLDER]


def test_an_item_that_failed_is_tried_again_and_each_new_outcome_is_kept(tmp_path: Path) -> None:
    failing = StubWork(failing=("item 2",))
    run_stub(tmp_path, work=failing)
    before = everything(tmp_path)
    again = StubWork(failing=("item 2",))
    run_stub(tmp_path, work=again)
    # The whole batch is asked, so that it is the batch it was; only what is missing is wanted.
    batch = ["item 2", "item 3"]
    assert again.asked == [("none", seed, batch, ["item 2"]) for seed in (0, 1)]
    assert everything(tmp_path) == before
    run_stub(tmp_path, work=StubWork(failing=("item 2",), why="another reason"))
    lines_of = answers_on_disk(tmp_path)["none"]
    tried = [(one["attempt"], one["error"]) for one in lines_of if one["id"] == "item 2"]
    assert tried == [(2, "another reason")] * 2
    run_stub(tmp_path, work=StubWork())
    fixed = [one for one in answers_on_disk(tmp_path)["none"] if one["id"] == "item 2"]
    assert [(one["attempt"], one["error"], one["text"]) for one in fixed] == [
        (3, None, f"none item 2 {seed}") for seed in (0, 1)
    ]
    assert manifest(tmp_path, "none")["counts"]["errors"] == 0


def test_why_items_have_no_answer_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_stub(tmp_path, work=StubWork(failing=("item 2", "item 3"), seeds=(0,)))
    assert caplog.messages == ["no answer to item 2 and 1 more items: no such image"]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"finish": "length"}, "cut at the length limit"), ({"text": " \n"}, "only white space")],
)
def test_many_cut_or_blank_answers_are_remarked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Mapping[str, Any], what: str
) -> None:
    class Changed(StubWork):
        few = False

        def _answer(self, *given: Any) -> records.Record:
            found = super()._answer(*given)
            wanted = not self.few or found.key == ("item 0", 0)
            return replace(found, **change) if wanted else found

    run_stub(tmp_path / "many", work=Changed(seeds=(0,)))
    (said,) = caplog.messages
    assert said.startswith("none: 6 of 6 answers")
    assert what in said
    caplog.clear()
    few = Changed(StubTask(100), seeds=(0,))
    few.few = True
    run_stub(tmp_path / "few", work=few)
    assert caplog.messages == []  # 1 of 100


def test_progress_counts_what_was_done_before(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def stop(label: str, done: int, total: int) -> None:
        told.append((label, done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stub(tmp_path, progress=stop)
    run_stub(tmp_path, progress=lambda *given: told.append(given))
    assert [done for _, done, _ in told] == [0, 2, 4, 4, 6, 8, 10, 12]
    assert {total for *_, total in told} == {12}


def test_nothing_is_entered_where_nothing_is_left(tmp_path: Path) -> None:
    run_stub(tmp_path, LABEL)
    before = everything(tmp_path)

    class Closed(StubWork):
        def doing(self, plan: Any) -> Any:
            raise AssertionError("entered")

    run_stub(tmp_path, LABEL, work=Closed())
    assert everything(tmp_path) == before


def test_what_does_not_fit_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    class Refusing(StubWork):
        def resolve(self, condition: Condition) -> Any:
            if condition.specs:
                raise ValueError("it doesn't fit")
            return ()

    with pytest.raises(ValueError, match="it doesn't fit"):
        run_stub(tmp_path / "run", LABEL, work=Refusing())
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_under_the_lock_and_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stub(tmp_path)
    before = everything(tmp_path)
    checked = []

    def check(folder: Path, config: Mapping[str, Any]) -> None:
        with pytest.raises(BlockingIOError):
            run_elsewhere(tmp_path)
        checked.append(folder)
        original(folder, config)

    original = store.check_config
    monkeypatch.setattr(store, "check_config", check)
    with pytest.raises(store.ConfigMismatchError, match="setting: 0 there, 1 now"):
        run_stub(tmp_path, LABEL, work=StubWork(setting=1))
    assert checked == [tmp_path / "none"]
    assert everything(tmp_path) == before


def run_elsewhere(out: Path) -> None:
    """Take a run's lock as another process would."""
    lock = FileLock(out.resolve() / files.LOCK, blocking=False, is_singleton=False)
    try:
        lock.acquire()
    except TimeoutError:
        raise BlockingIOError from None
    lock.release()


def test_a_run_that_another_process_writes_is_refused_and_left_alone(tmp_path: Path) -> None:
    run_stub(tmp_path)
    before = everything(tmp_path)
    with (
        FileLock(tmp_path.resolve() / files.LOCK, is_singleton=False),
        pytest.raises(OSError, match="another process is writing to"),
    ):
        run_stub(tmp_path, LABEL, work=StubWork(setting=1))
    assert everything(tmp_path) == before
    run_elsewhere(tmp_path)  # and the lock is free after a run


def test_images_that_were_replaced_are_refused_before_an_answer_is_written(
    tmp_path: Path,
) -> None:
    run_stub(tmp_path, work=StubWork(seeds=(0,)))
    other = StubWork(seeds=(0,), inputs={"item 3": "another image"})
    with pytest.raises(ValueError, match="item 3 was shown another image or text under vhr"):
        run_stub(tmp_path, LABEL, work=other)
    assert [one["id"] for one in answers_on_disk(tmp_path)[FOLDER]] == ["item 0", "item 1"]
    # What lies on the disk is compared before the first batch.
    path = tmp_path / FOLDER / records.PREDICTIONS
    path.write_text(path.read_text().replace("given image 0", "another image"))
    work = StubWork(seeds=(0,))
    with pytest.raises(ValueError, match="item 0 was shown another image or text under vhr"):
        run_stub(tmp_path, LABEL, work=work)
    assert work.asked == []


def test_no_answer_is_on_the_disk_before_manifest_and_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, seen = lines.append, []

    def watched(path: Path, rows: Any) -> None:
        rows = list(rows)
        seen.append(len(rows))
        assert (path.parent / store.MANIFEST).exists()
        assert (tmp_path / store.RUN).exists()
        (session,) = path.parent.glob("session.rank*.json")
        firing = json.loads(session.read_text())["firing"]
        assert (firing is not None) == (path.parent.name != "none")
        append(path, rows)

    monkeypatch.setattr(lines, "append", watched)
    run_stub(tmp_path, LABEL)
    assert seen == [2] * 12


def test_a_session_says_at_once_when_an_intervention_began_to_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    session = sessions.Session(tmp_path, World(), "cpu")
    path = tmp_path / "session.rank0.json"
    session.save()
    assert not path.exists()
    cost = Cost(items=2, seconds=1.0)

    def noted(fired: bool) -> tuple[bool, int]:
        session.note(2, cost, 2, {"fired": fired})
        found = json.loads(path.read_text())
        return found["firing"]["fired"], found["answered"]

    assert noted(False) == (False, 2)
    assert noted(False) == (False, 2)  # not every batch writes a file
    assert noted(True) == (True, 6)
    assert noted(True) == (True, 6)
    clock[0] = 31.0
    assert noted(True) == (True, 10)
    assert noted(True) == (True, 10)
    # The first batch, in which kernels are chosen, is no part of the cost.
    assert json.loads(path.read_text())["cost"]["items"] == 8


def test_two_processes_share_out_what_one_does(tmp_path: Path) -> None:
    run_stub(tmp_path / "one", LABEL)
    works = [StubWork(), StubWork()]
    results = together(
        lambda world, work: run_stub(tmp_path / "two", LABEL, work=work, world=world), works
    )
    assert [len(answers.records) for result in results for answers in result.answers] == [6] * 4
    parts = [{(label, seed, ids[0]) for label, seed, ids, _ in work.asked} for work in works]
    assert [len(part) for part in parts] == [6, 6]
    assert not parts[0] & parts[1]
    assert answers_on_disk(tmp_path / "two") == answers_on_disk(tmp_path / "one")
    assert {path.name for path in (tmp_path / "two" / FOLDER).iterdir()} == {
        store.MANIFEST,
        records.PREDICTIONS,
    }
    told = manifest(tmp_path / "two")["sessions"]
    assert [(one["rank"], one["answered"]) for one in told] == [(0, 6), (1, 6)]


def test_what_killed_processes_left_is_put_together_before_the_work(tmp_path: Path) -> None:
    run_stub(tmp_path, LABEL)
    whole = answers_on_disk(tmp_path)
    folder = tmp_path / FOLDER
    path = folder / records.PREDICTIONS
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rest[:4]) + rest[4][:20])
    records.predictions(folder, 1).write_bytes(first + rest[5])
    told = manifest(tmp_path)
    (session,) = told["sessions"]
    files.write_json(folder / store.MANIFEST, {**told, "sessions": []})
    files.write_json(folder / "session.rank1.json", session)
    (folder / ".0123456789ab.part").touch()
    work = StubWork()

    def stop(label: str, done: int, total: int) -> None:
        if label == LABEL:
            assert sorted(p.name for p in folder.iterdir()) == [
                store.MANIFEST,
                records.PREDICTIONS,
            ]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stub(tmp_path, LABEL, work=StubWork(), progress=stop)
    assert len(answers_on_disk(tmp_path)[FOLDER]) == 6
    run_stub(tmp_path, LABEL, work=work)
    assert answers_on_disk(tmp_path) == whole
    assert sum(one["answered"] for one in manifest(tmp_path)["sessions"]) == 12 + 6
    assert len(work.asked) == 4  # two batches of the first seed are whole, and none of the other's


@pytest.mark.parametrize("left", ["half a line", "a file of a process", "a session"])
def test_each_thing_that_a_killed_process_leaves_is_tidied_up(tmp_path: Path, left: str) -> None:
    run_stub(tmp_path, LABEL)
    whole = answers_on_disk(tmp_path)
    folder = tmp_path / FOLDER
    path = folder / records.PREDICTIONS
    *rest, last = path.read_bytes().splitlines(keepends=True)
    told = manifest(tmp_path)
    if left == "half a line":
        path.write_bytes(b"".join(rest) + last[:20])
    elif left == "a file of a process":
        path.write_bytes(b"".join(rest))
        records.predictions(folder, 1).write_bytes(last)
    else:
        path.write_bytes(b"".join(rest))
        files.write_json(folder / store.MANIFEST, {**told, "sessions": []})
        files.write_json(folder / "session.rank0.json", told["sessions"][0])
    work = StubWork()
    run_stub(tmp_path, LABEL, work=work)
    assert answers_on_disk(tmp_path) == whole
    assert sorted(p.name for p in folder.iterdir()) == [store.MANIFEST, records.PREDICTIONS]
    sessions = manifest(tmp_path)["sessions"]
    assert [one["answered"] for one in sessions] == ([12, 1] if work.asked else [12])
    assert [ids for *_, ids in work.asked] == ([] if left.startswith("a file") else [["item 5"]])


def test_a_session_that_is_in_the_manifest_already_is_not_counted_twice(tmp_path: Path) -> None:
    run_stub(tmp_path, LABEL)
    (session,) = manifest(tmp_path)["sessions"]
    files.write_json(tmp_path / FOLDER / "session.rank0.json", session)  # killed before it went
    assert load(StubTask(), tmp_path).answers[1].manifest["sessions"] == [session]
    run_stub(tmp_path, LABEL)
    assert manifest(tmp_path)["sessions"] == [session]


def test_a_condition_whose_manifest_is_lost_is_told_in_a_line(tmp_path: Path) -> None:
    run_stub(tmp_path, LABEL)
    (tmp_path / FOLDER / store.MANIFEST).unlink()
    with pytest.raises(ValueError, match=rf"{FOLDER}/manifest\.json is lost, so nothing says how"):
        load(StubTask(), tmp_path)
    with pytest.raises(store.ConfigMismatchError, match=r"holds answers but no manifest\.json"):
        run_stub(tmp_path, LABEL)


def test_other_items_than_a_run_was_of_are_not_scored(tmp_path: Path) -> None:
    run_stub(tmp_path)
    with pytest.raises(ValueError, match="answers other questions than the stub given"):
        load(StubTask(5), tmp_path)


def test_files_are_on_the_disk_before_they_are_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, move, remove = os.fsync, Path.replace, Path.unlink

    def fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        steps.append(f"sync {'part' if name.endswith('.part') else name}")
        sync(handle)

    def moved(path: Path, target: Path) -> Path:
        steps.append(f"move {target.name}")
        return move(path, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            steps.append(f"remove {path.name}")
        remove(path, missing_ok)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", moved)
    monkeypatch.setattr(Path, "unlink", unlink)
    folder = tmp_path / "folder"
    path = folder / "a.jsonl"
    written = ["sync part", "move a.jsonl", "sync folder"]
    files.write_text(path, "old\n")
    assert steps == written
    steps.clear()
    lines.append(path.with_name("a.rank1.jsonl"), [])
    assert not path.with_name("a.rank1.jsonl").exists()
    lines.append(path.with_name("a.rank1.jsonl"), [{"a": 1}])
    lines.append(path.with_name("a.rank1.jsonl"), [{"a": 2}])
    assert steps == ["sync a.rank1.jsonl", "sync folder", "sync a.rank1.jsonl"]
    steps.clear()
    lines.settle(path, [{"a": 1}, {"a": 2}])
    assert steps == [*written, "remove a.rank1.jsonl"]
    steps.clear()
    lines.settle(path, [{"a": 1}, {"a": 2}])
    lines.settle(folder / "b.jsonl", [])
    assert steps == []
