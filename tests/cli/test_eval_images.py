from __future__ import annotations

import json
from pathlib import Path

from command_line import QUICK, on_tiny


def test_images_are_painted_scored_and_kept(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue cross\n")
    out = tmp_path / "run"
    given = ("--prompts", str(prompts), "--with", "pag:scale=5", *QUICK, "--seeds", "2")
    result = on_tiny("eval images", *given, "--score", "painting", "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    (task,) = json.loads(result.stdout)["tasks"]
    assert [c["label"] for c in task["conditions"]] == ["none", "pag:scale=5"]
    assert (task["scored"], task["clusters"]) == (4, 2)
    assert len(list((out / "pag_scale=5" / "images").glob("*.png"))) == 4
    assert (out / "samples.png").exists()
    assert "pag:scale=5" in (out / "report.html").read_text()
    again = on_tiny("eval images", *given, "--score", "psnr", "--out", str(out))
    assert again.exit_code == 0, again.stderr
    assert "psnr" in again.stdout
    one = on_tiny("eval images", "--prompt", "a red circle", "--score", "painting")
    assert "at least two prompts" in one.stderr.replace("\n", " ")
