"""GIFT's question: which of its tokens count, where it stands, and what is done without any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, answer, ask, literally, logits
from tiny import tiny

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.interventions import GIFT, parse
from regaze.interventions.lvlm import content_words
from regaze.interventions.lvlm.gift import boost
from regaze.interventions.lvlm.gift_gaze import normalise

LAYERS = (1, 2)
TAGS = {"dog": "NOUN", "picture": "NOUN", "describe": "VERB", "word": "NOUN", "detail": "NOUN"}


@pytest.fixture
def tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger that knows a few words."""

    def tag(name: str, text: str) -> list[content_words.Word]:
        return [
            {**word, "pos": TAGS.get(word["text"], "X")} for word in content_words_of("all", text)
        ]

    content_words_of = content_words.tag
    monkeypatch.setattr(content_words, "tag", tag)


@pytest.mark.usefixtures("tagger")
@pytest.mark.parametrize("saliency", [(0,), (2,)])
def test_content_words_of_a_batch_are_each_questions_own(saliency: tuple[int, ...]) -> None:
    model = tiny("qwen2_vl")
    spec = GIFT(alpha=4, layers=LAYERS, saliency=saliency, words="spacy")
    everything = GIFT(alpha=4, layers=LAYERS, saliency=saliency, words="all")
    rows: list[Any] = [(SHORT, [0]), (LONG, [1])]
    batch = answer(model, ask(model, *rows), spec)
    for row, got in zip(rows, batch, strict=True):
        inputs = ask(model, row)
        assert got == answer(model, inputs, spec)[0]
        edited = logits(model, inputs, spec)
        with attach(model.model, spec, processor=model.processor) as run:
            specs = run.specs
        with literally(model, inputs, specs), torch.no_grad():
            literal = model.model(**inputs).logits
        torch.testing.assert_close(edited, literal, rtol=0, atol=1e-4)
        assert not torch.equal(edited, logits(model, inputs, everything))


@pytest.mark.usefixtures("tagger")
def test_without_a_content_word_all_tokens_count_and_it_is_said() -> None:
    model = tiny("llava")
    inputs = ask(model, ("is it there?", [0]))
    spec = GIFT(alpha=4, layers=LAYERS, saliency=(0,), words="spacy")
    with pytest.warns(UserWarning, match="has no content word, so all its tokens count"):
        found = logits(model, inputs, spec)
    assert torch.equal(found, logits(model, inputs, GIFT(alpha=4, layers=LAYERS, saliency=(0,),
                                                         words="all")))  # fmt: skip
    assert found.isfinite().all()


@pytest.mark.usefixtures("tagger")
def test_the_template_is_no_part_of_the_question() -> None:
    model = tiny("llava")
    host = find_host(model.model, model.processor)
    trim = content_words.find_trim(host)
    ids = model.inputs(["red"], [[model.picture(0)]])["input_ids"][0]
    image = ids == model.image_token_id
    columns = content_words.question_columns(~image, image, trim)
    assert model.processor.tokenizer.decode(ids[columns]).strip() == "red"
    bare = find_host(model.model)
    assert content_words.find_trim(bare) == (2, 5)
    with attach(model.model, GIFT(), processor=model.processor) as run:
        assert run.specs[0].trim == trim  # type: ignore[attr-defined]


def test_no_question_and_no_word_of_it_are_left_alone_and_finite() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    end = int((inputs["input_ids"][0] == model.image_token_id).nonzero().max()) + 1
    cut = {**inputs, "input_ids": inputs["input_ids"][:, :end]}
    cut["attention_mask"] = inputs["attention_mask"][:, :end]
    for saliency in ((0,), (2,)):
        spec = GIFT(alpha=4, layers=LAYERS, saliency=saliency, words="all", trim=(0, 0))
        torch.testing.assert_close(logits(model, cut, spec), logits(model, cut), atol=1e-4, rtol=0)
        none = GIFT(alpha=4, layers=LAYERS, saliency=saliency, words="all", trim=(99, 0))
        found = logits(model, inputs, none)
        torch.testing.assert_close(found, logits(model, inputs), atol=1e-4, rtol=0)


def test_a_prompt_in_parts_is_read_like_a_whole_one() -> None:
    model = tiny("qwen2_vl", fresh=True)
    inputs = ask(model, (LONG, [0]))
    for saliency in ((0,), (2,)):
        spec = GIFT(alpha=4, layers=LAYERS, saliency=saliency, words="all", trim=(0, 0))
        whole = answer(model, inputs, spec)
        assert answer(model, inputs, spec, prefill_chunk_size=7) == whole
        assert whole != answer(model, inputs)


def test_saliency_without_spread_is_none_and_outliers_are_clamped() -> None:
    assert normalise(torch.full((4,), 0.3)).eq(0).all()
    assert normalise(torch.ones(1)).eq(0).all()
    values = torch.zeros(200)
    values[0], values[1] = 100.0, 5.0
    found = normalise(values)
    assert found[0] == 1 and 0.2 < found[1] < 0.3  # 0.05 without the clamp
    zeros = torch.zeros(1, 2, 1, 4)
    columns = torch.tensor([True, True, False, False])[None, None, None]
    assert boost(zeros, zeros[:, :1], columns, ~columns, 5.0, 1.0).isfinite().all()


def test_heads_whose_mass_rounds_to_one_are_told_apart() -> None:
    # All but the last see the image with a mass that is 1 in float32.
    rest = torch.tensor([1e-11, 1e-8, 1e-9, 0.5])
    weights = torch.stack([torch.full((4,), 0.5), 1 - rest - 0.5, rest], -1)[None, :, None]
    image = torch.tensor([True, True, False])[None, None, None]
    saliency = torch.tensor([1.0, 0.0, 0.0])[None, None, None]
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0]):
        bias = boost(weights[:, order], saliency, image, image & False, 2.0, 1.0)
        raised = bias[0, :, 0, 0] > 0
        assert {order[n] for n in raised.nonzero().flatten().tolist()} == {0, 2}


def test_published_settings_need_the_layers_that_they_name() -> None:
    assert parse("gift@qwen2-vl-7b").late  # type: ignore[attr-defined]
    assert not parse("gift@llava-1.5-7b").late  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="layers"):
        attach(tiny("llava").model, parse("gift@llava-1.5-7b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gift:alpha=-1", "alpha must be"),
        ("gift:beta=0", "beta must be"),
        ("gift:words=spcy", "did you mean spacy"),
        ("gift:repeats=first", "unknown repeats"),
        ("gift:saliency=[]", "at least one layer"),
        ("gift:trim=[1]", "two numbers of tokens"),
    ],
)
def test_wrong_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_what_is_not_there_raises_when_attaching() -> None:
    model = tiny("llava").model
    with pytest.raises(ValueError, match="saliency holds 9"):
        attach(model, GIFT(saliency=(9,)))
    with pytest.raises(ValueError, match="needs neither") as error:
        attach(model, GIFT(words="spacy"))  # No processor.
    assert "\n" not in str(error.value)
