"""An image that is read once for all questions about it gives the answers of separate runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from matrix import EDITS, pairs
from methods import Method
from tiny import FAMILIES, Tiny, tiny
from transformers import set_seed

from regaze.evals.asking import sharing
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.prompts import Prompter, Question, common
from regaze.evals.asking.sharing import CannotShareError, arrange, splice
from regaze.hooks import attach
from regaze.interventions import PAI, Intervention

PROMPTS = (
    "is there a dog?",
    "is there a big red cat on it, please, word for word?",
    "describe it.",
)
CHOICES = ("a cat", "no", "red blue green dog")
SHARING = tuple(
    family for family in FAMILIES if family not in ("gemma3", "paligemma", "mllama", "instructblip")
)


def questions(model: Tiny, **options: Any) -> list[Question]:
    """Three questions about each of two pictures of different shape."""
    pictures = [model.picture(0, (40, 28)), model.picture(1, (28, 40))]
    return [
        Question(prompt, picture, str(key), **options)
        for key, picture in enumerate(pictures)
        for prompt in PROMPTS
    ]


def answer(
    answerer: Answerer,
    asked: list[Question],
    *specs: Intervention,
    together: bool = True,
    share: bool = False,
) -> list[Any]:
    """Answers, asked in one batch or one by one, with interventions attached."""
    with (
        attach(answerer.model, *specs, processor=answerer.processor) as run,
        answerer.meter.running(),
    ):
        answerer.meter.start()
        batches = [asked] if together else [[question] for question in asked]
        return [
            found
            for batch in batches
            for found in answerer.ask(batch, share=share, partial=run.partial_prompt)
        ]


def check_same(one: list[Any], other: list[Any]) -> None:
    assert one == other
    for a, b in zip(one, other, strict=True):
        assert a.margin == pytest.approx(b.margin, abs=1e-4)
        assert a.losses == (b.losses and pytest.approx(b.losses, abs=1e-4))


@pytest.mark.parametrize("family", SHARING)
def test_a_family_that_can_shares_prefixes(family: str) -> None:
    model = tiny(family)
    answerer = Answerer(model.model, model.processor, 4)
    asked = questions(model)
    assert answerer.why_apart(asked[:3]) is None
    alone = answer(answerer, asked, together=False)
    check_same(answer(answerer, asked), alone)
    columns = answerer.meter.columns
    check_same(answer(answerer, asked, share=True), alone)
    assert answerer.meter.columns < columns
    assert len({found.text for found in alone}) > 1


@pairs("pai", "vaf", "var", families=SHARING)
def test_edited_answers_are_those_of_separate_runs(family: str, method: Method) -> None:
    model = tiny(family)
    answerer = Answerer(model.model, model.processor, 4)
    asked = questions(model)
    alone = answer(answerer, asked, method.acts, together=False)
    check_same(answer(answerer, asked, method.acts, share=True), alone)
    assert [a.margin for a in alone] != [a.margin for a in answer(answerer, asked)]


@pairs("pai", "vaf", "var", families=("llava", "qwen2_vl"))
def test_choices_have_the_losses_of_separate_runs(family: str, method: Method) -> None:
    model = tiny(family)
    answerer = Answerer(model.model, model.processor, 4)
    asked = questions(model, choices=CHOICES)
    alone = answer(answerer, asked, method.acts, together=False)
    shared = answer(answerer, asked, method.acts, share=True)
    check_same(shared, alone)
    assert [a.losses for a in alone] != [a.losses for a in answer(answerer, asked)]
    for found in shared:
        assert found.text == CHOICES[found.losses.index(min(found.losses))]


@pairs("pai", "vaf", "var", families=("llava", "qwen2_vl"))
def test_beams_and_samples_go_on_from_a_shared_prefix(family: str, method: Method) -> None:
    model = tiny(family)
    asked = questions(model)
    beams = Answerer(model.model, model.processor, 4, Decoding(beams=3))
    alone = answer(beams, asked, method.acts, together=False)
    check_same(answer(beams, asked, method.acts, share=True), alone)
    drawn = Answerer(model.model, model.processor, 4, Decoding(temperature=1.5))
    found = []
    for share in (False, True):
        set_seed(0)
        found.append(answer(drawn, asked, method.acts, share=share))
    assert found[0] == found[1]


def test_a_cache_with_a_window_cannot_be_continued_by_columns() -> None:
    model = tiny("gemma3")
    answerer = Answerer(model.model, model.processor, 4)
    why = answerer.why_apart(questions(model)[:3])
    assert why is not None
    assert "DynamicSlidingWindowLayer" in why


def test_a_model_that_reads_in_both_directions_is_found_out() -> None:
    model = tiny("paligemma")
    inputs = model.inputs([PROMPTS[0]], [[model.picture(0)]])
    with pytest.raises(CannotShareError, match="in both directions"):
        sharing.check_causal(model.model, inputs)
    sharing.check_causal(
        tiny("llava").model, tiny("llava").inputs([PROMPTS[0]], [[model.picture(0)]])
    )


@pytest.mark.parametrize("family", ["paligemma", "mllama"])
def test_a_model_that_cannot_share_says_why(family: str) -> None:
    model = tiny(family)
    assert Answerer(model.model, model.processor, 4).why_apart(questions(model)[:3])


def test_a_wrong_position_shows_in_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2_vl")
    answerer = Answerer(model.model, model.processor, 4)
    begin = sharing.begin

    def off_by_one(*arguments: Any) -> dict[str, Any]:
        inputs = begin(*arguments)
        return {**inputs, "position_ids": inputs["position_ids"] + 1}

    monkeypatch.setattr(sharing, "begin", off_by_one)
    assert "its logits differ" in str(answerer.why_apart(questions(model)[:3]))


@pytest.mark.parametrize("family", SHARING)
def test_spliced_ids_are_those_of_the_processor(family: str) -> None:
    model = tiny(family)
    prompter, picture = Prompter(model.processor), model.picture(2)
    texts = [prompter.text(prompt, images=1) for prompt in PROMPTS]
    real = [prompter.inputs([text], [[picture]])["input_ids"][0].tolist() for text in texts]
    assert splice(prompter, texts, real[0], [model.image_token_id]) == real


def test_the_processor_is_asked_once_for_all_questions_about_an_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llava")
    answerer = Answerer(model.model, model.processor, 2)
    seen: list[int] = []
    inputs = answerer.prompter.inputs

    def count(texts: Any, images: Any) -> Any:
        seen.append(len(images))
        return inputs(texts, images)

    monkeypatch.setattr(answerer.prompter, "inputs", count)
    answerer.ask(questions(model), share=True)
    assert seen == [2]


def test_a_processor_that_does_more_is_noticed_and_its_questions_are_asked_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llava")
    answerer = Answerer(model.model, model.processor, 2)
    alone = answerer.ask(questions(model))
    monkeypatch.setattr(answerer.prompter, "tail", lambda one, other: ([1], [2]))
    assert answerer.ask(questions(model), share=True) == alone
    assert "asked apart" in caplog.text
    assert answerer.why_apart(questions(model)[:3]) is not None


def test_a_question_with_a_placeholder_in_its_words_is_refused_alone() -> None:
    model = tiny("llava")
    answerer = Answerer(model.model, model.processor, 2)
    picture = model.picture(0)
    for prompts in (["what is <image> here?", *PROMPTS], [*PROMPTS, "what is <image> here?"]):
        asked = [Question(prompt, picture, "0") for prompt in prompts]
        apart, shared = (answer(answerer, asked, share=share) for share in (False, True))
        assert apart == shared
        refused = [found for found in shared if isinstance(found, Refused)]
        assert len(refused) == 1
        assert "can't take this prompt" in refused[0].reason


def test_a_prompt_longer_than_the_context_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llava")
    asked = questions(model)[:3]
    whole = Answerer(model.model, model.processor, 2).ask(asked)
    config = model.model.config.get_text_config()
    monkeypatch.setattr(config, "max_position_embeddings", 25)
    for share in (False, True):
        found = Answerer(model.model, model.processor, 2).ask(asked, share=share)
        assert [isinstance(one, Refused) for one in found] == [False, True, False]
        assert found[::2] == whole[::2]
        assert found[1] == Refused("the prompt has 34 tokens, the model reads 25")


def test_groups_of_different_sizes_and_no_image_at_all() -> None:
    model = tiny("llava")
    answerer = Answerer(model.model, model.processor, 3)
    asked = questions(model)[:5]
    alone = answer(answerer, asked, PAI(alpha=0.5), together=False)
    check_same(answer(answerer, asked, PAI(alpha=0.5), share=True), alone)
    blind = [Question(prompt, None) for prompt in PROMPTS]
    check_same(answer(answerer, blind, share=True), answer(answerer, blind, together=False))


def differing(family: str, spec: Intervention) -> list[int]:
    """Layers in which what two questions have in common, the picture too, has other keys.

    Prompts of two lengths may be rounded differently, by about 1e-6; a method that lets the
    question choose moves keys by .9 and more.
    """
    model = tiny(family)
    answerer = Answerer(model.model, model.processor, 4)
    caches, rows = [], []
    for prompt in PROMPTS[:2]:
        inputs = answerer.encode([prompt], [model.picture(0, (40, 28))])
        with torch.inference_mode(), attach(model.model, spec, processor=model.processor):
            caches.append(sharing.read(model.model, inputs))
        rows.append(inputs["input_ids"][0].tolist())
    shared = common(rows)
    keys = [[layer.keys[:, :, :shared] for layer in cache.layers] for cache in caches]
    both = enumerate(zip(*keys, strict=True))
    return [n for n, (a, b) in both if not torch.allclose(a, b, rtol=0, atol=1e-4)]


@pairs(*EDITS, families=("llava", "qwen2_vl"))
def test_a_method_shares_only_keys_that_no_question_changes(family: str, method: Method) -> None:
    assert not method.acts.shares_prefix or not differing(family, method.acts)


@pairs("vhr", "vhr-mask", families=("llava", "qwen2_vl"))
def test_the_heads_that_a_question_chooses_change_the_keys_of_its_picture(
    family: str, method: Method
) -> None:
    assert not method.acts.shares_prefix
    for first in (0, 1):
        late: Any = replace(method.acts, layers=(first,))
        assert differing(family, late) == [*range(first + 1, 3)]


def test_beginnings_and_rests_are_laid_out_behind_padding() -> None:
    firsts = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [0, 1, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]),
        "pixel_values": torch.zeros(2, 3),
    }
    groups = [[[1, 2, 3, 4], [1, 2, 3, 7, 8]], [[1, 5, 6], [1, 9, 9], [1, 8]]]
    shared = arrange(firsts, groups, pad=0)
    assert shared.prefix["input_ids"].tolist() == [[1, 2, 3], [0, 0, 1]]
    assert shared.prefix["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert shared.prefix["pixel_values"] is firsts["pixel_values"]
    assert shared.ids.tolist() == [
        [1, 2, 3, 0, 4],
        [1, 2, 3, 7, 8],
        [0, 0, 1, 5, 6],
        [0, 0, 1, 9, 9],
        [0, 0, 1, 0, 8],
    ]
    assert shared.mask.tolist()[0] == [1, 1, 1, 0, 1]
    assert shared.image_of.tolist() == [0, 0, 1, 1, 1]


def test_equal_prompts_keep_a_token_that_predicts() -> None:
    firsts = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 1]])}
    shared = arrange(firsts, [[[1, 2], [1, 2]]], pad=0)
    assert shared.prefix["input_ids"].tolist() == [[1]]
    assert shared.ids.tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("rows", "length"), [([[1, 2, 3]], 3), ([[1, 2], [1, 3], [1, 2, 4]], 1), ([[1], [2]], 0)]
)
def test_the_common_beginning(rows: list[list[int]], length: int) -> None:
    assert common(rows) == length
