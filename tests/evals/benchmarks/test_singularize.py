from __future__ import annotations

import pytest

from regaze.evals.benchmarks.singularize import singularize


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *[("dogs", "dog"), ("boxes", "box"), ("benches", "bench"), ("dishes", "dish")],
        *[("crosses", "cross"), ("buses", "bus"), ("potatoes", "potato"), ("shoes", "shoe")],
        *[("puppies", "puppy"), ("monkeys", "monkey"), ("movies", "movie"), ("quizzes", "quiz")],
        *[("wolves", "wolf"), ("knives", "knife"), ("scarves", "scarf"), ("gloves", "glove")],
        *[("men", "man"), ("policewomen", "policewoman"), ("children", "child"), ("feet", "foot")],
        *[("geese", "goose"), ("mice", "mouse"), ("oxen", "ox"), ("teeth", "tooth")],
        *[("people", "person"), ("crises", "crisis"), ("cacti", "cactus"), ("vertices", "vertex")],
        *[("vases", "vase"), ("roses", "rose"), ("houses", "house"), ("bookcases", "bookcase")],
    ],
)
def test_plurals_become_singular(plural: str, singular: str) -> None:
    assert singularize(plural) == singular


@pytest.mark.parametrize("word", ["dog", "sofa", "couch", "giraffe", "broccoli", "tie", "cutlery"])
def test_singulars_stay(word: str) -> None:
    assert singularize(word) == word


@pytest.mark.parametrize(
    "word", ["sheep", "scissors", "series", "luggage", "aircraft", "s", "is", "ors"]
)
def test_words_without_a_plural_and_the_ends_of_such_words_stay(word: str) -> None:
    assert singularize(word) == word


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        *[("bus", "bu"), ("glass", "glas"), ("ties", "ty"), ("tennis", "tenni")],
        *[("canoes", "cano"), ("police", "polouse"), ("drives", "drife"), ("four", "fmy")],
        *[("cookies", "cookies"), ("collies", "collies"), ("spaghetti", "spaghettus")],
        *[("shelves", "shelve"), ("bases", "basis"), ("data", "datum"), ("has", "ha")],
    ],
)
def test_pattern_is_followed_where_it_is_wrong(word: str, wrong: str) -> None:
    assert singularize(word) == wrong


@pytest.mark.parametrize(
    ("word", "singular"),
    [
        *[("passers-by", "passer-by"), ("mothers-in-law", "mother-in-law")],
        *[("hot-dogs", "hot-dog"), ("dogs'", "dog's"), ("'", "'s"), ("", "")],
    ],
)
def test_hyphens_and_apostrophes(word: str, singular: str) -> None:
    assert singularize(word) == singular
