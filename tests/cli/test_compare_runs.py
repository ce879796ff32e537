from __future__ import annotations

import json
from pathlib import Path

from command_line import call, evaluate, one_line


def test_runs_made_apart_are_compared_if_they_fit(model: str, tmp_path: Path) -> None:
    a, b, other = (str(tmp_path / name) for name in ("a", "b", "other"))
    for out, *args in ((a,), (b, "-w", "vhr:alpha=4", "--batch-size", "auto")):
        assert evaluate(model, Path(out), *args, images=2).exit_code == 0
    evaluate(model, Path(other), "--num-beams", "2", images=2)
    found = call("compare-runs", a, b, "--json")
    assert found.exit_code == 0, found.output
    compared = json.loads(found.stdout)
    labels = [c["label"] for c in compared["tasks"][0]["conditions"]]
    assert labels == ["A: none", "B: none", "B: vhr:alpha=4"]
    assert 'batch_size: 8 in A, "auto" in B' in compared["differences"]
    shown = call("compare-runs", a, b)
    assert "B: vhr:alpha=4" in shown.stdout
    assert "differs: batch_size" in one_line(shown)
    refused = call("compare-runs", a, other)
    assert refused.exit_code == 2
    assert "num_beams" in one_line(refused)
