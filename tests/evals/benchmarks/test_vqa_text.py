"""Expected values are what the named scripts return for these inputs."""

from __future__ import annotations

import pytest

from regaze.evals.benchmarks.vqa_text import consensus, m4c, vlmevalkit

ANSWERS = ["nous les gosses", "Nous les gosses.", "the nous les gosses", *["gosses"] * 2, *"abcde"]


@pytest.mark.parametrize(
    ("answer", "official", "kit"),
    [
        ("The Dog", "dog", "dog"),
        ("two", "2", "2"),
        ("None", "0", "0"),
        ("eleven", "eleven", "eleven"),
        ("dont", "don't", "don't"),
        ("couldntve", "couldntve", "couldntve"),
        ("couldnt've", "couldn't've", "couldn't've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("dog's", "dog 's", "dog's"),
        ("whats", "what's", "what's"),
        ("3,000", "3000", "3000"),
        ("a,b", "ab", "b"),
        ("3.5", "3.5", "3.5"),
        ("5.", "5", "5."),
        ("U.S.A.", "usa", "usa"),
        ("t-shirt", "t shirt", "t shirt"),
        ("t-shirt - red", "tshirt red", "tshirt red"),
        ("really?", "really", "really"),
        ("12:30", "12:30", "12:30"),
        ("coca\ncola", "coca cola", "coca cola"),
        ("", "", ""),
        (" . ", "", ""),
    ],
)
def test_answers_are_made_alike_as_the_scripts_do(answer: str, official: str, kit: str) -> None:
    assert m4c(answer) == official
    assert vlmevalkit(answer) == kit


def test_only_32_full_stops_are_removed_as_in_the_scripts() -> None:
    assert m4c("." * 40) == "." * 8


@pytest.mark.parametrize(
    ("matches", "earned"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_agreement_of_three_others_earns_all(matches: int, earned: float) -> None:
    given = ["x"] * matches + [str(n) for n in range(10 - matches)]
    assert consensus("x", given) == pytest.approx(earned)


def test_people_are_compared_after_they_were_made_alike() -> None:
    assert consensus(m4c("Nous les gosses"), [m4c(a) for a in ANSWERS]) == pytest.approx(0.9)
