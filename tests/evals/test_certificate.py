"""Certificates as files, and when they count as passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import regaze
from regaze.evals.asking.models import load
from regaze.evals.verify import Certificate, Line
from regaze.evals.verify.certificate import PROMISES
from regaze.interventions import PAI, VAR


def test_a_certificate_is_saved_and_read_again(tmp_path: Path) -> None:
    sandbox = load("sandbox")
    identity = sandbox.identity
    made = regaze.verify(
        sandbox.model, PAI(), VAR(), processor=sandbox.processor, identity=identity
    )
    made.save(tmp_path / "c.json")
    read = Certificate.load(tmp_path / "c.json")
    assert read.to_dict() == made.to_dict()
    assert read.model["identity"] == identity
    assert read.only("pai").methods == ["pai"]
    assert read.of("maps").method == ""
    with pytest.raises(KeyError, match="vhr"):
        read.only("vhr")


def test_numbers_that_are_not_finite_stay_out_of_the_file() -> None:
    line = Line("x", "prefill", "failed", "differs by nan", float("nan"), 1e-4)
    made = Certificate({}, "", (line,), {}, 1.0)
    assert not made.passed
    found = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert found["lines"][0]["difference"] is None


def test_nothing_proved_is_not_passed() -> None:
    assert not Certificate({}, "", (Line("x", "prefill", "skipped"),), {}, 1.0).passed
    with pytest.raises(ValueError, match="unknown promise"):
        Line("x", "prefil", "passed")
    assert all(Line("x", promise, "passed").says for promise in PROMISES)


@pytest.mark.parametrize("text", ["[]", "{}", '{"lines": [{"method": 1}]}', "{"])
def test_other_files_are_no_certificates(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"certificate|valid JSON"):
        Certificate.load(path)
