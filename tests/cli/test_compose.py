from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import QUICK, call, on_tiny
from PIL import Image

from regaze.evals.pictures import grid

PROMPT = ("-p", "a red circle and a blue square")


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    """A background, and a transparent picture of an object."""
    Image.new("RGB", (32, 32), (40, 40, 44)).save(tmp_path / "ground.png")
    thing = np.zeros((16, 16, 4), np.uint8)
    thing[4:12, 4:12] = (50, 85, 215, 255)
    Image.fromarray(thing).save(tmp_path / "thing.png")
    names = {"--background": "ground.png", "--object": "thing.png"}
    return tuple(str(x) for option, name in names.items() for x in (option, tmp_path / name))


def test_compose_writes_a_strip_and_every_picture(
    tmp_path: Path, pictures: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "strip.png"
    given = (*PROMPT, *pictures, "--box", "0.5,0.5,1,1", "--subject", "blue square")
    with_ = ("--with", "none", "--with", "primecomposer:invert=empty")
    result = on_tiny("compose", *given, *with_, *QUICK, "--seeds", "2", "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    said, kept = json.loads(result.stdout), grid.about(out)
    assert said["strip"] == str(out)
    assert kept["box"] == [0.5, 0.5, 1.0, 1.0]
    (spec,) = kept["columns"][1]["interventions"]
    assert (spec["name"], spec["subject"]) == ("primecomposer", ["blue square"])
    made: dict[str, Any] = {p.name: Image.open(p) for p in (tmp_path / "strip").iterdir()}
    assert len(made) == 2 + 2 * 2
    # Pasted is what was put there, pixel by pixel, in the middle of the box.
    assert made["pasted.png"].getpixel((24, 24)) == (50, 85, 215)
    assert made["pasted.png"].getpixel((8, 8)) == (40, 40, 44)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "strip.jpg"), "must name a .png"),
        (("--box", "1,2"), "give left,top,right,bottom"),
        (("--box", "0.5,0,0.2,1"), "in shares of the picture"),
        (("--object", "none.png"), "there is no object 'none.png'"),
        (("--subject", "star"), "'star' isn't in the prompt"),
        (("--with", "pag:scale=x"), "scale must be"),
        (("--size", "48x32"), "crop it to the same proportions"),
    ],
)
def test_mistakes_are_said_in_one_line(
    pictures: tuple[str, ...], arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "x.png"))
    box = ("--box", "0,0,0.5,0.5")
    result = on_tiny("compose", *PROMPT, *pictures, *out, *box, *QUICK, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_the_default_pipeline_is_one_that_primecomposer_acts_on(
    pictures: tuple[str, ...], tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "x.png"))
    result = call("compose", *PROMPT, *pictures, *out, *QUICK, "--seeds", "1")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "x.png").is_file()
