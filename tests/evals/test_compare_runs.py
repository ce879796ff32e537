from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regaze.evals.benchmarks.source import Source
from regaze.evals.compare_runs import compare_runs
from regaze.evals.runs import files, records, store
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import items_digest, take
from regaze.evals.scoring.scores import ConditionScores

SOURCE = Source(benchmark="pope", n_images=4)
TASK = SOURCE.tasks()[0]
FIRED = {"fired": True, "interventions": []}


def made(
    out: Path,
    labels: Mapping[str, str],
    limit: int | None = None,
    source: Source = SOURCE,
    **settings: Any,
) -> Path:
    """A run that answered everything with one word per condition, without a model."""
    items = take(TASK.items, limit)
    config = {
        "task": "pope",
        "data_sha256": TASK.data_hash,
        "items_sha256": items_digest(items),
        "ids_sha256": files.digest([item.id for item in items]),
        "prompts_sha256": files.digest([item.prompt for item in items]),
        "decoding": {"max_new_tokens": 10, "eos_token_id": len(str(out))},
        "seeds": [0],
        "model": {"weights_sha256": "a"},
        "batch_size": 8,
        **settings,
    }
    order = [{"label": label, "folder": store.folder_name(label)} for label in labels]
    files.write_json(
        out / "run.json", {"source": source.to_dict(), "limit": limit, "conditions": order}
    )
    for label, text in labels.items():
        folder = out / store.folder_name(label)
        firing = None if label.startswith("none") else FIRED
        session = {"firing": firing, "cost": None}
        files.write_json(
            folder / store.MANIFEST,
            {"config": config, "config_sha256": files.digest(config), "sessions": [session]},
        )
        answers = [
            Record(item.id, item.cluster, item.target if text == "right" else text, margin=0.0)
            for item in items
        ]
        records.append(folder / records.PREDICTIONS, answers)
    return out


def conditions(a: Path, b: Path) -> tuple[ConditionScores, ...]:
    return compare_runs(a, b)[0].scores[0].conditions


def test_all_conditions_stand_beside_the_first_of_the_first_run(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"none": "yes", "pai": "yes"})
    b = made(tmp_path / "b", {"none": "yes", "vhr": "right", "none@blank": "no"})
    found = conditions(a, b)
    assert [(c.label, c.control) for c in found] == [
        ("A: none", None),
        ("A: pai", None),
        ("B: none", None),
        ("B: vhr", None),
        ("B: none@blank", "blank image"),
    ]
    assert found[0].change is None
    vhr = found[3].change
    assert vhr is not None
    assert vhr.totals["mean of the 3"].metrics["accuracy"].delta == 0.5
    assert len(vhr.gained) == len(TASK.items) / 2


def test_items_are_joined_by_id_whatever_their_order_on_the_disk(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"none": "yes"})
    b = made(tmp_path / "b", {"none": "right"})
    path = b / "none" / records.PREDICTIONS
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    change = conditions(a, b)[1].change
    assert change is not None
    assert change.lost == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data_sha256": "x"}, "other data_sha256"),
        ({"prompts_sha256": "x"}, "other prompts_sha256"),
        ({"decoding": {"max_new_tokens": 64}}, "decoding.max_new_tokens: 10 in A, 64 in B"),
        ({"decoding": {"max_new_tokens": 10, "num_beams": 3}}, "decoding.num_beams: null in A, 3"),
        ({"seeds": [0, 1]}, r"seeds: \[0\] in A, \[0, 1\] in B"),
        ({"task": "chair"}, 'task: "pope" in A, "chair" in B'),
    ],
)
def test_what_must_be_equal_is_named_when_it_differs(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    a = made(tmp_path / "a", {"none": "yes"})
    b = made(tmp_path / "b", {"none": "yes"}, **settings)
    with pytest.raises(ValueError, match=f"can't be compared: .*{said}"):
        compare_runs(a, b)


def test_items_that_only_one_run_has_are_listed(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"none": "yes"})
    b = made(tmp_path / "b", {"none": "yes"}, limit=22)
    with pytest.raises(ValueError, match=r"2 items answered only in A \(\w+/\d+, \w+/\d+\)"):
        compare_runs(a, b)
    with pytest.raises(ValueError, match="2 items answered only in B"):
        compare_runs(b, a)


def test_what_may_differ_is_told(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"none": "yes"})
    b = made(tmp_path / "b", {"none": "no"}, batch_size=16, model={"weights_sha256": "b"})
    (pair,) = compare_runs(a, b)
    assert list(pair.differences) == [
        "other model.weights_sha256",
        "batch_size: 8 in A, 16 in B",
    ]


def test_runs_of_several_tasks_are_paired_by_their_folders(tmp_path: Path) -> None:
    for name in "ab":
        for split in ("test", "more"):
            made(tmp_path / name / split, {"none": "yes"})
    assert len(compare_runs(tmp_path / "a", tmp_path / "b")) == 2
    made(tmp_path / "b" / "third", {"none": "yes"})
    with pytest.raises(ValueError, match="hold different runs: only one of them has third"):
        compare_runs(tmp_path / "a", tmp_path / "b")


def test_one_run_each_needs_no_folder_in_common(tmp_path: Path) -> None:
    a = made(tmp_path / "a" / "deep", {"none": "yes"})
    b = made(tmp_path / "b", {"none": "yes"})
    assert len(compare_runs(a.parent, b)) == 1
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compare_runs(a, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run"):
        compare_runs(a, tmp_path / "empty")


def test_the_second_run_does_not_need_its_data_any_more(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"none": "yes"})
    gone = Source(benchmark="pope", data=("gone.json",), images="gone")
    b = made(tmp_path / "b", {"none": "right"}, source=gone)
    assert [c.status for c in conditions(a, b)] == ["scored", "scored"]
