"""Prompts of the painting world, there and back."""

from __future__ import annotations

import pytest

from regaze.evals.sandbox.painting import NEGATION, SUBSETS
from regaze.evals.sandbox.painting.build import TOKENS, build_tokenizer
from regaze.evals.sandbox.painting.prompts import WORDS, Kind, Wanted, parse
from regaze.evals.sandbox.painting.scenes import wanted

RED_CIRCLE, BLUE_SQUARE = Kind("red", "circle"), Kind("blue", "square")


def test_prompts_read_as_english() -> None:
    assert Wanted((RED_CIRCLE,)).prompt == "a red circle"
    assert Wanted((RED_CIRCLE, BLUE_SQUARE)).prompt == "a red circle and a blue square"
    assert Wanted((RED_CIRCLE, BLUE_SQUARE), "left of").prompt == (
        "a red circle left of a blue square"
    )
    three = (RED_CIRCLE, BLUE_SQUARE, Kind("white", "cross"))
    assert Wanted(three).prompt == "a red circle, a blue square and a white cross"


def test_what_must_not_be_there_is_asked_for_as_text_encoders_read_it() -> None:
    want = Wanted((RED_CIRCLE,), unwanted=BLUE_SQUARE)
    assert want.prompt == "a red circle without a blue square"
    assert want.asked == "a red circle and a blue square"
    assert want.negative == "a blue square"
    plain = Wanted((RED_CIRCLE, BLUE_SQUARE), "above")
    assert (plain.asked, plain.negative) == (plain.prompt, "")
    two = Wanted((RED_CIRCLE, BLUE_SQUARE), unwanted=Kind("white", "cross"))
    assert two.prompt == "a red circle and a blue square without a white cross"
    assert two.asked == "a red circle, a blue square and a white cross"


@pytest.mark.parametrize("subset", [*SUBSETS, NEGATION])
def test_parsing_is_the_inverse(subset: str) -> None:
    for want in wanted("test", subset, 100):
        assert parse(want.prompt) == want
        assert parse(want.prompt.capitalize() + ".") == want


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red circel", "unknown word 'circel'.*nearest is 'circle'"),
        ("a red fox on a lawn", "unknown word 'fox'"),
        ("", "one to 3 objects"),
        ("a red circle and a red circle", "all different"),
        ("a red circle, a blue square, a white cross and a red cross", "one to 3 objects"),
        ("a red circle a blue square", "one to 3 objects"),
        ("a red circle left of a blue square and a white cross", "one to 3 objects"),
        ("a red circle without a red circle", "all different"),
        ("a red circle without a blue square and a white cross", "one to 3 objects"),
        ("a red circle without a red fox", "unknown word 'fox'"),
        ("without a red circle", "unknown word 'without'"),
    ],
)
def test_other_prompts_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(prompt)


def test_every_word_is_one_token_and_every_prompt_fits() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer(word)["input_ids"] for word in WORDS]
    assert {len(i) for i in ids} == {3}
    assert len({i[1] for i in ids}) == len(WORDS)
    longest = max(len(tokenizer(w.prompt)["input_ids"]) for w in wanted("test", "composition", 50))
    assert longest == 13 < TOKENS


def test_the_tokenizer_is_the_same_every_time() -> None:
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()
    prompt = "A red circle, a blue square and a white cross"
    assert build_tokenizer()(prompt)["input_ids"] == [
        *(82, 2, 47, 67, 0, 2, 53, 72, 29, 2, 62, 81, 83)
    ]
