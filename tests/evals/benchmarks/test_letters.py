from __future__ import annotations

import pytest

from regaze.evals.benchmarks.letters import lmms_letter, vlmevalkit_letter

OPTIONS = {"A": "Long", "B": "Short"}

# What the scripts returned: lmms-eval's extraction, VLMEvalKit's exact matching.
READ = [
    ("A", "A", "A"),
    ("b", "B", ""),
    ("(B)", "B", "B"),
    ("A.", "A", "A"),
    ("B) short", "B", "B"),
    ("The answer is (b).", "B", ""),
    ("answer is B", "B", "B"),
    ("Option A", "A", "A"),
    ("an umbrella", "A", ""),
    ("Long", "", "A"),
    ("It is short", "", "B"),
    ("neither", "", ""),
    ("", "", ""),
    ("Z", "", "Z"),
    ("A or B", "A", ""),
    ("I would say the tusks are B", "B", "B"),
    ("B is what I would say here, since they are short", "B", ""),
    ("B is what I mean", "B", ""),
    ("B is it here", "B", "B"),
    ("Cannot determine the answer", "", "Z"),
    ("The correct answer is **B**: long", "", "B"),
    ("A man", "A", "A"),
]


@pytest.mark.parametrize(("text", "lmms", "vlmevalkit"), READ)
def test_the_rules_read_what_the_scripts_read(text: str, lmms: str, vlmevalkit: str) -> None:
    assert lmms_letter(text) == lmms
    assert vlmevalkit_letter(text, OPTIONS) == vlmevalkit


def test_more_letters_than_two() -> None:
    assert lmms_letter("The answer is D", "ABCD") == "D"
    assert lmms_letter("D", "AB") == ""
    assert vlmevalkit_letter("C", {**OPTIONS, "C": "None"}) == "C"
