"""The script and the command of a run do what the run did."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from PIL import Image

import regaze
from regaze.evals.play import recipes
from regaze.evals.play.following import Job
from regaze.evals.play.models import Shelf
from regaze.evals.play.running import Request, run
from regaze.evals.runs.conditions import Condition
from regaze.evals.sandbox.scenes import scene

SHELF = Shelf()
STEPS = {"num_inference_steps": 2, "negative_prompt": "a 'blue' star"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(script: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(script, "recipe.py", "exec"), {"__name__": "__main__"})
    return said.getvalue()


def as_command(line: str) -> list[str]:
    name, *words = shlex.split(line)
    assert name == "regaze"
    return words


@pytest.mark.parametrize(
    "specs",
    [
        (regaze.VHR(alpha=3.0, layers=(2, 3)),),
        (regaze.PAI(alpha=0.9), regaze.VAF(enhance=1.6)),
        (regaze.CARVE(top=0.5),),
    ],
)
def test_a_question(specs: tuple[regaze.Intervention, ...], here: Path) -> None:
    picture = scene("test", 5).image
    request = Request("sandbox", "Is there a \"red\" star? 'No'.", specs, picture, max_new_tokens=9)
    result = run(SHELF, request, Job())
    picture.save(recipes.PICTURE)
    said = executed(recipes.python(request, False))
    assert said == f"{result.answers[1].text}\n{result.report}\n"
    told = call(*as_command(recipes.command(request, False)))
    assert told.exit_code == 0, told.output
    plain, edited = (one.text for one in result.answers)
    label = "+".join(spec.label for spec in specs)
    assert told.stdout == f"none: {plain}\n{label}: {edited}\n{result.report}\n"


def test_a_painting(here: Path) -> None:
    specs = (regaze.PAG(scale=2.5, layers=("mid",)),)
    request = Request("painter-unet", "a red circle's star", specs, seed=7, arguments=STEPS)
    result = run(SHELF, request, Job())
    said = executed(recipes.python(request, True))
    assert said == f"{result.report}\n"
    edited = result.answers[1].picture
    assert edited is not None and Image.open("edited.png").tobytes() == edited.tobytes()
    told = call(*as_command(recipes.command(request, True)))
    assert told.exit_code == 0, told.output
    grid = np.asarray(Image.open("grid.png"))
    assert all(_holds(grid, np.asarray(one.picture)) for one in result.answers)


def _holds(whole: np.ndarray, part: np.ndarray) -> bool:  # type: ignore[type-arg]
    """True if a picture stands in a larger one, maybe enlarged by a whole factor."""
    for factor in range(1, 17):
        large = part.repeat(factor, 0).repeat(factor, 1)
        height, width = large.shape[:2]
        corners = np.argwhere((whole == large[0, 0]).all(-1))
        for y, x in corners[:4000]:
            cut = whole[y : y + height, x : x + width]
            if cut.shape == large.shape and (cut == large).all():
                return True
    return False


def test_own_methods_and_words_that_need_quotes(here: Path, own_methods: None) -> None:
    hard = (regaze.ICD(prefix='a, "b" +c @blank [x', alpha=2.0), regaze.VHR())
    text = recipes.condition(hard)
    assert Condition.parse(text).specs == hard
    file = here / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    regaze.interventions.plugins.load_file(file)  # type: ignore[attr-defined]
    request = Request("sandbox", "Describe the image.", (regaze.parse("mine:alpha=3"),))
    script = recipes.python(request, False, [file])
    assert f"load_file(Path({str(file)!r}))" in script and 'regaze.get("mine")(alpha=3)' in script
    compile(script, "recipe.py", "exec")
    assert as_command(recipes.command(request, False, [file]))[:3] == ["--load", str(file), "ask"]


OWN = """
from dataclasses import dataclass
from regaze.interventions import VHR, register


@register
@dataclass(frozen=True)
class Mine(VHR):
    name = "mine"
"""


def test_what_a_command_cannot_say_is_said() -> None:
    with pytest.raises(ValueError, match="can't be written in a command; use Python"):
        recipes.condition((regaze.ICD(prefix="ends in a backslash, \\"),))
