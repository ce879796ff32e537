"""Annotated photographs (REGAZE_DATA's tiny_coco) from the files to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call

SHORT = ("--model", "sandbox", "--max-new-tokens", "4", "--json")


@pytest.fixture
def coco(data_dir: Path) -> Path:
    folder = data_dir / "tiny_coco"
    if not folder.is_dir():
        pytest.skip("REGAZE_DATA has no tiny_coco")
    return folder


def test_pope_is_built_and_asked(coco: Path, tmp_path: Path) -> None:
    questions, pictures = tmp_path / "q.json", str(coco / "val2017")
    annotations = str(coco / "annotations" / "instances_val2017.json")
    made = call(
        *("build", "pope", "--annotations", annotations, "--images", pictures),
        *("--n-images", "3", "--questions", "4", "--out", str(questions), "--json"),
    )
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["questions"] == 36
    run = tmp_path / "run"
    asked = call(
        *("eval", "pope", "--questions", str(questions), "--images", pictures, "--with", "pai"),
        *("--out", str(run), *SHORT),
    )
    assert asked.exit_code == 0, asked.stderr
    (scores,) = json.loads(asked.stdout)["tasks"]
    assert (scores["scored"], scores["clusters"]) == (36, 3)
    assert [each["status"] for each in scores["conditions"]] == ["scored", "scored"]
    assert (run / "report.html").is_file()


def test_chair_takes_the_pictures_there_are(
    coco: Path, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = str(data_dir / "chair" / "synonyms.txt")
    asked = call(
        *("eval", "chair", "--annotations", str(coco / "annotations"), "--images", str(coco)),
        *("--words", words, "--profile", "official", "--limit", "4"),
        *("--out", str(tmp_path / "run"), *SHORT),
    )
    assert asked.exit_code == 0, asked.stderr
    (scores,) = json.loads(asked.stdout)["tasks"]
    assert (scores["task"], scores["scored"]) == ("chair", 4)
    assert "holds 100 images, fewer than 500: all are taken" in caplog.text
