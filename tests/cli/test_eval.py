from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, evaluate, one_line

from regaze.evals import sandbox
from regaze.evals import study as studies
from regaze.evals.runs import records, store
from regaze.evals.scoring.kept import KEPT


def test_eval_prints_the_table_and_writes_all_files(model: str, tmp_path: Path) -> None:
    result = evaluate(model, tmp_path / "run", "--with", "vhr:alpha=4", "-w", "vhr+pai")
    assert result.exit_code == 0
    for part in ("POPE on prior-free scenes", "pope/official", "adversarial", "fired in"):
        assert part in result.stdout
    found = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")}
    assert found == {
        ".lock",
        KEPT,
        "report.html",
        "run.json",
        "scores.json",
        *(
            f"{condition}/{file}"
            for condition in ("none", "vhr_alpha=4", "vhr+pai")
            for file in (store.MANIFEST, records.PREDICTIONS)
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
    assert "gone.png" in result.stdout.replace("\n", "")  # A long path is broken anywhere.
    assert "3 of 4 items are scored" in result.stdout


def test_a_folder_without_the_images_is_refused_before_the_first_question(
    model: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "coco_pope_random.json"
    questions = [
        {"question_id": i, "image": f"{i}.png", "text": "Is there a red star?", "label": "yes"}
        for i in (1, 2)
    ]
    file.write_text("\n".join(map(json.dumps, questions)))
    result = call(
        *("eval", "pope", "--model", model, "--data", str(file), "--images", str(empty)),
        *("--out", str(tmp_path / "run")),
    )
    assert result.exit_code == 2
    said = f"none of the 2 images can be read; the first: there is no image {empty / '1.png'}"
    assert said in one_line(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("args", [("eval", "pope"), ("analyse", "heads", "--layer", "99")])
def test_what_a_model_refuses_leaves_no_folder(
    args: tuple[str, ...], model: str, tmp_path: Path
) -> None:
    more = ("--with", "vhr:layers=[99]") if args[0] == "eval" else ()
    given = ("--model", model, "--split", "validation", "--limit", "12")
    result = call(*args, *more, *given, "--out", str(tmp_path / "runs" / "run"))
    assert result.exit_code == 2
    assert "layers holds 99" in one_line(result)
    assert list(tmp_path.iterdir()) == []


def sandbox_image() -> Any:
    from regaze.evals.sandbox.tasks import load_image

    return load_image("test/00000")


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

    monkeypatch.setattr(studies, "study", interrupt)
    result = evaluate(model, tmp_path)
    assert result.exit_code == 130
    assert "the same command carries on" in one_line(result)
