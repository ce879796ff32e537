"""Commands that compute nothing answer at once: none of the heavy libraries is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import evaluate

HEAVY = ("torch", "transformers", "diffusers", "matplotlib", "scipy", "accelerate", "nltk")


def modules(code: str, *args: str) -> set[str]:
    """What a fresh process has loaded after running some code."""
    end = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code + end, *args]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def loaded(code: str, *args: str) -> set[str]:
    """The heavy libraries among them."""
    return set(HEAVY) & modules(code, *args)


def loaded_by(*args: str, code: int = 0) -> set[str]:
    """The heavy libraries that a command loads; it must end with ``code``."""
    lines = (
        "from regaze.cli import main",
        "try: main()",
        f"except SystemExit as end: assert (end.code or 0) == {code}, end.code",
    )
    return loaded("\n".join(lines), *args)


def test_importing_the_package_is_free_until_a_name_is_used() -> None:
    assert loaded("import regaze; assert 'attach' in dir(regaze)") == set()
    assert "torch" in loaded("from regaze import attach")


def test_specs_of_the_package_and_conditions_need_no_torch_until_they_are_named() -> None:
    code = "from regaze.evals.runs.conditions import Condition; Condition.parse('none@blank')"
    assert loaded(code) == set()


def test_help_does_without_arrays_and_pictures() -> None:
    code = "from regaze.cli import commands; assert commands.app"
    assert not {"numpy", "PIL"} & modules(code)


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("list",),
        ("eval", "--help"),
        ("eval", "images", "--help"),
        ("eval", "video", "--help"),
        ("animate", "--help"),
        ("discover", "heads", "--help"),
    ],
    ids=" ".join,
)
def test_help_and_lists(args: tuple[str, ...]) -> None:
    assert loaded_by(*args) == set()


@pytest.mark.parametrize(
    "args",
    [
        ("evl",),
        ("eval", "pope", "--modle", "x"),
        ("eval", "pop"),
        ("eval", "pope", "--with", "vrh"),
        ("eval", "pope", "--batch-size", "many"),
        ("eval", "pope", "--data", "x", "--n-images", "3"),
        ("eval", "chair", "--split", "test", "--images", "x"),
        ("tune", "vhr", "--images", "x"),
        ("analyse", "heads", "--split", "tset"),
        ("measure", "vas", "--with", ""),
        ("measure", "vas", "--with", "none@blank"),
        ("compare", "--with", "none"),
        ("show", "."),
    ],
    ids=" ".join,
)
def test_mistakes(args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert loaded_by(*args, code=2) == set()


def test_runs_are_shown_and_compared(model: str, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for out in (a, b):
        asked = evaluate(model, Path(out), "-w", "vhr:alpha=4", "--controls", images=2)
        assert asked.exit_code == 0
    assert loaded_by("show", a) == set()
    assert loaded_by("compare-runs", a, b) == set()
