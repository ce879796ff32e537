from __future__ import annotations

from pathlib import Path

import pytest
from command_line import call, one_line

from regaze.cli import demo
from regaze.evals import sandbox


def test_the_demo_compares_on_both_benchmarks_and_ends_with_the_report(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "model_path", lambda name: Path(model))
    monkeypatch.setattr(demo, "CONDITIONS", ("none", "vhr:alpha=4"))
    monkeypatch.setattr(demo, "CONTROLS", ("none@blank",))
    monkeypatch.setattr(demo, "IMAGES", {"pope": 2, "chair": 3})
    monkeypatch.chdir(tmp_path)
    result = call("demo")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "runs" / "demo" / "report.html")
    assert result.stdout.count("vhr:alpha=4") == 4
    monkeypatch.setattr(demo, "IMAGES", {"pope": 3, "chair": 3})
    again = call("demo")
    assert again.exit_code == 0, again.output
    assert "was made by another version; moved to" in one_line(again)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_folder_that_holds_other_things_is_not_moved_away(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "model_path", lambda name: Path(model))
    monkeypatch.setattr(demo, "CONDITIONS", ("none",))
    monkeypatch.setattr(demo, "CONTROLS", ())
    monkeypatch.setattr(demo, "IMAGES", {"chair": 2})
    assert call("demo", "--out", str(tmp_path)).exit_code == 0
    (tmp_path / "chair" / "thesis.tex").touch()
    monkeypatch.setattr(demo, "IMAGES", {"chair": 3})
    again = call("demo", "--out", str(tmp_path))
    assert again.exit_code == 2
    assert f"{tmp_path} holds chair/thesis.tex, which is no demo's" in one_line(again)
    assert (tmp_path / "chair" / "thesis.tex").exists()
