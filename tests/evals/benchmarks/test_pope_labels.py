"""RePOPE: one run of POPE's questions, scored with both sets of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, one_line
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.pope_labels import read_labels, relabelled
from regaze.evals.benchmarks.source import Source


def rows(**labels: str) -> list[dict[str, Any]]:
    """Eight questions about two pictures, less those whose label is empty."""
    asked = [
        {
            "question_id": number,
            "image": f"{number % 2}.png",
            "text": f"Is there a thing {number} in the image?",
            "label": labels.get(f"q{number}", "yes" if number < 5 else "no"),
        }
        for number in range(1, 9)
    ]
    return [row for row in asked if row["label"]]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, content)) + "\n")
    return path


def pictures(folder: Path) -> None:
    for name in ("0.png", "1.png"):
        Image.new("RGB", (64, 64)).save(folder / name)


def test_corrected_labels_leave_ambiguous_questions_out(tmp_path: Path) -> None:
    data = write(tmp_path / "coco_pope_random.json", rows())
    labels = write(tmp_path / "coco_repope_random.json", rows(q1="no", q2="", q8="yes"))
    task = Pope.from_files([data], tmp_path)
    other = relabelled(task, read_labels(labels))
    assert (other.name, other.profile, len(other.items)) == ("repope", "official", 7)
    said = {f"random/{n}": "yes" if n < 5 else "no" for n in range(1, 9)}
    assert sections(task, said)["random"]["accuracy"] == 1.0
    found = sections(other, said)["random"]
    assert found["accuracy"] == 5 / 7
    assert (found["precision"], found["recall"]) == (2 / 3, 2 / 3)
    # The prompt of another profile ends in another way, and is the same question.
    assert (
        len(
            relabelled(Pope.from_files([data], tmp_path, profile="lmms"), read_labels(labels)).items
        )
        == 7
    )


def test_of_a_folder_the_files_named_repope_are_read(tmp_path: Path) -> None:
    write(tmp_path / "coco_pope_random.json", rows())
    write(tmp_path / "coco_repope_random.json", rows(q2=""))
    assert len(read_labels(tmp_path)) == 7
    (tmp_path / "coco_repope_random.json").rename(tmp_path / "mine_random.jsonl")
    (tmp_path / "coco_pope_random.json").unlink()
    assert len(read_labels(tmp_path)) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "Is there a cat?"}, r"question random/1 is .*thing 1.* but 'Is there a cat\?'"),
        ({"image": "7.png"}, r"about 7\.png in the labels"),
        ({"question_id": 99}, "1 of its questions are not in the data, e.g. random/99"),
        ({"label": "unsure"}, "label must be 'yes' or 'no'"),
    ],
)
def test_labels_of_other_questions_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    task = Pope.from_files([write(tmp_path / "random.json", rows())], tmp_path)
    first, *others = rows()
    with pytest.raises(ValueError, match=message):
        relabelled(
            task, read_labels(write(tmp_path / "re_random.json", [{**first, **change}, *others]))
        )


def test_labels_of_another_subset_and_no_labels_are_refused(tmp_path: Path) -> None:
    task = Pope.from_files([write(tmp_path / "random.json", rows())], tmp_path)
    labels = read_labels(write(tmp_path / "re_popular.json", rows()))
    with pytest.raises(ValueError, match=r"none of its questions \(the first is popular/1\)"):
        relabelled(task, labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--relabel: .*empty holds no \*\.json file"):
        read_labels(tmp_path / "empty")
    with pytest.raises(ValueError, match="--relabel: there is no file or folder"):
        read_labels(tmp_path / "nowhere.json")


def test_a_run_prints_both_and_can_be_shown_under_another_profile(tmp_path: Path) -> None:
    pictures(tmp_path)
    data = write(tmp_path / "coco_pope_random.json", rows())
    labels = write(tmp_path / "coco_repope_random.json", rows(q1="no", q2=""))
    out = str(tmp_path / "run")
    args = ["--questions", str(data), "--images", str(tmp_path), "--out", out, "--json"]
    first = call("eval", "pope", *args)
    assert first.exit_code == 0, first.stderr
    assert [task["title"] for task in json.loads(first.stdout)["tasks"]] == ["POPE"]
    # Labels given later score the answers that are there.
    both = call("eval", "pope", *args, "--relabel", str(labels))
    told = json.loads(both.stdout)["tasks"]
    assert [(one["title"], one["task"], one["scored"]) for one in told] == [
        ("POPE", "pope", 8), ("RePOPE", "repope", 7),
    ]  # fmt: skip
    assert [one["asked"] for one in told] == [8, 7]
    shown = json.loads(call("show", out, "--profile", "opera", "--json").stdout)["tasks"]
    assert [(one["title"], one["profile"]) for one in shown] == [
        ("POPE", "opera"), ("RePOPE", "opera"),
    ]  # fmt: skip
    wrong = call("eval", "pope", *args, "--relabel", str(tmp_path / "0.png"))
    assert "is a PNG picture" in one_line(wrong)


def test_the_scores_of_turned_labels_are_turned(tmp_path: Path) -> None:
    pictures(tmp_path)
    data = write(tmp_path / "random.json", rows(q5="yes", q6="yes"))
    turned = [
        {**row, "label": "no" if row["label"] == "yes" else "yes"}
        for row in rows(q5="yes", q6="yes")
    ]
    labels = write(tmp_path / "re_random.json", turned)
    args = ("--questions", str(data), "--images", str(tmp_path), "--relabel", str(labels))
    result = call("eval", "pope", *args, "--out", str(tmp_path / "run"), "--json")
    told = json.loads(result.stdout)["tasks"]
    one, other = (
        task["conditions"][0]["score"]["groups"]["random"]["accuracy"]["value"] for task in told
    )
    assert one + other == 1
    assert one != other


def test_the_published_files_fit_pope_s(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "repope"
    if not folder.is_dir():
        pytest.skip("REGAZE_DATA has no repope, the folder annotations of YanNeu/RePOPE")
    names = [f"coco_pope_{kind}.json" for kind in ("random", "popular", "adversarial")]
    files = tuple(str(data_dir / "pope" / name) for name in names)
    pope, repope = Source("pope", files, str(tmp_path), relabel=str(folder)).tasks()
    assert (len(pope.items), len(repope.items)) == (9000, 2774 + 2727 + 2684)
    before = {item.id: item.target for item in pope.items}
    assert sum(before[item.id] != item.target for item in repope.items) == 144 + 178 + 172
