from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from stored import answers_on_disk
from toy import ToyTask, run_toy, shared_toy_model

from regaze.evals.asking.batching import plan
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import identify
from regaze.evals.runs import files, records
from regaze.evals.task import Item

MODEL, PROCESSOR = shared_toy_model()


# Answers


def test_every_condition_answers_every_item_once_in_order(tmp_path: Path) -> None:
    task = ToyTask()
    result = run_toy(tmp_path, "vhr:alpha=4", task=task)
    assert [a.label for a in result.answers] == ["none", "vhr:alpha=4"]
    for condition in answers_on_disk(tmp_path).values():
        assert [line["id"] for line in condition] == [item.id for item in task.items]
        assert [line["cluster"] for line in condition] == [item.cluster for item in task.items]
    texts = [[record.text for record in a.records.values()] for a in result.answers]
    assert texts[0] != texts[1]


def test_answers_are_what_the_model_says_to_the_same_batch(tmp_path: Path) -> None:
    task = ToyTask()
    result = run_toy(tmp_path, share=False)
    batch = plan(task.items, 4)[2]
    answerer = Answerer(MODEL, PROCESSOR, task.max_new_tokens)
    alone = answerer([i.prompt for i in batch], [task.load_image(i) for i in batch])
    stored = [asdict(result.answers[0].records[item.id]) for item in batch]
    assert len(batch) == 3
    for answer, record in zip(alone, stored, strict=True):
        assert {**asdict(answer), "margin": None}.items() <= record.items()


def test_a_batch_reads_each_of_its_images_once(tmp_path: Path) -> None:
    task = ToyTask(images=2)
    run_toy(tmp_path, task=task, batch_size=6)
    # The first is read once more, to try out whether prefixes can be shared.
    assert task.loads == ["image 0", "image 0", "image 1"]


def test_the_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    before = identify(MODEL), MODEL.config._attn_implementation
    run_toy(tmp_path, "vhr:alpha=4", limit=4)
    assert (identify(MODEL), MODEL.config._attn_implementation) == before


# Missing images


def test_a_missing_image_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    result = run_toy(tmp_path, task=ToyTask(missing=["image 1"]))
    failed = {key: r.error for key, r in result.answers[0].records.items() if not r.ok}
    assert list(failed) == [f"{g}/1-{n}" for g in ("easy", "hard") for n in range(3)]
    assert set(failed.values()) == {"no image file image 1.png"}
    assert len(result.answers[0].records) == 30
    manifest = result.answers[0].manifest
    assert manifest["counts"] == {"answered": 24, "errors": 6, "truncated": 24, "blank": 12}


def test_missing_images_do_not_pile_up_and_are_answered_once_they_are_there(
    tmp_path: Path,
) -> None:
    missing = ToyTask(missing=["image 1"])
    run_toy(tmp_path, task=missing)
    lines = answers_on_disk(tmp_path)
    run_toy(tmp_path, task=missing)
    assert answers_on_disk(tmp_path) == lines
    result = run_toy(tmp_path, task=ToyTask())
    assert all(record.ok for record in result.answers[0].records.values())
    assert {r.attempt for r in result.answers[0].records.values() if r.cluster == "image 1"} == {2}
    assert [line["id"] for line in answers_on_disk(tmp_path)["none"]] == [
        i.id for i in ToyTask().items
    ]


def test_a_run_without_any_readable_image_ends_with_errors_only(tmp_path: Path) -> None:
    result = run_toy(tmp_path, task=ToyTask(images=1, missing=["image 0"]))
    assert [record.finish for record in result.answers[0].records.values()] == ["error"] * 6


# What is on the disk


def test_the_manifest_says_how_the_answers_were_made(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "vhr:alpha=4", limit=8)
    manifest = result.answers[1].manifest
    assert manifest["model"] == "toy"
    assert manifest["profile"] == "toy/plain"
    config = manifest["config"]
    assert config["interventions"][0]["alpha"] == 4
    assert config["interventions"][0]["layers"], "the fields the model decides are filled in"
    assert config["decoding"]["do_sample"] is False
    assert config["decoding"]["max_new_tokens"] == 5
    assert config["processor"]["chat_template"] == PROCESSOR.chat_template
    assert manifest["config_sha256"] == files.digest(config)
    assert manifest["counts"]["answered"] == 8
    (session,) = manifest["sessions"]
    assert session["firing"]["fired"] is True
    assert session["packages"]["transformers"]


def test_a_condition_that_does_not_fit_the_model_stops_before_the_first_answer(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="layers"):
        run_toy(tmp_path, "vhr:layers=[77]")
    assert list(tmp_path.iterdir()) == []


# Interventions that never act

SILENT = "var:sink_dims=[0],tau=1"


def test_an_intervention_that_never_acts_is_called_silent(tmp_path: Path) -> None:
    result = run_toy(tmp_path, SILENT, "vhr:alpha=4", limit=8)
    assert [a.silent for a in result.answers] == [False, True, False]


def test_it_stays_silent_when_there_is_nothing_left_to_ask(tmp_path: Path) -> None:
    run_toy(tmp_path, SILENT, limit=8)
    assert run_toy(tmp_path, SILENT, limit=8).answers[1].silent


def test_progress_is_told_for_every_batch(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run_toy(tmp_path, limit=6, progress=lambda *step: told.append(step))
    assert told == [("none", 0, 6), ("none", 3, 6), ("none", 6, 6)]


# What is shown, how answers are chosen, what they cost


def test_conditions_may_show_another_image_or_none(tmp_path: Path) -> None:
    task = ToyTask(3)
    result = run_toy(tmp_path, "none@wrong", "none@blank", task=task)
    assert [a.label for a in result.answers] == ["none", "none@wrong", "none@blank"]
    hashes = [
        {record.cluster: record.inputs_sha256 for key, record in a.records.items() if "-0" in key}
        for a in result.answers
    ]
    given, wrong, blank = (set(found.values()) for found in hashes)
    assert wrong == given
    assert all(hashes[0][image] != hashes[1][image] for image in hashes[0])
    assert len(blank) == 1
    assert not blank & given
    assert result.answers[1].manifest["config"]["image"] == "wrong"


def test_the_wrong_image_needs_another_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two images"):
        run_toy(tmp_path, "none@wrong", task=ToyTask(1))


class Mixed(ToyTask):
    """A question without image, one with choices and yes/no questions."""

    yes_no = True

    def __init__(self) -> None:
        super().__init__(2)
        choices = ("red star", "a blue ring in the image")
        self.items: Sequence[Item] = [
            *self.items,
            Item("blind", None, "Is there a red star?", "easy", "star", cluster="none"),
            Item("choice", "image 0", "Is there a red star?", "easy", "star", choices=choices),
        ]


def test_questions_without_image_and_choices_are_asked_too(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "vhr:alpha=4", task=Mixed())
    for found in result.answers:
        assert found.records["blind"].n_image_tokens == 0
        choice = found.records["choice"]
        assert choice.losses is not None
        best = choice.losses.index(min(choice.losses))
        assert choice.text == ("red star", "a blue ring in the image")[best]
        margins = [r.margin for key, r in found.records.items() if key != "choice"]
        assert all(isinstance(margin, float) for margin in margins)
    none, vhr = (a.records["easy/0-0"].margin for a in result.answers)
    assert none != vhr


def test_margins_are_kept_of_yes_no_questions_only(tmp_path: Path) -> None:
    result = run_toy(tmp_path, limit=4)
    assert {record.margin for record in result.answers[0].records.values()} == {None}


def test_sampled_answers_are_kept_for_every_seed_and_can_be_made_again(tmp_path: Path) -> None:
    decoding = Decoding(temperature=2.0, seeds=(0, 1, 5))
    one, two = (run_toy(tmp_path / name, limit=4, decoding=decoding) for name in "ab")
    texts = [
        {seed: [r.text for r in found.values()] for seed, found in a.by_seed.items()}
        for a in (one.answers[0], two.answers[0])
    ]
    assert texts[0] == texts[1]
    assert list(texts[0]) == [0, 1, 5]
    assert texts[0][0] != texts[0][1]
    assert one.answers[0].records == one.answers[0].by_seed[0]


@pytest.mark.parametrize("share", [True, False])
def test_the_same_question_about_the_same_pixels_is_answered_once(
    tmp_path: Path, share: bool
) -> None:
    """Each of the 15 questions stands in both groups; all blank images are one."""
    conditions = ("none@blank", "pai:alpha=2", "pai:alpha=2@blank")
    once = run_toy(tmp_path / "once", *conditions, batch_size=30, share=share)
    # Of batches of 3 none holds a question twice.
    apart = run_toy(tmp_path / "apart", *conditions, batch_size=3, share=share)
    for one, other in zip(once.answers, apart.answers, strict=True):
        assert len(one.records) == 30
        assert {k: r.text for k, r in one.records.items()} == {
            k: r.text for k, r in other.records.items()
        }
    given, blank, edited, both = (a.cost for a in once.answers)
    assert given and blank and edited and both
    assert given.items == blank.items == 30
    assert given.columns == edited.columns == 5 * blank.columns == 5 * both.columns
    alone = [a.cost for a in apart.answers]
    assert alone[0] and 2 * given.columns / 30 == alone[0].columns / alone[0].items


def test_drawn_answers_are_drawn_for_each_question(tmp_path: Path) -> None:
    drawn = run_toy(tmp_path, batch_size=30, decoding=Decoding(temperature=2.0, seeds=(0,)))
    found = drawn.answers[0]
    texts = {key: record.text for key, record in found.records.items()}
    pairs = [(texts[key], texts[key.replace("easy", "hard")]) for key in texts if "easy" in key]
    assert len(pairs) == 15 and sum(one != two for one, two in pairs) > 10


def test_sharing_is_written_down_and_so_is_who_cannot(tmp_path: Path) -> None:
    result = run_toy(tmp_path, "vhr:alpha=4", "pai:alpha=2", limit=6)
    none, vhr, pai = (a.manifest for a in result.answers)
    assert none["config"]["sharing"] == {"prefix": True, "why": None}
    assert (none["shares_prefix"], none["apart"]) == (True, None)
    assert (pai["shares_prefix"], vhr["shares_prefix"]) == (True, False)
    assert "vhr" in vhr["apart"]
    costs = [a.cost for a in result.answers]
    assert all(cost is not None for cost in costs)
    columns = [cost.columns for cost in costs if cost]
    assert columns[0] == columns[2] < columns[1]


def test_sharing_can_be_turned_off_and_gives_the_same_answers(tmp_path: Path) -> None:
    shared, apart = (
        run_toy(tmp_path / str(share), "pai:alpha=2", share=share) for share in (True, False)
    )
    for one, two in zip(shared.answers, apart.answers, strict=True):
        assert {k: r.text for k, r in one.records.items()} == {
            k: r.text for k, r in two.records.items()
        }
    assert apart.answers[0].manifest["apart"] == "turned off"


def test_lack_of_memory_while_trying_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("regaze.evals.asking.sharing.check_causal", full)
    result = run_toy(tmp_path, limit=4, batch_size="auto")
    assert result.answers[0].manifest["apart"] == "memory ran out when it was tried"
    assert len(result.answers[0].records) == 4


def test_what_has_no_answer_is_told_in_one_line_per_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_toy(tmp_path, task=ToyTask(missing=["image 1"]))
    told = [r.message for r in caplog.records if r.message.startswith("no answer")]
    assert told == [
        "no answer to easy/1-0 and 2 more items: no image file image 1.png",
        "no answer to hard/1-0 and 2 more items: no image file image 1.png",
    ]
    assert any("answers are only white space" in r.message for r in caplog.records)


class Replaced(ToyTask):
    """The same questions; the first image shows something else."""

    def load_image(self, item: Item) -> Image.Image:
        image = super().load_image(item)
        return ImageOps.invert(image) if item.image == "image 0" else image


@pytest.mark.parametrize("conditions", [["vhr:alpha=4"], ["none@wrong", "vhr:alpha=4"]])
def test_images_replaced_between_two_commands_are_refused(
    tmp_path: Path, conditions: list[str]
) -> None:
    run_toy(tmp_path, task=ToyTask(2))
    with pytest.raises(ValueError, match="was shown another image or text under vhr:alpha=4 than"):
        run_toy(tmp_path, *conditions, task=Replaced(2))
    assert not (tmp_path / "vhr_alpha=4" / records.PREDICTIONS).exists()
    assert len(run_toy(tmp_path, "vhr:alpha=4", task=ToyTask(2)).answers[1].records) == 12
