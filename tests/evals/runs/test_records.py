from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from regaze.evals.runs import files, lines, records, store
from regaze.evals.runs.records import Record
from regaze.evals.runs.store import ConfigMismatchError


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    first = Record("a/1", "image", "a “red” star\nand \u2028 more", 78, 64, 5, "length", 0.25)
    second = Record("a/2", "image", finish="error", error="no image file x.png")
    records.append(path, [first])
    records.append(path, [second])
    assert records.read(path) == {("a/1", 0): first, ("a/2", 0): second}
    assert len(path.read_text(encoding="utf-8").split("\n")) == 3


def test_a_cut_off_last_line_is_dropped_and_the_next_one_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    records.append(path, [Record("a", "image", "yes"), Record("b", "image", "no")])
    path.write_bytes(path.read_bytes()[:-7])
    assert list(records.read(path)) == [("a", 0)]
    lines.repair(path)
    records.append(path, [Record("b", "image", "no")])
    assert list(records.read(path)) == [("a", 0), ("b", 0)]


def test_a_file_of_one_cut_off_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "clu')
    assert records.read(path) == {}
    lines.repair(path)
    assert path.read_bytes() == b""


def test_an_answer_outweighs_an_error_and_the_last_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    error = Record("a", "image", finish="error", error="gone")
    records.append(path, [error, Record("a", "image", "yes"), error, Record("a", "image", "no")])
    records.append(path, [error])
    assert records.read(path)["a", 0].text == "no"


def test_the_same_item_with_another_seed_is_another_answer(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    records.append(path, [Record("a", "image", "yes", seed=seed) for seed in (0, 1)])
    assert list(records.read(path)) == [("a", 0), ("a", 1)]


def test_lines_of_older_runs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "cluster": "i", "text": "yes", "seconds": 0.5, "attempt": 1}\n')
    record = records.read(path)["a", 0]
    assert (record.text, record.margin, record.losses, record.peak_bytes) == (
        "yes",
        None,
        None,
        None,
    )


def test_margins_and_losses_come_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    record = Record("a", "i", "yes", margin=-1.25, losses=(0.5, 1.0), peak_bytes=7, seed=3)
    records.append(path, [record])
    assert records.read(path) == {("a", 3): record}


def rows(*ids: str) -> list[Record]:
    return [Record(id, "image", f"answer to {id}") for id in ids]


def test_answers_of_several_processes_become_one_file_in_order(tmp_path: Path) -> None:
    records.append(records.predictions(tmp_path), rows("c", "a"))
    records.append(records.predictions(tmp_path, 1), rows("b"))
    records.append(records.predictions(tmp_path, 12), rows("d"))
    order = [(id, 0) for id in "abcd"]
    assert list(records.settle(tmp_path, order)) == order
    assert [path.name for path in tmp_path.iterdir()] == [records.PREDICTIONS]
    assert list(records.read(tmp_path / records.PREDICTIONS)) == order
    before = (tmp_path / records.PREDICTIONS).stat().st_mtime_ns
    records.settle(tmp_path, order)
    assert (tmp_path / records.PREDICTIONS).stat().st_mtime_ns == before


def test_gathering_that_was_cut_short_loses_and_doubles_nothing(tmp_path: Path) -> None:
    records.append(records.predictions(tmp_path), rows("a", "b"))
    records.append(records.predictions(tmp_path, 1), rows("b"))  # gathered, but not removed yet
    assert list(records.settle(tmp_path, [("a", 0), ("b", 0)])) == [("a", 0), ("b", 0)]


def test_only_one_process_at_a_time_writes_to_a_run(tmp_path: Path) -> None:
    def another() -> None:
        with files.locked(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with files.locked(tmp_path):
            with files.locked(tmp_path):  # whoever holds it may take it again
                pass
            with pytest.raises(OSError, match="another process is writing to"):
                pool.submit(another).result()
        pool.submit(another).result()


def test_a_run_that_is_refused_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"

    def refused(*made: str) -> None:
        with pytest.raises(ValueError, match="no such layer"), files.locked(out):
            with files.locked(out):  # whoever holds it may take it again
                pass
            for name in made:
                (out / name).touch()
            raise ValueError("no such layer")

    refused()
    assert list(tmp_path.iterdir()) == []
    out.parent.mkdir()
    refused()
    assert list(tmp_path.iterdir()) == [out.parent] and list(out.parent.iterdir()) == []
    refused("answers")
    assert {path.name for path in out.iterdir()} == {"answers", files.LOCK}
    (out / "answers").unlink()
    refused()  # The folder was there before.
    assert out.is_dir()


def test_a_lock_whose_file_was_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FileLock.acquire

    def removed(lock: FileLock) -> None:
        acquire(lock)
        Path(lock.lock_file).unlink()

    monkeypatch.setattr(FileLock, "acquire", removed)
    with pytest.raises(OSError, match="another process is writing to"), files.locked(tmp_path):
        raise AssertionError
    monkeypatch.undo()
    with files.locked(tmp_path):
        assert (tmp_path / files.LOCK).exists()


@pytest.mark.parametrize("line", ["not json", '{"id": "b"}', '["a"]', '{"id": "b", "colour": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "predictions.jsonl"
    records.append(path, [Record("a", "image", "yes")])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2 is not an answer"):
        records.read(path)


def test_json_is_replaced_as_a_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_clear_line() -> None:
    with pytest.raises(OSError, match=r"^cannot write /dev/full: No space left on device\. .*$"):
        records.append(Path("/dev/full"), [Record("a", "image")])


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"^cannot write .*: Not a directory\. .*$"):
        files.write_json(tmp_path / "file" / "x" / "run.json", {})


def test_the_same_settings_pass_and_others_are_named(tmp_path: Path) -> None:
    config = {"dtype": "float32", "model": {"weights_sha256": "ab"}, "interventions": []}
    store.check_config(tmp_path, config)
    files.write_json(tmp_path / store.MANIFEST, {"config": config})
    store.check_config(tmp_path, config)
    other = {**config, "dtype": "bfloat16", "interventions": [{"name": "var", "p": 0.6}]}
    with pytest.raises(ConfigMismatchError) as error:
        store.check_config(tmp_path, other)
    message = str(error.value)
    assert 'dtype: "float32" there, "bfloat16" now' in message
    assert "interventions.0.p: null there, 0.6 now" in message
    assert "weights" not in message
    assert "--out" in message


def test_answers_without_a_manifest_are_refused(tmp_path: Path) -> None:
    records.append(tmp_path / records.PREDICTIONS, [Record("a", "image")])
    with pytest.raises(ConfigMismatchError, match="no manifest.json"):
        store.check_config(tmp_path, {})


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("none", "none"),
        ("vhr:alpha=2", "vhr_alpha=2"),
        ("var:sink_dims=[1,2]+pai", "var_sink_dims=_1,2_+pai"),
        ("../evil:path=C\\x", ".._evil_path=C_x"),
    ],
)
def test_labels_become_safe_folder_names(label: str, name: str) -> None:
    assert store.folder_name(label) == name


def test_long_labels_stay_different() -> None:
    names = {store.folder_name("vhr:heads=" + "1" * 300 + end) for end in "ab"}
    assert len(names) == 2
    assert max(map(len, names)) <= 80


def test_digests_ignore_the_order_of_keys() -> None:
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
