from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import QUICK, on_tiny
from PIL import Image

from regaze.evals.pictures import grid


def test_compare_writes_a_grid_that_says_how_it_was_made(tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    given = ("--prompt", "a red circle", "--with", "none", "--sweep", "softpag.u=0,1")
    result = on_tiny("compare", *given, *QUICK, "--seeds", "2", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    made = grid.about(out)
    assert [c["title"] for c in made["columns"]] == ["none", "softpag:u=0", "softpag:u=1"]
    assert (made["prompts"], made["seeds"]) == (["a red circle"], [0, 1])
    assert made["settings"]["num_inference_steps"] == 2
    with Image.open(out) as image:
        assert image.width > 3 * 192
    result = on_tiny("compare", *given, *QUICK, "--seeds", "2", "--out", str(out), "--json")
    assert json.loads(result.stdout) == {"grid": str(out), **grid.about(out)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--with", "none"), "give what to paint"),
        (("-p", "a", "--prompts", "b", "--with", "none"), "give what to paint"),
        (("-p", "a"), "there is nothing to compare"),
        (("-p", "a", "--with", "none", "--seeds", "many"), "--seeds 'many': give a number"),
        (("-p", "a", "--with", "none", "--seeds", "1,1"), "all different"),
        (("-p", "a", "--with", "none", "--seeds", "0"), "at least one"),
        (("-p", "a", "--with", "none", "--size", "512"), "expected WIDTHxHEIGHT"),
        (("-p", "a", "--with", "none", "--set", "eta"), "expected NAME=VALUE"),
        (("-p", "a", "--with", "none", "--set", "etta=1"), "did you mean eta"),
        (("-p", "a", "--with", "none", "--out", "grid.jpg"), "must name a .png"),
        (
            ("-p", "a red circle", "--with", "none", "--steps", "1", "--gif"),
            "makes single pictures",
        ),
        (("-p", "a", "--with", "pag:layers=[9]"), "there is no layer 9"),
        (("-p", "a", "--with", "pag:scale=NaN"), "scale must be a finite number"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = on_tiny("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
