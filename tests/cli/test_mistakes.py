"""Mistakes of users: one clear line each, exit code 2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import call, one_line

from regaze.evals import sandbox
from regaze.evals.asking import models
from regaze.evals.pictures import pipelines


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "pop"], "unknown benchmark 'pop'; did you mean pope"),
        (["eval", "image"], "unknown benchmark 'image'; did you mean regaze eval images?"),
        (["eval", "pope", "--with", "vrh"], "unknown intervention 'vrh'; did you mean vhr"),
        (["eval", "POPE"], "unknown benchmark 'POPE'; did you mean pope?"),
        (["eval", "pope", "--with", "VHR"], "unknown intervention 'VHR'; did you mean vhr?"),
        (["eval", "pope", "--with", "vhr alpha=2"], "did you mean vhr?"),
        (["ask", "--prompt", "x", "--with", "vhr:layers=[1.5]"], "must hold whole numbers such as"),
        (["eval", "pope", "--model", "sandbx"], "unknown model 'sandbx'; did you mean sandbox"),
        (["eval", "pope", "--model", ""], "--model is empty"),
        (["eval", "pope", "--model", "painter-unet"], "`regaze eval images` scores pictures"),
        (["analyse", "heads", "--model", "sandbx"], "did you mean sandbox"),
        (["eval", "pope", "--out", ""], "--out is empty"),
        (["eval", "pope", "--out="], "--out is empty"),
        (["build", "pope", "--images", ""], "--images is empty"),
        (["compare", "-o", ""], "-o is empty"),
        (["compare", "--prompt", "x", "--with", "a_star"], "none are named: set tokens to words"),
        (["compare", "--prompt", "x", "--with", "reweight"], "none are given: set words"),
        (["eval", "images", "--with", "regions"], "none are given: set regions to pairs of a box"),
        (["eval", "pope", "--split="], "--split is empty"),
        (["show", ""], "an argument is empty"),
        (["sites", "--model", "sandbox"], "sandbox answers questions: name a pipeline"),
        pytest.param(
            ["serve", "--model", "painter-unet"],
            "painter-unet paints: name a model that answers",
            marks=pytest.mark.skipif(find_spec("starlette") is None, reason="needs Starlette"),
        ),
        (["eval", "video", "--controlnet", "nope"], "--controlnet: there is no folder nope"),
        (["ask", "--prompt", "x", "--image", "."], "--image . can't be read: Is a directory"),
        (["compare", "--prompt", "x", "--with", "pag:scale=x"], "must be a finite number, got 'x'"),
        (["eval", "pope", "--with", "vhr:alfa=2"], "did you mean alpha?"),
        (["eval", "pope", "--with", "vhr:alpha=-1"], "alpha must be"),
        (["eval", "pope", "--model", "x/y"], "--data is missing"),
        (["eval", "pope", "--data", "no.json"], "no file or folder no.json"),
        (["eval", "pope", "--data", "lmms-lab/POPE"], "pip install 'regaze[hub]'"),
        (["eval", "pope", "--split", "tset"], "did you mean test"),
        (["eval", "pope", "--profile", "offical"], "did you mean official?"),
        (["eval", "chair", "--profile", "opera"], "only the profile 'exact'"),
        (["eval", "pope", "--limit", "1"], "a single image"),
        (["discover", "heads-lvlm", "adh", "--model", "x/y"], "did you mean adhh"),
        (["discover", "heads-lvlm", "pai"], "it has no field heads"),
        (["discover", "heads-lvlm", "pasta"], "points at a part of the prompt, and none is given"),
        (["discover", "heads-lvlm", "headscale"], "headscale changes nothing as it is given"),
        (["discover", "heads-lvlm", "adhh", "chair", "--by", "margin"], "ask pope"),
        (["discover", "heads-lvlm", "adhh", "--by", "attribution"], "ask chair, not pope"),
        (["ask", "--prompt", "x", "--with", "headscale"], "headscale changes nothing as it is"),
        (["ask", "--prompt", "x", "--with", "pai+steer"], "steer changes nothing as it is given"),
        (["eval", "pope", "--with", "headablate"], "headablate changes nothing as it is given"),
        (["verify", "--with", "logitbias"], "logitbias changes nothing as it is given"),
        (["measure", "vas", "--with", "columnscale"], "columnscale changes nothing as it is"),
        (["eval", "places", "--with", "regions"], "none are given: set regions"),
        (["ask", "--prompt", "x", "--with", "adhh"], "acts on listed heads, and none are given"),
        (["eval", "pope", "--with", "highlight"], "points at a part of the prompt"),
        (["measure", "vas", "--prompt", ""], "--prompt is empty"),
        (["eval", "pope", "--batch-size", "many"], "a number of items or auto, got 'many'"),
        (["eval", "pope", "--seeds", "3"], "only differ if a temperature is given"),
        (["eval", "pope", "--num-beams", "2", "--temperature", "1"], "exclude each other"),
        (["compare-runs", ".", "."], "holds no run"),
        (["show", "."], "holds no run"),
        (["show", "runs/pope"], "there is no runs/pope"),
        (["compare-runs", ".", "nope"], "holds no run"),
    ],
)
def test_mistakes_are_one_clear_line(
    args: list[str],
    message: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "model_path", lambda name: Path(model))
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert one_line(result).startswith("error: ")
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evall"], "eval"),
        (["eval", "pope", "--modle", "x"], "--model"),
        (["discover", "x"], "x"),
        (["eval", "images", "--n-prompts", "99999999"], "--n-prompts"),
    ],
)
def test_unknown_commands_and_options_suggest_the_nearest(args: list[str], message: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert message in one_line(result)


def test_debug_shows_where_it_came_from() -> None:
    result = call("--debug", "eval", "pop")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ask", "--prompt", "x", "--with", "pasta"], "points at a part of the prompt"),
        (["eval", "pope", "--with", "adhh"], "acts on listed heads, and none are given"),
        (["eval", "pope", "--with", "highlight", "--with", "all"], "points at a part"),
        (["discover", "heads-lvlm", "pasta"], "points at a part of the prompt"),
        (["discover", "heads-lvlm", "adhh", "chair", "--by", "margin"], "ask pope"),
        (["compare", "--prompt", "x", "--with", "regions"], "none are given: set regions"),
    ],
)
def test_what_no_model_could_run_is_refused_before_one_is_loaded(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", loaded)
    monkeypatch.setattr(pipelines, "load", loaded)
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert list(tmp_path.iterdir()) == []
