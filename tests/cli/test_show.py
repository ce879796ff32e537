from __future__ import annotations

import json
from pathlib import Path

from command_line import call, evaluate

from regaze.evals.runs import records


def test_show_scores_a_finished_run_again(model: str, tmp_path: Path) -> None:
    done = evaluate(model, tmp_path, "-w", "vhr:alpha=4", "--json")
    shown = call("show", str(tmp_path), "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == json.loads(done.stdout)
    other = call("show", str(tmp_path), "--profile", "vcd", "--profile", "opera", "--json")
    assert [task["profile"] for task in json.loads(other.stdout)["tasks"]] == ["vcd", "opera"]


def test_show_scores_what_a_running_run_has_so_far(model: str, tmp_path: Path) -> None:
    evaluate(model, tmp_path, "-w", "vhr:alpha=4")
    path = tmp_path / "vhr_alpha=4" / records.PREDICTIONS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:9])
    (task,) = json.loads(call("show", str(tmp_path), "--json").stdout)["tasks"]
    assert (task["asked"], task["scored"]) == (36, 20)
