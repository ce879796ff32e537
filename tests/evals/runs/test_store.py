from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from regaze.evals.reopening import reopen
from regaze.evals.runs import files, store
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import Inputs

DATA = Path(__file__).parent.parent.parent / "data" / "runs"


def test_names_are_distinct_also_where_capitals_and_accents_do_not_count() -> None:
    labels = ["red circle", "red_circle", "a/0", "a_0", "Cat", "cat", "\u00c9", "\u00e9", "plain"]
    names = store.distinct_names(labels)
    assert names["plain"] == "plain"
    assert len({name.casefold() for name in names.values()}) == len(labels)
    assert all("~" in name for label, name in names.items() if label != "plain")


def test_long_names_fit_into_every_file_system() -> None:
    long = "\U0001f600x" * 64
    names = store.distinct_names([long, long + "y"])
    assert len(set(names.values())) == 2
    assert max(len(name.encode()) for name in names.values()) < 100


def test_a_folder_that_is_another_conditions_is_not_taken(tmp_path: Path) -> None:
    labels = ["flow_warp:flow=a/b.npz", "flow_warp:flow=a_b.npz"]
    both = store.folders(tmp_path, labels)
    assert both[labels[0]].name == "flow_warp_flow=a_b.npz"
    assert both[labels[1]].name.startswith("flow_warp_flow=a_b.npz~")
    for label, folder in both.items():
        fields = {"condition": label, "config": {}, "sessions": []}
        files.write_json(folder / store.MANIFEST, fields)
        # One that comes later, by itself, finds the folder taken.
        assert store.folders(tmp_path, labels[1:])[labels[1]] == both[labels[1]]
    for order in (labels, labels[::-1], labels[:1], labels[1:]):
        assert store.folders(tmp_path, order) == {label: both[label] for label in order}
    shutil.rmtree(both[labels[0]])
    assert store.folders(tmp_path, labels[1:]) == {labels[1]: both[labels[1]]}


DAMAGE: list[tuple[str, str, object, str]] = [
    ("run.json", "conditions", None, "conditions: Field required"),
    ("run.json", "conditions", [{"label": "none"}], "conditions.0.folder: Field required"),
    ("run.json", "limit", "all", "limit: "),
    ("run.json", "source", {"benchmark": "pope", "seed": "x"}, "source.seed: "),
    ("run.json", "source", {"benchmark": "pope", "colour": 1}, "unknown field source.colour"),
    ("none/manifest.json", "sessions", [1], "sessions.0: should be a valid dictionary"),
    ("none/manifest.json", "sessions", [{"firing": {}}], "sessions.0.firing.fired: "),
    ("none/manifest.json", "config", 5, "config: should be a valid dictionary"),
]


@pytest.mark.parametrize(("name", "field", "value", "said"), DAMAGE)
def test_a_damaged_directory_is_told_by_file_and_field(
    tmp_path: Path, name: str, field: str, value: object, said: str
) -> None:
    shutil.copytree(DATA / "questions", tmp_path / "run")
    path = tmp_path / "run" / name
    fields = json.loads(path.read_text())
    fields[field] = value
    if value is None:
        del fields[field]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError) as error:
        reopen(tmp_path / "run")
    assert f"{path} is damaged" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"a"', "\udcff"])
def test_what_is_no_json_is_told_by_file(tmp_path: Path, text: str) -> None:
    shutil.copytree(DATA / "questions", tmp_path / "run")
    path = tmp_path / "run" / "none" / "manifest.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"manifest\.json is (not valid JSON|damaged)"):
        reopen(tmp_path / "run")


@pytest.mark.parametrize("line", ["{}", '{"id": "a"}', '{"id": 1, "counts": {}}', "[1]", "x"])
def test_a_damaged_score_is_told_by_file_and_line(tmp_path: Path, line: str) -> None:
    shutil.copytree(DATA / "pictures", tmp_path / "run")
    path = tmp_path / "run" / "none" / "scores" / "painting.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"painting\.jsonl, line 4 is not a score"):
        reopen(tmp_path / "run")


def test_a_question_is_shown_the_same_image_under_all_conditions() -> None:
    inputs = Inputs()
    inputs.check("none", "given", [Record("a", "i", "yes", inputs_sha256="1")])
    inputs.check("none@wrong", "wrong", [Record("a", "i", "yes", inputs_sha256="2")])
    inputs.check("vhr", "given", [Record("a", "i", "yes", inputs_sha256="1", seed=1)])
    with pytest.raises(ValueError, match="a was shown another image or text under pai than"):
        inputs.check("pai", "given", [Record("a", "i", "yes", inputs_sha256="2")])


def test_half_written_files_go_and_a_finished_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.png"
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with files.replacing(path) as part:
        part.write_bytes(b"whole")
    left = path.with_name(".0123456789ab.part")
    left.touch()
    (tmp_path / ".0123456789ab.part").touch()  # a report that somebody may be writing
    files.remove_parts(tmp_path)
    assert path.read_bytes() == b"whole"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        ".0123456789ab.part",
        "a.png",
    ]


def test_two_writers_of_a_file_have_a_part_each(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with files.replacing(path) as one, files.replacing(path) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one"


def test_a_lock_is_taken_again_by_its_holder_and_given_back(tmp_path: Path) -> None:
    mine = FileLock(tmp_path.resolve() / files.LOCK, blocking=False, is_singleton=True)
    with files.locked(tmp_path):
        with files.locked(tmp_path):
            pass
        assert mine.is_locked
    assert not mine.is_locked
