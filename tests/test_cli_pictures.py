from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tiny_painter
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from regaze import cli_images, cli_pictures
from regaze.cli_common import Commands
from regaze.cli_pipelines import spread
from regaze.evals.pictures import grid
from regaze.interventions.diffusion.soft_pag import SoftPAG

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
for command in (cli_pictures.compare, cli_pictures.sites, cli_images.images, cli_images.heads):
    app.command()(command)


@dataclass(frozen=True)
class Group:
    word: Annotated[str, typer.Option("--say")] = "nothing"
    often: int = 1


QUICK = ("--steps", "2", "--guidance", "2")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def on_tiny(command: str, *arguments: str) -> Result:
    return call(command, "--model", str(tiny_painter.folder()), *arguments)


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


def test_sites_name_the_layers_as_head_lists_do() -> None:
    result = on_tiny("sites", "--json")
    found = json.loads(result.stdout)
    assert [site["layer"] for site in found if site["kind"] == "self"] == [0, 1, 2, 3]
    assert {site["heads"] for site in found} == {2}
    assert "L3" in on_tiny("sites").stdout


def test_a_group_of_options_is_spread_over_a_command() -> None:
    heard: list[tuple[Group, bool]] = []

    @spread
    def command(group: Group, loud: bool = False) -> None:
        heard.append((group, loud))

    alone = typer.Typer()
    alone.command()(command)
    result = CliRunner().invoke(alone, ["--say", "this", "--loud"])
    assert result.exit_code == 0, result.output
    assert heard == [(Group("this", 1), True)]


def test_images_are_painted_scored_and_kept(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue cross\n")
    out = tmp_path / "run"
    given = ("--prompts", str(prompts), "--with", "pag:scale=5", *QUICK, "--seeds", "2")
    result = on_tiny("images", *given, "--score", "painting", "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    (task,) = json.loads(result.stdout)["tasks"]
    assert [c["label"] for c in task["conditions"]] == ["none", "pag:scale=5"]
    assert (task["scored"], task["clusters"]) == (4, 2)
    assert len(list((out / "pag_scale=5" / "images").glob("*.png"))) == 4
    assert (out / "samples.png").exists()
    assert "pag:scale=5" in (out / "report.html").read_text()
    again = on_tiny("images", *given, "--score", "psnr", "--out", str(out))
    assert again.exit_code == 0, again.stderr
    assert "psnr" in again.stdout
    one = on_tiny("images", "--prompt", "a red circle", "--score", "painting")
    assert "at least two prompts" in one.stderr.replace("\n", " ")


def test_heads_leaves_a_spec_and_a_picture(tmp_path: Path) -> None:
    given = ("--prompt", "a red circle", "--layer", "1", "--picks", "1", *QUICK)
    result = on_tiny("heads", *given, "--out", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    spec = SoftPAG.from_file(tmp_path / "softpag.json")
    assert spec.label in result.stdout
    assert (tmp_path / "heads.png").exists()
    bad = on_tiny("heads", "--prompt", "a red circle", "--objective", "psnr")
    assert "can't be an objective" in bad.stderr.replace("\n", " ")
