"""The command verify, and eval --verify: what they print, keep and return."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from regaze.cli.commands import app
from regaze.evals.runs import files, store
from regaze.evals.verify import Certificate
from regaze.interventions import PAI


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture()
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAI's literal form is that of another strength, so its fused form can't equal it."""
    stock = PAI.literal
    monkeypatch.setattr(PAI, "literal", lambda self: stock(replace(self, alpha=1.0)))


def test_the_table_names_promises_and_what_they_come_to(tmp_path: Path) -> None:
    result = call("verify", "--with", "pai", "--out", str(tmp_path / "c.json"))
    assert result.exit_code == 0, result.output
    for part in ("LlavaForConditionalGeneration", "decoding = literal form", "bit for bit"):
        assert part in result.stdout
    assert "Verified: 8 passed" in result.stdout
    assert Certificate.load(tmp_path / "c.json").methods == ["pai"]


def test_json_is_the_certificate() -> None:
    result = call("verify", "--with", "pai", "--json")
    found = json.loads(result.stdout)
    assert found["passed"] and result.exit_code == 0
    assert found["model"]["identity"]["name"] == "sandbox"


def test_a_named_method_of_which_nothing_could_be_checked_is_exit_code_1() -> None:
    result = call("verify", "--with", "vhr:layers=[99]")
    assert result.exit_code == 1
    assert "layers holds 99" in " ".join(result.stdout.split())
    assert "error: nothing could be checked of vhr:layers=[99]" in result.stderr


@pytest.mark.usefixtures("wrong")
def test_a_promise_that_fails_is_exit_code_1() -> None:
    result = call("verify", "--with", "pai")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout and "NOT verified" in result.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--with", "carve"), "edits no attention"),
        (("--with", "none"), "no method in it"),
        (("--with", "pag"), "acts on diffusers pipelines"),
        (("--with", "vaar"), "did you mean var"),
        (("--model", "sandbx", "--with", "pai"), "did you mean sandbox"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(args: tuple[str, ...], said: str) -> None:
    result = call("verify", *args)
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1


EVAL = ("eval", "pope", "--split", "test", "--n-images", "4", "--max-new-tokens", "2", "--verify")


def test_a_run_keeps_the_certificate_in_its_manifest(tmp_path: Path) -> None:
    result = call(*EVAL, "--with", "pai", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    kept = files.read_json(tmp_path / "pai" / store.MANIFEST)["certificate"]
    assert kept["passed"] and Certificate.from_dict(kept).methods == ["pai"]
    assert "certificate" not in files.read_json(tmp_path / "none" / store.MANIFEST)


@pytest.mark.usefixtures("wrong")
def test_a_run_does_not_go_on_if_a_promise_fails(tmp_path: Path) -> None:
    result = call(*EVAL, "--with", "pai", "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "nothing was asked" in result.stderr
    assert not (tmp_path / "run").exists()
