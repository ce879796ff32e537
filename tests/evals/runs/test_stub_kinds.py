"""Promises of pictures, clips and searches beyond the protocol, with stub models."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import stub_works
from stored import answers_on_disk

from regaze.evals.pictures.work import FLAGGED
from regaze.evals.runs import store
from regaze.evals.runs.distributed import World

PAINTERS = {
    "pictures": (stub_works.pictures, "none/images"),
    "clips": (stub_works.clips, "none/strips"),
}


def files_of(out: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(out)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.suffix in (".png", ".jsonl") or path.name == store.MANIFEST
    }


@pytest.mark.parametrize("kind", PAINTERS)
def test_a_picture_that_was_lost_or_cut_is_painted_again_and_no_other(
    tmp_path: Path, kind: str
) -> None:
    run, folder = PAINTERS[kind]
    run(tmp_path, World())
    before = files_of(tmp_path)
    lost, cut, empty, *_ = sorted((tmp_path / folder).iterdir())
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    empty.write_bytes(b"")
    run(tmp_path, World())
    after = files_of(tmp_path)
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in before.items()
    }
    changed = {tmp_path / name for name in after if after[name][1] != before[name][1]}
    assert changed == {lost, cut, empty}


@pytest.mark.parametrize("kind", PAINTERS)
def test_what_is_recorded_is_there_before_the_record(tmp_path: Path, kind: str) -> None:
    run, _ = PAINTERS[kind]
    seen = []

    def append(path: Path, found: object) -> None:
        for record in list(found):  # type: ignore[call-overload]
            base = tmp_path if kind == "clips" else path.parent
            assert stub_works.is_whole(base / record.text)
            seen.append(record.key)
        raise KeyboardInterrupt

    with (
        patch("regaze.evals.runs.records.append", append),
        pytest.raises(KeyboardInterrupt),
    ):
        run(tmp_path, World())
    assert len(seen) == (2 if kind == "pictures" else 1)


def test_what_a_checker_held_back_is_an_error_that_is_not_tried_again(tmp_path: Path) -> None:
    with stub_works.held_back("a white triangle"):
        stub_works.pictures(tmp_path, World())
    before = answers_on_disk(tmp_path)
    errors = {one["id"]: one["error"] for one in before["none"] if one["error"]}
    assert errors == {f"a_b/{seed}": FLAGGED for seed in (0, 1, 2)}
    assert len(list((tmp_path / "none" / "images").iterdir())) == 3
    stub_works.pictures(tmp_path, World())
    assert answers_on_disk(tmp_path) == before


def test_a_search_of_heads_reads_every_test_of_its_rounds(tmp_path: Path) -> None:
    stub_works.heads(tmp_path, World())
    path = tmp_path / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["round"], row["test"]) for row in rows[:8]] == [
        (0, "chosen"),
        *((0, f"L{layer}H{head}") for layer in range(3) for head in range(2)),
        (1, "chosen"),
    ]
    assert [row["round"] for row in rows] == [0] * 7 + [1] * 6 + [2]
    best = max(rows[1:7], key=lambda row: row["scores"])["test"]
    assert best not in {row["test"] for row in rows[7:]}


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.rank1.jsonl"])
def test_scores_of_a_search_without_its_settings_are_not_gone_on_with(
    tmp_path: Path, name: str
) -> None:
    stub_works.heads(tmp_path, World())
    (tmp_path / store.MANIFEST).unlink()
    (tmp_path / "scores.jsonl").rename(tmp_path / name)
    with pytest.raises(store.ConfigMismatchError, match=r"holds answers but no manifest\.json"):
        stub_works.heads(tmp_path, World())
