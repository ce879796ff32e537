"""Runs that are killed, at any moment, end like one that was not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from killing import NAMES
from stored import answers_on_disk

KILLS = {"stub": 25, "real": 1}


def contents(out: Path) -> dict[str, bytes | str]:
    """A run's files but for sessions and times, and no file that a killed process had begun."""
    found: dict[str, bytes | str] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or name == ".lock" or path.name == "predictions.jsonl":
            continue
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            manifest.pop("sessions", None)
            found[name] = json.dumps(manifest).replace(str(out), "OUT")
        elif path.suffix == ".part" and path.parent == out:
            continue  # beside the folders they go after an hour
        else:
            found[name] = path.read_bytes().replace(str(out).encode(), b"OUT")
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs fork, SIGKILL and /proc")
def test_runs_killed_at_any_moment_end_like_one_that_was_not(tmp_path: Path, root: Path) -> None:
    counts = map(str, KILLS.values())
    done = subprocess.run(
        [sys.executable, root / "tests" / "support" / "killing.py", str(tmp_path), *counts],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for name in NAMES:
        for model, kills in KILLS.items():
            counted = told[f"{model}-{name}"]
            assert counted["kills"] >= kills
            ends_alike(tmp_path / f"{model}-{name}", counted["runs"])
        counted = told[f"stub-{name}"]
        assert counted["shared"] > 0, "no kill struck while two processes wrote"
        assert (counted["halves"] > 0) == (name in ("pictures", "clips"))


def ends_alike(root: Path, runs: int) -> None:
    """Check that runs that were killed hold what the one that wasn't holds."""
    answers, files = answers_on_disk(root / "whole"), contents(root / "whole")
    assert len(answers) > 1 or "scores.jsonl" in files
    for number in range(1, runs + 1):
        killed = root / f"killed{number}"
        assert answers_on_disk(killed) == answers
        assert contents(killed) == files
        for path in killed.glob("*/manifest.json"):
            sessions = json.loads(path.read_text())["sessions"]
            acts = not re.match(r"none", path.parent.name)
            assert any(one["firing"]["fired"] for one in sessions if one["firing"]) == acts
