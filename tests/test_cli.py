from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy import save_toy_model
from typer.testing import CliRunner, Result

from regaze import cli, cli_eval
from regaze.evals import sandbox
from regaze.evals.runs import records
from regaze.interventions import names


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy_model(tmp_path_factory.mktemp("models") / "toy"))


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.app, args)


def evaluate(model: str, out: Path, *args: str, images: int = 6) -> Result:
    fixed = ["--split", "test", "--n-images", str(images), "--max-new-tokens", "4"]
    return call("eval", "pope", "--model", model, "--out", str(out), *fixed, *args)


def test_list_names_every_method_and_benchmark() -> None:
    result = call("list")
    assert result.exit_code == 0
    for name in (*names(), "pope", "chair", "arXiv 2305.10355", *sandbox.MODELS):
        assert name in result.stdout


def test_eval_prints_the_table_and_writes_all_files(model: str, tmp_path: Path) -> None:
    result = evaluate(model, tmp_path / "run", "--with", "vhr:alpha=4", "-w", "vhr+pai")
    assert result.exit_code == 0
    for part in ("POPE on prior-free scenes", "pope/official", "adversarial", "fired in"):
        assert part in result.stdout
    found = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")}
    assert found == {
        ".lock",
        "report.html",
        "run.json",
        "scores.json",
        *(
            f"{condition}/{file}"
            for condition in ("none", "vhr_alpha=4", "vhr+pai")
            for file in (records.MANIFEST, records.PREDICTIONS)
        ),
    }
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["tasks"][0]
    assert (scores["asked"], scores["scored"], scores["clusters"]) == (36, 36, 6)
    assert [c["label"] for c in scores["conditions"]] == ["none", "vhr:alpha=4", "vhr+pai"]


def test_both_test_splits_of_the_sandbox_are_reported_apart(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "model_path", lambda name: Path(model))
    out = tmp_path / "run"
    result = call(
        *("eval", "chair", "--n-images", "3", "--max-new-tokens", "4", "--out", str(out), "--json")
    )
    assert result.exit_code == 0, result.output
    tasks = json.loads(result.stdout)["tasks"]
    assert [task["title"] for task in tasks] == [
        "CHAIR on prior-free scenes",
        "CHAIR on scenes that follow the prior",
    ]
    assert (out / "test" / "scores.json").exists()
    assert (out / "test-prior" / "scores.json").exists()
    assert json.loads((out / "scores.json").read_text())["tasks"] == tasks
    assert (out / "report.html").exists()


def test_limit_takes_that_many_items_over_all_groups(model: str, tmp_path: Path) -> None:
    result = evaluate(model, tmp_path, "--limit", "20", "--json")
    (task,) = json.loads(result.stdout)["tasks"]
    assert task["asked"] == 20
    assert 2 <= task["clusters"] < 6
    assert list(task["conditions"][0]["score"]["groups"]) == ["random", "popular", "adversarial"]


def test_controls_are_asked_too_and_named(model: str, tmp_path: Path) -> None:
    result = evaluate(model, tmp_path, "-w", "vhr:alpha=4", "--controls", "--json", images=2)
    (task,) = json.loads(result.stdout)["tasks"]
    assert [(c["label"], c["control"]) for c in task["conditions"]] == [
        ("none", None),
        ("vhr:alpha=4", None),
        ("none@wrong", "wrong image"),
        ("none@blank", "blank image"),
        ("vhr:alpha=4,heads=random", "random heads"),
        ("vhr:alpha=4,heads=bottom", "bottom heads"),
    ]
    assert "auc" in task["conditions"][1]["change"]["groups"]["random"]["metrics"]


def test_sampled_answers_come_with_their_spread(model: str, tmp_path: Path) -> None:
    args = ("--temperature", "1.5", "--seeds", "2", "--no-share-prefix", "--json")
    result = evaluate(model, tmp_path, *args, images=2)
    (task,) = json.loads(result.stdout)["tasks"]
    assert task["seeds"] == 2
    metrics = task["conditions"][0]["score"]["groups"]["random"]
    assert len(metrics["words"]["seeds"]["values"]) == 2
    # Margins are there before anything is drawn.
    assert metrics["auc"]["seeds"] is None


def test_a_markdown_table_to_paste(model: str, tmp_path: Path) -> None:
    done = evaluate(model, tmp_path, "-w", "vhr:alpha=4", "--markdown", images=2)
    assert done.stdout.startswith("**POPE on prior-free scenes** (`pope/official`; 12 items")
    assert "| `vhr:alpha=4` |" in done.stdout
    assert call("show", str(tmp_path), "--markdown").stdout == done.stdout


def test_runs_made_apart_are_compared_if_they_fit(model: str, tmp_path: Path) -> None:
    a, b, other = (str(tmp_path / name) for name in ("a", "b", "other"))
    for out, *args in ((a,), (b, "-w", "vhr:alpha=4", "--batch-size", "auto")):
        assert evaluate(model, Path(out), *args, images=2).exit_code == 0
    evaluate(model, Path(other), "--num-beams", "2", images=2)
    found = call("compare-runs", a, b, "--json")
    assert found.exit_code == 0, found.output
    compared = json.loads(found.stdout)
    labels = [c["label"] for c in compared["tasks"][0]["conditions"]]
    assert labels == ["A: none", "B: none", "B: vhr:alpha=4"]
    assert 'batch_size: 8 in A, "auto" in B' in compared["differences"]
    shown = call("compare-runs", a, b)
    assert "B: vhr:alpha=4" in shown.stdout
    assert "differs: batch_size" in one_line(shown)
    refused = call("compare-runs", a, other)
    assert refused.exit_code == 2
    assert "num_beams" in one_line(refused)


def test_show_scores_a_finished_run_again(model: str, tmp_path: Path) -> None:
    done = evaluate(model, tmp_path, "-w", "vhr:alpha=4", "--json")
    shown = call("show", str(tmp_path), "--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == json.loads(done.stdout)
    other = call("show", str(tmp_path), "--profile", "vcd", "--profile", "opera", "--json")
    assert [task["profile"] for task in json.loads(other.stdout)["tasks"]] == ["vcd", "opera"]


def test_show_scores_what_a_running_run_has_so_far(model: str, tmp_path: Path) -> None:
    evaluate(model, tmp_path, "-w", "vhr:alpha=4")
    path = tmp_path / "vhr_alpha=4" / records.PREDICTIONS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:9])
    (task,) = json.loads(call("show", str(tmp_path), "--json").stdout)["tasks"]
    assert (task["asked"], task["scored"]) == (36, 20)


def test_the_same_command_carries_on_and_other_settings_are_refused(
    model: str, tmp_path: Path
) -> None:
    evaluate(model, tmp_path)
    path = tmp_path / "none" / records.PREDICTIONS
    whole = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    assert evaluate(model, tmp_path).exit_code == 0
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == whole
    result = evaluate(model, tmp_path, "--batch-size", "5")
    assert result.exit_code == 2
    assert "batch_size: 8 there, 5 now" in result.stderr
    assert "--out" in result.stderr


def test_an_intervention_that_never_fires_fails_the_command_but_not_the_others(
    model: str, tmp_path: Path
) -> None:
    result = evaluate(model, tmp_path, "-w", "var:sink_dims=[0],tau=1", "-w", "vhr:alpha=4")
    assert result.exit_code == 1
    assert "never fired, so not reported: var:tau=1,sink_dims=[0]" in one_line(result)
    assert "vhr:alpha=4" in result.stdout
    assert "NEVER FIRED" in result.stdout


def test_question_files_and_missing_images(model: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    sandbox_image().save(images / "a.png")
    sandbox_image().save(images / "b.png")
    questions = [
        {"question_id": i, "image": name, "text": "Is there a red star?", "label": "yes"}
        for i, name in enumerate(["a.png", "a.png", "b.png", "gone.png"], 1)
    ]
    file = tmp_path / "coco_pope_random.json"
    file.write_text("\n".join(map(json.dumps, questions)))
    out = str(tmp_path / "run")
    result = call(
        *("eval", "pope", "--model", model, "--data", str(file), "--images", str(images)),
        *("--out", out),
    )
    assert result.exit_code == 0
    assert "1 items have no answer" in result.stdout
    assert "gone.png" in result.stdout
    assert "3 of 4 items are scored" in result.stdout


def sandbox_image() -> Any:
    from regaze.evals.sandbox.tasks import load_image

    return load_image("test/00000")


def test_sinks_are_discovered_and_given_as_a_spec(model: str) -> None:
    none = call("discover", "sinks", "--model", model)
    assert none.exit_code == 0
    assert "no sink dimensions" in none.stdout
    found = json.loads(call("discover", "sinks", "-m", model, "--tau", "0.05", "--json").stdout)
    assert found["sink_dims"]
    assert re.fullmatch(r"var:sink_dims=\[[\d,]+\],tau=0\.05", found["spec"])


def test_the_demo_compares_on_both_benchmarks_and_ends_with_the_report(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "model_path", lambda name: Path(model))
    monkeypatch.setattr(cli_eval, "_DEMO", ("none", "vhr:alpha=4"))
    monkeypatch.setattr(cli_eval, "_DEMO_CONTROLS", ("none@blank",))
    monkeypatch.setattr(cli_eval, "_DEMO_IMAGES", {"pope": 2, "chair": 3})
    monkeypatch.chdir(tmp_path)
    result = call("demo")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "runs" / "demo" / "report.html")
    assert result.stdout.count("vhr:alpha=4") == 4
    monkeypatch.setattr(cli_eval, "_DEMO_IMAGES", {"chair": 2})
    again = call("demo")
    assert again.exit_code == 0, again.output
    assert "was made by another version; moved to" in one_line(again)
    assert len(list((tmp_path / "runs").iterdir())) == 2


# What users get wrong: one clear line each, exit code 2.


def one_line(result: Result) -> str:
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "pop"], "unknown benchmark 'pop'; did you mean pope"),
        (["eval", "pope", "--with", "vrh"], "unknown intervention 'vrh'; did you mean vhr"),
        (["eval", "pope", "--with", "vhr:alfa=2"], "did you mean alpha?"),
        (["eval", "pope", "--with", "vhr:alpha=-1"], "alpha must be"),
        (["eval", "pope", "--model", "x/y"], "--data is missing"),
        (["eval", "pope", "--data", "no.json"], "no file or folder no.json"),
        (["eval", "pope", "--data", "lmms-lab/POPE"], "pip install 'regaze[hub]'"),
        (["eval", "pope", "--split", "tset"], "did you mean test"),
        (["eval", "pope", "--profile", "offical"], "did you mean official?"),
        (["eval", "chair", "--profile", "opera"], "only the profile 'exact'"),
        (["eval", "pope", "--limit", "1"], "a single image"),
        (["eval", "pope", "--batch-size", "many"], "a number of items or auto, got 'many'"),
        (["eval", "pope", "--seeds", "3"], "only differ if a temperature is given"),
        (["eval", "pope", "--num-beams", "2", "--temperature", "1"], "exclude each other"),
        (["compare-runs", ".", "."], "holds no run"),
        (["show", "."], "holds no run"),
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
    [(["evall"], "eval"), (["eval", "pope", "--modle", "x"], "--model"), (["discover", "x"], "x")],
)
def test_unknown_commands_and_options_suggest_the_nearest(args: list[str], message: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert message in one_line(result)


def test_debug_shows_where_it_came_from() -> None:
    result = call("--debug", "eval", "pop")
    assert isinstance(result.exception, ValueError)


def test_a_directory_that_cannot_be_written_is_one_line(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = evaluate(model, tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "cannot write" in one_line(result)


def test_an_interrupt_says_how_to_go_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_eval, "study", interrupt)
    result = evaluate(model, tmp_path)
    assert result.exit_code == 130
    assert "the same command carries on" in one_line(result)
