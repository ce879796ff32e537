"""Runs that are killed, at any moment, end like one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy import answers_on_disk

KILLS = 26

# One process loads torch and forks; each child runs until it is killed, or to its end.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy import ToyTask, toy_model
from regaze.evals.runs import records
from regaze.evals.asking import runner
from regaze.evals.runs.conditions import Condition

model, processor = toy_model()
append, root = records.append, Path({root!r})

def go(name, tear=None):
    def torn(path, fresh):
        nonlocal tear
        if not (tear := tear - 1):
            size = path.stat().st_size if path.exists() else 0
            append(path, fresh)
            os.truncate(path, size + random.choice([0, 1, (path.stat().st_size - size) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, fresh)
    if tear:
        records.append = torn
    runner.run(ToyTask(3), model, processor, [Condition.parse("vhr:alpha=4")], out=root / name,
               batch_size=4, max_new_tokens=2, identity={{"name": "toy"}})

def child(seed, *arguments):
    pid = os.fork()
    if pid == 0:
        random.seed(seed)
        try:
            go(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return pid

def end(pid):
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status) and status:
        sys.exit("a child failed")
    return os.WIFSIGNALED(status)

random.seed(0)
start = time.monotonic()
end(child(0, "whole"))
took = time.monotonic() - start
kills = runs = 0
while kills < {kills}:
    runs += 1
    killed = True
    while killed:
        if kills % 4 == 3:  # in the middle of writing
            pid = child(kills, f"killed{{runs}}", random.randrange(1, 4))
        else:  # at any time
            pid = child(kills, f"killed{{runs}}")
            time.sleep(random.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
        killed = end(pid)
        kills += killed
        if kills >= {kills}:
            killed = end(child(0, f"killed{{runs}}"))
print(json.dumps([kills, runs]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_runs_killed_at_any_moment_end_like_one_that_was_not(tmp_path: Path, root: Path) -> None:
    script = SCRIPT.format(tests=str(root / "tests"), root=str(tmp_path), kills=KILLS)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    kills, runs = json.loads(done.stdout.splitlines()[-1])
    assert kills >= KILLS
    whole = answers_on_disk(tmp_path / "whole")
    assert [len(lines) for lines in whole.values()] == [18, 18]
    for number in range(1, runs + 1):
        killed = tmp_path / f"killed{number}"
        assert answers_on_disk(killed) == whole
        assert {path.name for path in (killed / "none").iterdir()} == {
            "manifest.json",
            "predictions.jsonl",
        }
        manifests = [
            json.loads((tmp_path / name / "vhr_alpha=4" / "manifest.json").read_text())
            for name in ("whole", f"killed{number}")
        ]
        assert manifests[0]["config"] == manifests[1]["config"]
        assert manifests[0]["counts"] == manifests[1]["counts"]
        assert any(session["firing"]["fired"] for session in manifests[1]["sessions"])
