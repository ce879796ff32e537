from __future__ import annotations

import json
import re
from pathlib import Path

from command_line import QUICK, call, on_tiny

from regaze.interventions.diffusion.soft_pag import SoftPAG


def test_sinks_are_discovered_and_given_as_a_spec(model: str) -> None:
    none = call("discover", "sinks", "--model", model)
    assert none.exit_code == 0
    assert "no sink dimensions" in none.stdout
    found = json.loads(call("discover", "sinks", "-m", model, "--tau", "0.05", "--json").stdout)
    assert found["sink_dims"]
    assert re.fullmatch(r"var:sink_dims=\[[\d,]+\],tau=0\.05", found["spec"])


def test_heads_leaves_a_spec_and_a_picture(tmp_path: Path) -> None:
    given = ("--prompt", "a red circle", "--layer", "1", "--picks", "1", *QUICK)
    result = on_tiny("discover heads", *given, "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    spec = SoftPAG.from_file(tmp_path / "softpag.json")
    assert spec.label in result.stdout
    assert (tmp_path / "heads.png").exists()
    bad = on_tiny("discover heads", "--prompt", "a red circle", "--objective", "psnr")
    assert "can't be an objective" in bad.stderr.replace("\n", " ")


def test_heads_for_language_models_are_taken_from_the_file(model: str, tmp_path: Path) -> None:
    given = ("-m", model, "--split", "validation", "--limit", "3", "--layer", "1", "--top", "2")
    result = call("discover", "heads-lvlm", "headablate", *given, "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "heads.json").read_text())
    assert [layer for layer, _ in found["heads"]] == [1, 1] and found["by"] == "margin"
    assert f"headablate:heads=@{tmp_path / 'heads.json'}" in result.stdout.replace("\n", "")
    assert (tmp_path / "heads.png").exists()
    bad = call("discover", "heads-lvlm", "pai", *given, "--out", str(tmp_path))
    assert "no field heads" in bad.stderr.replace("\n", " ")
    wrong = call("discover", "heads-lvlm", "adhh", "--by", "chance", *given)
    assert "unknown --by 'chance'" in wrong.stderr.replace("\n", " ")


def test_paro_leaves_a_plan_that_is_given_as_a_spec(tmp_path: Path) -> None:
    given = ("--prompt", "a red circle", "--block", "4", "--layer", "1", *QUICK)
    result = on_tiny("discover paro", *given, "--out", str(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["spec"] == f"paro:plan={tmp_path / 'paro.safetensors'}"
    assert len(found["orders"]) == 1 and found["grid"][0] == 1
    bad = on_tiny("discover paro", "--prompt", "a red circle", "--order", "fwx")
    assert "orders must be some of fhw" in bad.stderr.replace("\n", " ")
