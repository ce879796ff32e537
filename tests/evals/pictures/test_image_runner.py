from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_painter
from PIL import Image
from ranks import together

from regaze.evals.pictures import grid, runner, study, work
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.render import NOISE, Painter, Picture, Shot
from regaze.evals.pictures.stored import PictureSource, open_run, read_source
from regaze.evals.pictures.task import open_picture
from regaze.evals.reports.report import write_report
from regaze.evals.runs import files, records, results, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.store import ConfigMismatchError
from regaze.evals.sandbox.painting import scenes
from regaze.evals.sandbox.painting.prompts import parse
from regaze.evals.scoring.compare import to_json
from regaze.evals.task import POOLED

PROMPTS = (
    Prompt("a", "a red circle", "one"),
    Prompt("b", "a blue cross and a green square", "two"),
    Prompt("c", "a white triangle", "one"),
)
PLAN = PictureSource(PROMPTS, (0, 1), ("painting", "psnr"))
PAG = ("none", "pag:scale=5")


def run(
    out: Path,
    *conditions: str,
    plan: PictureSource = PLAN,
    loaded: LoadedPipeline | None = None,
    **options: Any,
) -> RunResult:
    arguments = options.pop("arguments", tiny_painter.CALL)
    return runner.run(
        plan.task,
        loaded or tiny_painter.shared(),
        [Condition.parse(text) for text in conditions or PAG],
        arguments,
        out=out,
        source=plan.to_dict(),
        **{"batch_size": 4, **options},
    )


def contents(out: Path) -> dict[str, list[Any]]:
    """The contents of a run's conditions: answers without their times, and pixels."""
    found: dict[str, list[Any]] = {}
    for path in sorted(out.glob(f"*/{records.PREDICTIONS}")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pixels = [open_picture(path.parent / row["text"]).tobytes() for row in rows]
        found[path.parent.name] = [
            (row["id"], row["cluster"], row["text"], pixel)
            for row, pixel in zip(rows, pixels, strict=True)
        ]
    return found


def painting_only(seeds: tuple[int, ...] = (0, 1)) -> PictureSource:
    return PictureSource(PROMPTS, seeds, ("painting",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run(out)
    study.score(out)
    return out


def test_every_condition_paints_every_prompt_with_every_seed(finished: Path) -> None:
    found = contents(finished)
    ids = [f"{prompt.id}/{seed}" for prompt in PROMPTS for seed in (0, 1)]
    assert {folder: [row[0] for row in rows] for folder, rows in found.items()} == {
        "none": ids,
        "pag_scale=5": ids,
    }
    (alone,) = Painter(tiny_painter.shared().pipeline, tiny_painter.CALL).paint(
        [Shot("a white triangle", 1)]
    )
    kept = Image.open(finished / "none" / "images" / "c_1.png")
    assert max(abs(a - b) for a, b in zip(kept.tobytes(), alone.image.tobytes(), strict=True)) <= 1


def test_the_manifest_says_how_they_were_made_and_that_the_method_acted(finished: Path) -> None:
    manifest = files.read_json(finished / "pag_scale=5" / store.MANIFEST)
    config = manifest["config"]
    assert config["noise_seeds"] == [0, 1]
    assert config["decoding"]["guidance_scale"] == 2.0
    assert config["interventions"][0]["scale"] == 5
    assert config["noise"] == NOISE
    assert manifest["counts"]["answered"] == 6
    assert manifest["sessions"][-1]["firing"]["fired"]


def test_scores_are_those_of_the_pictures_with_prompts_as_clusters(finished: Path) -> None:
    (scores,) = open_run(finished).scored().scores
    assert (scores.scored, scores.clusters) == (6, 3)
    assert [section.title for section in scores.sections][:2] == ["one", "two"]
    pooled = next(section for section in scores.sections if section.title == POOLED)
    none, pag = pooled.rows
    assert none.condition.label == "none"
    assert pag.change is not None
    assert set(none.metrics) == {"right", "found", "missing", "leaked", "swapped", "malformed",
                                 "extra", "relation", "unwanted", "psnr"}  # fmt: skip
    lines = (finished / "pag_scale=5" / "scores" / "psnr.jsonl").read_text().splitlines()
    values = [json.loads(line)["counts"]["psnr"] for line in lines[1:]]
    assert pag.metrics["psnr"].value == pytest.approx(sum(values) / 6)


def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path, finished: Path) -> None:
    class Killed(Exception):
        pass

    def stop_after(steps: int) -> Callable[[str, int, int], None]:
        def step(label: str, done: int, total: int) -> None:
            nonlocal steps
            steps -= 1
            if not steps:
                raise Killed

        return step

    for steps in (2, 3, 4):
        with pytest.raises(Killed):
            run(tmp_path, progress=stop_after(steps))
    predictions = tmp_path / "none" / records.PREDICTIONS
    predictions.write_bytes(predictions.read_bytes() + b'{"id": "cut')
    run(tmp_path)
    assert contents(tmp_path) == contents(finished)


def test_scoring_goes_on_where_it_stopped_and_begins_anew_with_another_scorer(
    tmp_path: Path,
) -> None:
    run(tmp_path, "none", plan=painting_only())
    first = to_json(study.score(tmp_path).scores)
    path = tmp_path / "none" / "scores" / "painting.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"id"')
    assert to_json(study.score(tmp_path).scores) == first
    assert path.read_text() == whole
    path.write_text(whole.replace('"scorer": "', '"scorer": "other'))
    assert to_json(study.score(tmp_path).scores) == first
    assert path.read_text() == whole


def test_pictures_of_other_settings_are_never_mixed(finished: Path) -> None:
    with pytest.raises(ConfigMismatchError, match=r"guidance_scale: 2\.0 there, 3\.0 now"):
        run(finished, arguments={**tiny_painter.CALL, "guidance_scale": 3.0})
    with pytest.raises(ConfigMismatchError, match="noise_seeds"):
        run(finished, plan=painting_only((0, 2)))


def test_a_run_whose_noise_followed_another_rule_is_not_continued(tmp_path: Path) -> None:
    run(tmp_path, "none", plan=painting_only())
    path = tmp_path / "none" / store.MANIFEST
    manifest = files.read_json(path)
    del manifest["config"]["noise"]
    files.write_json(path, manifest)
    with pytest.raises(ConfigMismatchError, match="noise: null there"):
        run(tmp_path, "none", plan=painting_only())


def test_each_picture_says_from_which_noise_it_was_painted(finished: Path) -> None:
    assert grid.about(finished / "pag_scale=5" / "images" / "c_1.png") == {
        "condition": "pag:scale=5",
        "prompt": "a white triangle",
        "seed": 1,
        "noise_seed": Shot("a white triangle", 1).noise_seed,
    }


def test_the_report_shows_flipped_pictures_of_both_conditions(tmp_path: Path) -> None:
    """Two blank pictures are made right by hand, one without and one with the method."""
    run(tmp_path, plan=painting_only())
    for condition, name in (("none", "a_0"), ("pag_scale=5", "b_1")):
        for other in ("none", "pag_scale=5"):
            Image.new("RGB", (32, 32)).save(tmp_path / other / "images" / f"{name}.png")
        right = scenes.right_picture(parse(PROMPTS[name == "b_1"].text)).image
        right.save(tmp_path / condition / "images" / f"{name}.png")
    finished = study.score(tmp_path)
    assert finished.scores[0].conditions[1].change is not None
    write_report(tmp_path / "report.html", [finished])
    page = (tmp_path / "report.html").read_text()
    cards = [part.partition("</article>")[0] for part in page.split("<article")[1:]]
    lost, gained = (next(c for c in cards if f"<small>{key}<" in c) for key in ("a/0", "b/1"))
    for card, before, after in (
        (lost, "1 of 1 found", "0 of 1 found, 1 missing"),
        (gained, "0 of 2 found, 2 missing", "2 of 2 found"),
    ):
        sides = card.split("<figure>")[1:]
        assert before in sides[0]
        assert after in sides[1]
        pictures = [re.findall(r'src="(data:image/png[^"]+)"', side) for side in sides]
        assert all(len(found) == 1 for found in pictures)
        assert pictures[0] != pictures[1]
    assert "truth" not in lost
    assert "over 4 sampling steps" in page
    assert "text tower" not in page
    assert "one per prompt" in page


def test_a_further_condition_leaves_the_others_as_they_are(tmp_path: Path, finished: Path) -> None:
    run(tmp_path, "none")
    before = (tmp_path / "none" / records.PREDICTIONS).stat().st_mtime_ns
    run(tmp_path)
    assert (tmp_path / "none" / records.PREDICTIONS).stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(finished)


def test_what_a_safety_checker_held_back_is_an_error_and_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = Painter.paint

    def some(self: Painter, shots: list[Shot]) -> list[Picture]:
        return [
            Picture(picture.frames, flagged=shot == Shot("a red circle", 1))
            for shot, picture in zip(shots, paint(self, shots), strict=True)
        ]

    monkeypatch.setattr(Painter, "paint", some)
    result = run(tmp_path, "none", plan=painting_only())
    assert result.answers[0].records["a/1"].error == work.FLAGGED
    (scores,) = study.score(tmp_path).scores
    assert (scores.asked, scores.scored) == (6, 5)


def test_references_can_be_given_per_prompt(tmp_path: Path) -> None:
    references = tmp_path / "references"
    references.mkdir()
    plan = PictureSource(PROMPTS, (0, 1), ("psnr",), str(references))
    run(tmp_path / "run", "none", plan=plan)
    for prompt in PROMPTS[:2]:
        Image.new("RGB", (32, 32)).save(references / f"{prompt.id}.png")
    with pytest.raises(FileNotFoundError, match=r"no reference for c/0: .* neither c_0\.png nor"):
        study.score(tmp_path / "run")
    Image.new("RGB", (32, 32)).save(references / "c.png")
    (scores,) = study.score(tmp_path / "run").scores
    assert scores.sections[-1].rows[0].metrics["psnr"].value > 0


def test_samples_show_each_prompt_once_under_every_condition(finished: Path) -> None:
    path = study.draw_samples(results.load(read_source(finished).task, finished), n=2)
    assert path is not None
    made = grid.about(path)
    assert list(made) == ["none", "pag:scale=5"]
    one = study.draw_samples(results.load(read_source(finished).task, finished), n=1)
    assert one is not None
    with Image.open(one) as image:
        assert image.height < 400


def test_two_scorers_with_one_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="two scorers give clip_score"):
        _ = PictureSource(PROMPTS, (0,), ("clip", "clip:prefix=A photo of")).task


def test_two_processes_paint_what_one_does(tmp_path: Path, finished: Path) -> None:
    models = [tiny_painter.shared(), tiny_painter.fresh()]
    together(lambda world, model: run(tmp_path, loaded=model, world=world), models)
    assert contents(tmp_path) == contents(finished)
    sessions = files.read_json(tmp_path / "none" / store.MANIFEST)["sessions"]
    assert sorted(session["rank"] for session in sessions) == [0, 1]


def test_a_lost_or_cut_picture_is_painted_again(tmp_path: Path, finished: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "none" / records.PREDICTIONS).read_bytes()
    (tmp_path / "none" / "images" / "a_0.png").unlink()
    cut = tmp_path / "pag_scale=5" / "images" / "c_1.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    run(tmp_path)
    assert contents(tmp_path) == contents(finished)
    assert (tmp_path / "none" / records.PREDICTIONS).read_bytes() == before


def test_prompts_whose_ids_look_alike_as_names_have_pictures_of_their_own(tmp_path: Path) -> None:
    alike = (Prompt("red circle", "a red circle"), Prompt("red_circle", "a white triangle"))
    run(tmp_path, "none", plan=PictureSource(alike, (0,), ("painting",)))
    first, second = contents(tmp_path)["none"]
    assert first[2] != second[2]
    assert first[3] != second[3]


def test_settings_are_compared_once_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins with other settings between the start of a run and its lock."""
    locked = files.locked

    @contextmanager
    def late(out: Path) -> Iterator[None]:
        monkeypatch.setattr(files, "locked", locked)
        run(tmp_path, "none", arguments={**tiny_painter.CALL, "guidance_scale": 3.0})
        with locked(out):
            yield

    monkeypatch.setattr(files, "locked", late)
    with pytest.raises(ConfigMismatchError, match=r"guidance_scale: 3\.0 there, 2\.0 now"):
        run(tmp_path, "none")
