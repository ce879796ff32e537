from __future__ import annotations

import pytest

from regaze.evals.benchmarks import yes_no

# What the scripts returned for each text: AMBER's comparison, MME's tool, lmms-eval, VLMEvalKit.
READ = [
    ("Yes", "yes", "yes", "yes", "yes"),
    ("No", "no", "no", "no", "no"),
    ("yes.", "other", "yes", "yes", "yes"),
    ("No.", "other", "no", "no", "no"),
    ("NO!", "other", "no", "no", "no"),
    ("  Yes", "other", "other", "yes", "yes"),
    ("\nno", "other", "no", "no", "no"),
    ("y", "other", "other", "yes", "other"),
    ("N.", "other", "other", "no", "other"),
    ("Yes, there is no doubt", "other", "yes", "yes", "other"),
    ("There is no cat", "other", "other", "other", "no"),
    ("nothing", "other", "no", "no", "other"),
    ("I know", "other", "other", "other", "other"),
    ("Not sure", "other", "no", "no", "other"),
    ("yes and no", "other", "yes", "yes", "other"),
    ("", "other", "other", "other", "other"),
    ("eyes", "other", "yes", "yes", "other"),
    ("1,000 yes", "other", "other", "other", "yes"),
    ("It is a yes/no", "other", "other", "other", "other"),
    ("**No**", "other", "no", "no", "other"),
    ("Yes." * 40, "other", "yes", "yes", "other"),
    ("." * 32 + "yes", "other", "other", "yes", "yes"),
    ("." * 33 + "yes", "other", "other", "yes", "other"),
]


@pytest.mark.parametrize(("text", "exact", "opening", "stripped", "words"), READ)
def test_the_rules_read_what_the_scripts_read(
    text: str, exact: str, opening: str, stripped: str, words: str
) -> None:
    assert yes_no.exact(text) == exact
    assert yes_no.opening(text) == opening
    assert yes_no.stripped_opening(text) == stripped
    assert yes_no.words(text) == words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, there is no doubt", "yes"),
        ("There is no cat. Yes?", "no"),
        ("**No**", "no"),
        ("nothing, eyes, know, not", "other"),
        (" \n", "other"),
    ],
)
def test_the_first_word_that_is_yes_or_no_decides(text: str, said: str) -> None:
    assert yes_no.first(text) == said
