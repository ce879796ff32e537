from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_painter
import torch
import typer
from diffusers import ControlNetModel
from PIL import Image
from tiny_pipelines import unet
from typer.testing import CliRunner, Result

from regaze.cli.animate import animate
from regaze.cli.group import Commands
from regaze.evals.pictures import grid
from regaze.evals.sandbox.video.world import clip

CLIP = clip("validation", 1, frames=3)
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.command()(animate)
app.command("other")(lambda: None)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(
        tiny_painter.shared().pipeline.unet, conditioning_embedding_out_channels=(4, 8)
    )
    folder = tmp_path_factory.mktemp("controlnet")
    net.save_pretrained(folder)
    return folder


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    folder = tmp_path / "normals"
    folder.mkdir()
    for number, frame in enumerate(CLIP.normals):
        frame.save(folder / f"{number:03d}.png")
    np.save(tmp_path / "flow.npy", CLIP.flow)
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["animate", *arguments])


def test_a_clip_of_ones_own(controlnet: Path, normals: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "clip.gif"
    result = call(
        "--model", str(tiny_painter.folder()), "--controlnet", str(controlnet),
        "--normals", str(normals), "--flow", str(tmp_path / "flow.npy"), "--prompt", "a red circle",
        "--with", "none", "--with", "flow_warp:weight=1,recursive=true", "--steps", "2",
        "--guidance", "2", "--seed", "5", "--out", str(out), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["animation"] == str(out)
    made = grid.about(Path(told["strip"]))
    titles = ["none", "flow_warp:weight=1,recursive=true"]
    assert [c["title"] for c in made["columns"]] == titles
    assert made["columns"][1]["interventions"][0]["flow"].endswith(".npz")
    assert (made["prompts"], made["seeds"]) == (["a red circle"], [5])
    assert made["pipeline"] == "StableDiffusionControlNetPipeline"
    assert made["model"]["controlnet"]["name"] == str(controlnet)
    assert made["motion"]["flow"] == str(tmp_path / "flow.npy")
    with Image.open(out) as animated:
        assert animated.n_frames == 3  # type: ignore[attr-defined]
    frames = sorted(Path(told["frames"]).glob("*/*.png"))
    assert len(frames) == 6
    with Image.open(frames[0]) as frame:
        assert frame.size == (32, 32)


def test_the_embedded_clip_needs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "clip.webp"
    given = ("--with", "none", "--with", "flow_warp", "--steps", "1", "--guidance", "1")
    result = call(*given, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert out.exists()
    assert "Strip: " in result.stdout
    again = call(*given, "--out", str(out))
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--with", "none", "--out", "clip.avi"), "must end in .gif, .webp, .mp4"),
        ((), "there is nothing to compare"),
        (("--with", "flow_wrap"), "did you mean flow_warp"),
        (("--with", "none", "--flow", "a.npy", "--estimate", "dis"), "either --flow FILE or"),
        (("--with", "none", "--flow", "a.npy"), "a.npy"),
        (("--with", "none", "--estimate", "diss"), "did you mean dis"),
        (("--with", "none", "--normals", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_what_a_clip_of_ones_own_lacks_is_said(normals: Path, tmp_path: Path) -> None:
    own = ("--normals", str(normals))
    said = call(*own, "--with", "flow_warp", "--prompt", "a").stderr
    assert "give --flow FILE or --estimate" in said
    assert "give --prompt" in call(*own, "--with", "none").stderr
    model = ("--model", str(tiny_painter.folder()))
    said = call(*own, *model, "--with", "none", "--prompt", "a").stderr
    assert "give a ControlNet" in " ".join(said.split())
    np.save(tmp_path / "short.npy", CLIP.flow[:1])
    said = call(
        *own, "--flow", str(tmp_path / "short.npy"), "-p", "a", "--with", "flow_warp"
    ).stderr
    assert "that of 2 frames, and the pipeline paints 3" in " ".join(said.split())


def test_a_controlnet_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        result = call("--with", "none", *arguments)
        assert result.exit_code == 2
        return " ".join(result.stderr.split())

    (tmp_path / "empty").mkdir()
    assert "cannot load the ControlNet" in said("--controlnet", str(tmp_path / "empty"))
    ControlNetModel.from_unet(unet()).save_pretrained(tmp_path / "other")
    other = said("--controlnet", str(tmp_path / "other"))
    assert "made for another model: it reads text of width 16" in other
    given = ("--model", "painter-mmdit", "--controlnet", "painter-controlnet")
    assert "ControlNetModel, which a StableDiffusion3Pipeline can't use" in said(*given)
