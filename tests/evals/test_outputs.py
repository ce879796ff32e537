"""Files written in one go are whole or absent, and their place is tested first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import call, on_tiny, one_line
from PIL import Image

from regaze.evals.asking import models
from regaze.evals.clips import animation
from regaze.evals.outputs import check_place, whole
from regaze.evals.pictures import grid, pipelines
from regaze.evals.sandbox.video import pipeline
from regaze.interventions.diffusion import flow
from regaze.interventions.diffusion.flow import Flow

FRAMES = [Image.new("RGB", (16, 17), (value, 0, 0)) for value in (0, 99, 200)]
WRITERS: dict[str, Callable[[Path], None]] = {
    "grid.png": lambda path: grid.save_png(path, FRAMES[0], {"a": 1}),
    "grid.gif": lambda path: grid.save_gif(path, FRAMES),
    "clip.gif": lambda path: animation.save(path, FRAMES),
    "clip.webp": lambda path: animation.save(path, FRAMES),
    "flow.npz": lambda path: flow.write(path, Flow(np.zeros((2, 4, 4, 2), np.float32))),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_whole_or_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made" / name
    WRITERS[name](path)
    first = path.read_bytes()
    assert first and names(path.parent) == [name]
    path.write_bytes(b"an earlier one")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    # What was written is on the disk before it is moved.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write .*{name}: No space left on device$"):
        WRITERS[name](path)
    assert path.read_bytes() == b"an earlier one"
    assert names(path.parent) == [name]
    monkeypatch.undo()
    WRITERS[name](path)
    assert path.read_bytes() == first


def test_an_interrupt_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole(path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.png"] and path.read_bytes() == b"old"


def test_a_place_is_tested_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "new" / "deep" / "a.png", tmp_path / "file")
    assert names(tmp_path) == ["file", "folder.png"]
    for path, reason in (
        (tmp_path / "folder.png", "Is a directory"),
        (tmp_path / "file" / "a.png", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "null"),
        (Path("/proc/x.png"), ""),
    ):
        with pytest.raises(OSError, match=f"^cannot write .*{reason}"):
            check_place(path)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("compare", "folder.png"),
        ("compare", "file/a.png"),
        ("animate", "file/a.gif"),
        ("animate", "folder.gif"),
        ("animate", "taken.gif"),
        ("verify", "folder.png"),
        ("eval pope --split test", "file"),
        ("eval images", "file"),
        ("eval images", "reported"),
        ("eval video", "file"),
        ("discover heads", "file"),
        ("discover heads", "file/below"),
        ("demo", "file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    command: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (pipelines, models):
        monkeypatch.setattr(module, "load", lambda *a, **k: pytest.fail("it was loaded"))
    monkeypatch.setattr(pipeline, "load_pipeline", lambda *a: pytest.fail("it was loaded"))
    (tmp_path / "reported" / "report.html").mkdir(parents=True)
    for name in ("folder.png", "folder.gif"):
        (tmp_path / name).mkdir()
    for name in ("file", "taken"):  # frames go to a folder named like the animation
        (tmp_path / name).write_text("")
    given: dict[str, tuple[str, ...]] = {
        "compare": ("-p", "a", "--with", "none"),
        "animate": ("--with", "none"),
        "eval images": ("-p", "a", "-p", "b", "--score", "painting"),
        "discover heads": ("-p", "a"),
    }
    arguments = (*given.get(command, ()), "--out", file)
    if command in ("demo", "eval video"):
        result = call(*command.split(), *arguments)
    else:
        result = on_tiny(command, *arguments)
    assert result.exit_code == 2
    assert one_line(result).startswith("error: cannot write ")


def test_the_cache_of_flows_is_written_only_where_a_method_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = Flow(np.zeros((2, 4, 4, 2), np.float32))
    with pytest.raises(OSError, match="cannot write .*XDG_CACHE_HOME names another folder"):
        flow.keep(made)
