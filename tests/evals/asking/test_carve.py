"""CARVE in a run: what is read, what is shown, what it costs, and what is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stored import answers_on_disk
from tiny import Tiny, tiny
from toy import ToyTask, toy_model

from regaze.evals.asking import runner
from regaze.evals.asking.carve import CarveReader
from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import Prepared
from regaze.evals.asking.prompts import Question
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.results import RunResult
from regaze.evals.task import Item
from regaze.hooks.host import find_host
from regaze.interventions import CARVE, ViCrop
from regaze.interventions.lvlm.carve_reading import Looker, Reading

MODEL, PROCESSOR = toy_model()
ASKED = ("is there a dog?", "where is the red square?", "what is it?")
SPEC = CARVE(layers=(1, 2), max_new_tokens=3)
CLOSER = "carve:layers=[3,4],general=Please describe this image in detail.,max_new_tokens=4"


def reader(model: Tiny, spec: CARVE | ViCrop = SPEC, share: bool = True) -> CarveReader:
    answerer = Answerer(model.model, model.processor, 3)
    return CarveReader(answerer, spec.resolve(find_host(model.model, model.processor)), share)


def questions(model: Tiny, *pictures: int) -> list[Question]:
    return [
        Question(text, model.picture(seed, (40 + 8 * seed, 28)), f"image {seed}")
        for seed in pictures
        for text in ASKED
    ]


def shown(found: Sequence[Prepared | Refused]) -> list[Image.Image]:
    assert all(isinstance(one, Prepared) for one in found), found
    return [one.question.images[0] for one in found if isinstance(one, Prepared)]


def run(out: Path, *conditions: str, task: ToyTask | None = None, **options: Any) -> RunResult:
    settings = {"batch_size": 6, "identity": {"weights_sha256": "toy"}, **options}
    parsed = [Condition.parse(text) for text in conditions]
    return runner.run(task or ToyTask(), MODEL, PROCESSOR, parsed, out=out, **settings)


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"]
)
@pytest.mark.parametrize("share", [True, False])
def test_a_batch_shows_what_single_questions_would_be_shown(family: str, share: bool) -> None:
    model = tiny(family)
    asked = questions(model, 0, 2)
    found = reader(model, share=share).prepare(asked)
    alone = Looker(model.model, model.processor, SPEC)
    for one, question in zip(found, asked, strict=True):
        assert isinstance(one, Prepared) and question.image is not None
        want = alone(question.image, question.prompt)
        assert tuple(one.extra["crop"]) == want.box
        assert one.question.images[0].tobytes() == want.crop.tobytes()
        assert one.question.prompt == question.prompt


@pytest.mark.parametrize("form", ["gradient", "pixels", "relative"])
def test_gradients_and_tiles_are_read_alone_and_counted(form: Any) -> None:
    model = tiny("llava")
    spec = ViCrop(layers=(1,), base=10, form=form, tiles=form == "relative")
    size = (30, 1030) if spec.tiles else (42, 28)
    asked = [Question(text, model.picture(3, size), "one") for text in ASKED[:2]]
    reads = reader(model, spec)
    found = reads.prepare(asked)
    alone = Looker(model.model, model.processor, spec)
    for one, question in zip(found, asked, strict=True):
        assert isinstance(one, Prepared) and question.image is not None
        assert tuple(one.extra["crop"]) == alone(question.image, question.prompt).box
    assert reads.cost.extra["vicrop_prompts"] == 3 * (2 if spec.tiles else 1)
    two = Question("where?", asked[0].image, "two", more=(model.picture(1),))
    (refused,) = reads.prepare([two])
    assert isinstance(refused, Refused) and "one image" in refused.reason


def test_an_image_is_read_with_all_its_questions_and_the_general_one_is_asked_once() -> None:
    model = tiny("llava")
    reads = reader(model)
    first = reads.prepare(questions(model, 0, 1))
    assert reads.cost.extra["carve_prompts"] == 8 and reads.cost.extra["carve_tokens"] == 24
    again = reads.prepare(questions(model, 1, 0))
    assert reads.cost.extra["carve_prompts"] == 8 + 6  # no general question
    for one, two in zip(shown(first), [*shown(again)[3:], *shown(again)[:3]], strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_shared_prefix_saves_columns_and_nothing_is_left_attached() -> None:
    model = tiny("llava")
    columns = []
    for share in (True, False):
        reads = reader(model, share=share)
        meter = Answerer(model.model, model.processor, 1).meter
        with meter.running():
            reads.prepare(questions(model, 0, 1))
        columns.append(meter.columns)
    assert columns[0] < columns[1]
    assert model.model.config._attn_implementation == "sdpa"


def test_the_general_answer_goes_on_as_long_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llava")
    reads = reader(model)
    # A token that ends the questions' answers at once, and the general one never.
    plain = reads._read(questions(model, 0), 3)
    lengths = [len(one.attention) for one in plain if not isinstance(one, Refused)]
    assert lengths == [3, 3, 3]
    with torch.inference_mode():
        (part,), _ = reads._reader.encoded(questions(model, 0)[:1], False)
        ids = model.model.generate(**dict(part.inputs), generation_config=reads._reader.config)[
            0, -3:
        ].tolist()
    monkeypatch.setattr(reads._reader, "ends", frozenset([ids[0]]))
    monkeypatch.setattr(reads._reader.config, "eos_token_id", ids[0])
    (question,) = questions(model, 0)[:1]
    reads.prepare([question])
    general = reads._general["image 0"]
    assert len(general.attention) == 1
    # It was cut, not ended, or else had nothing more to say: the next question may need more.
    assert not general.ended and general.suffices(1) and not general.suffices(2)
    (ended,) = reads._read([question], 1)
    assert isinstance(ended, Reading) and ended.ended and ended.suffices(2)
    # A longer answer to another question takes the general one further.
    longer = reads.prepare(questions(model, 0)[1:])
    assert all(isinstance(one, Prepared) for one in longer)
    most = max(one.extra["tokens"] for one in longer if isinstance(one, Prepared))
    assert reads._general["image 0"].suffices(most)


def test_two_images_can_be_shown(tmp_path: Path) -> None:
    model = tiny("qwen2_5_vl")
    spec = CARVE(layers=(1, 2), max_new_tokens=2, shown="both")
    asked = questions(model, 1)
    found = reader(model, spec).prepare(asked)
    for one, question in zip(found, asked, strict=True):
        assert isinstance(one, Prepared)
        assert [image.size for image in one.question.images][0] == question.images[0].size
        assert len(one.question.images) == 2
    answerer = Answerer(model.model, model.processor, 3)
    batch = [one.question for one in found if isinstance(one, Prepared)]
    apart = [answerer.ask([one])[0] for one in batch]
    assert answerer.ask(batch) == apart
    columns = [answer.n_image_tokens for answer in apart if not isinstance(answer, Refused)]
    plain = answerer.ask(asked[:1])[0]
    assert not isinstance(plain, Refused)
    assert min(columns) > plain.n_image_tokens


def test_a_run_is_paired_counts_its_passes_and_says_what_it_showed(tmp_path: Path) -> None:
    result = run(tmp_path, CLOSER)
    none, carve = result.answers
    assert [*none.records] == [*carve.records]
    assert {record.extra for record in none.records.values()} == {None}
    for record in carve.records.values():
        assert record.extra is not None and record.extra["tokens"] == 4
        left, top, right, bottom = record.extra["crop"]
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    assert carve.manifest["apart"] == "carve shows each question an image of its own"
    (spec,) = carve.manifest["config"]["interventions"]
    assert (spec["layers"], spec["steps"], spec["fit"]) == ([3, 4], "last", "pad")
    assert carve.firing and carve.firing["fired"]
    (report,) = carve.firing["interventions"]
    assert report["label"].startswith("carve:layers=[3,4],")
    assert report["prompts"] == 15  # Each question stands in both groups and is asked once.
    assert 0.7 < report["effect"] < 1
    assert carve.cost and none.cost
    # All but the first batch: 12 questions about four images, and one general question of each.
    assert carve.cost.extra["carve_prompts"] == 12 + 4 and not none.cost.extra
    assert carve.cost.extra["carve_tokens"] == 4 * 16
    assert carve.cost.extra["carve_seconds"] > 0
    assert carve.cost.columns > none.cost.columns
    assert len({record.text for record in carve.records.values()}) > 1


def test_one_question_about_each_image_shares_it_with_the_general_one(tmp_path: Path) -> None:
    class OneEach(ToyTask):
        def __init__(self) -> None:
            super().__init__()
            self.items = [item for item in self.items if item.id.startswith("easy")][::3]

    columns = []
    for share in (True, False):
        result = run(tmp_path / str(share), CLOSER, task=OneEach(), share=share)
        assert result.answers[1].manifest["config"]["sharing"]["prefix"] is share
        assert result.answers[1].cost
        columns.append(result.answers[1].cost.columns / result.answers[1].cost.items)
    assert columns[0] < columns[1] - 50  # the image's 64 columns, but what the first words add
    plain = run(tmp_path / "plain", task=OneEach())
    assert plain.answers[0].manifest["apart"] == "no image has several questions"


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CLOSER)
    asked: list[int] = []

    class Stopped(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        asked.append(done)
        if label == CLOSER and done == 12:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "cut", CLOSER, progress=stop)
    again = run(tmp_path / "cut", CLOSER)
    assert answers_on_disk(tmp_path / "cut") == answers_on_disk(tmp_path / "whole")
    assert len(again.answers[1].manifest["sessions"]) == 2
    assert len(whole.answers[1].records) == 30


def test_the_control_shows_a_region_of_the_same_size(tmp_path: Path) -> None:
    control = f"{CLOSER},where=random"
    (condition,) = [Condition.parse(CLOSER).specs[0].controls()["random region"]]
    assert Condition((condition,)) == Condition.parse(control)
    result = run(tmp_path, CLOSER, control)
    pairs = list(
        zip(result.answers[1].records.values(), result.answers[2].records.values(), strict=True)
    )
    boxes = [[one.extra["crop"] for one in pair if one.extra] for pair in pairs]
    sizes = [[(c[2] - c[0], c[3] - c[1]) for c in pair] for pair in boxes]
    assert all(one == two for one, two in sizes)
    assert any(one != two for one, two in boxes)


def test_it_composes_with_what_is_attached_and_not_with_itself(tmp_path: Path) -> None:
    result = run(tmp_path, f"vhr:alpha=4+{CLOSER}", limit=6)
    manifest = result.answers[1].manifest
    assert [spec["name"] for spec in manifest["config"]["interventions"]] == ["vhr", "carve"]
    assert [one["fired"] for one in result.answers[1].firing["interventions"]] == [True, True]  # type: ignore[index]
    with pytest.raises(ValueError, match="names carve and carve"):
        run(tmp_path / "twice", f"{CLOSER}+carve")


def test_questions_with_choices_and_without_image(tmp_path: Path) -> None:
    class Choosing(ToyTask):
        def __init__(self) -> None:
            super().__init__(images=2)
            self.items = [
                *(
                    Item(f"c{n}", f"image {n}", "Is there a red star?", choices=("yes", "no"))
                    for n in range(2)
                ),
                Item("text", None, "Is there a red star?", cluster="text"),
            ]

    result = run(tmp_path, CLOSER, task=Choosing())
    none, carve = (answers.records for answers in result.answers)
    assert len(carve["c0"].losses or ()) == 2
    assert carve["c0"].extra and carve["c0"].losses != none["c0"].losses
    assert carve["text"].text == none["text"].text
    assert carve["text"].extra is None


def test_an_image_without_a_peak_is_an_error_of_its_own_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = CARVE.look

    def flat(self: CARVE, image: Image.Image, query: Any, general: Any, seen: Any) -> Any:
        even = (
            query * 0 + 1
            if image.tobytes() == ToyTask().load_image(ToyTask().items[0]).tobytes()
            else query
        )
        return look(self, image, even, general * 0 + 1, seen)

    monkeypatch.setattr(CARVE, "look", flat)
    result = run(tmp_path, CLOSER)
    failed = {key: r.error for key, r in result.answers[1].records.items() if not r.ok}
    assert list(failed) == [f"{group}/0-{n}" for group in ("easy", "hard") for n in range(3)]
    assert all("no region stands out" in str(error) for error in failed.values())
    lines = (next(tmp_path.glob("carve*")) / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["finish"] == "error"
