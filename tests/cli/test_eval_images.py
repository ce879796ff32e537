from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import QUICK, on_tiny, one_line


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--score", "clip:model=nowhere"), "model nowhere is no folder here"),
        (("--score", "clip:model=empty"), "empty holds no weights"),
        (("--score", "aesthetic:head=no.safetensors"), "No such file"),
        (("--score", "hpsv2:weights=no.pt"), "no file 'no.pt' here"),
        (("--score", "fid:reference=empty"), "no pictures in 'empty'"),
        (("--score", "fid:reference=.,mode=dirty"), "fid: unknown mode 'dirty'"),
        (("--score", "kid:reference=.,weights=no.pth"), "kid: there is no file of weights no.pth"),
        (("--score", "is:weights=no.pth"), "is: there is no file of weights no.pth"),
        (("--score", "psnr", "--references", "empty"), "no reference for 0000/0: "),
        (("--prompt", "a photo of a dog", "--score", "painting"), "'photo'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_painted(
    given: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    fixed = ("--prompt", "a red circle", "--prompt", "a blue cross", "--with", "none", *QUICK)
    result = on_tiny("eval images", *fixed, *given, "--out", "run")
    assert result.exit_code == 2
    assert one_line(result).startswith("error: ")
    assert message in one_line(result)
    assert not (tmp_path / "run").exists()
