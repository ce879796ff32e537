from __future__ import annotations

from pathlib import Path

import pytest
from chairs import TABLE, hide_nltk_data

from regaze.evals.benchmarks.chair_tokens import tokenize
from regaze.evals.benchmarks.chair_words import (
    TABLE_SHA256,
    TABLE_VARIABLE,
    Mention,
    ObjectFinder,
    join_pairs,
    load_table,
    parse_table,
)


def found(text: str) -> list[str]:
    return [m.word for m in ObjectFinder(TABLE, sentences="rule")(text).mentions]


# Mentions


def test_every_occurrence_is_a_mention_with_its_class() -> None:
    mentions = ObjectFinder(TABLE, sentences="rule")(
        "A puppy and a DOG. The dog's kitten."
    ).mentions
    assert mentions == (
        Mention("puppy", "dog"),
        Mention("dog", "dog"),
        Mention("dog", "dog"),
        Mention("kitten", "cat"),
    )


def test_a_word_before_a_full_stop_in_mid_paragraph_is_found() -> None:
    assert found("I see a dog. It runs! A cat? No.") == ["dog", "cat"]


def test_the_official_profile_misses_a_single_bus_and_finds_two() -> None:
    assert found("A bus.") == []
    assert found("Two buses.") == ["bus"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two wine glasses and a wine glass", ["wine glass", "wine glass"]),
        ("A baby giraffe and an adult dog", ["giraffe", "dog"]),
        ("A passenger train", ["train"]),
        ("A man in a bow tie", ["man", "tie"]),
        ("Tennis balls, sports balls", ["ball", "ball"]),
        ("A toilet seat", ["toilet"]),
        ("A toilet with its seat up", ["toilet"]),
        ("A seat", ["seat"]),
    ],
)
def test_pairs_of_words_count_as_one(text: str, words: list[str]) -> None:
    assert found(text) == words


def test_pairs_are_joined_from_left_to_right_without_overlap() -> None:
    assert join_pairs(["adult", "bear", "cub", "and", "hot", "dog"]) == [
        "bear",
        "cub",
        "and",
        "hot dog",
    ]
    assert join_pairs(["baby", "bird", "cat"]) == ["bird", "cat"]
    assert join_pairs([]) == []


def test_tokens_keep_the_seat_that_is_no_chair() -> None:
    caption = ObjectFinder(TABLE, sentences="rule")("A toilet with a seat.")
    assert caption.tokens == ("a", "toilet", "with", "a", "seat", ".")


def test_the_sentence_rule_splits_only_where_a_blank_follows() -> None:
    assert tokenize("It is 3.5 m.", "rule") == ["it", "is", "3.5", "m", "."]
    assert tokenize("A cat.A dog.", "rule") == ["a", "cat.a", "dog", "."]
    assert tokenize("Yes!\n\nIsn't it?", "rule") == ["yes", "!", "is", "n't", "it", "?"]
    assert tokenize("", "rule") == []


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown CHAIR profile 'oprea'; did you mean opera"):
        ObjectFinder(TABLE, "oprea")


def test_opera_without_its_data_says_in_one_line_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide_nltk_data(monkeypatch)
    with pytest.raises(
        FileNotFoundError, match=r"^the CHAIR profile.*nltk\.downloader.*$"
    ) as error:
        ObjectFinder(TABLE, "opera")
    assert "\n" not in str(error.value)


# The word table


def test_entries_with_a_blank_keep_it_and_never_match() -> None:
    table = parse_table("cake,  cheesecake, cupcake\ncow, bison \n")
    assert table == {
        "cake": "cake",
        " cheesecake": "cake",
        "cupcake": "cake",
        "cow": "cow",
        "bison": "cow",
    }


def test_a_missing_table_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(TABLE_VARIABLE, raising=False)
    place = tmp_path / "regaze" / "chair" / "synonyms.txt"
    with pytest.raises(FileNotFoundError, match=rf"not at {place}: get https://.*{TABLE_SHA256}"):
        load_table()


def test_another_file_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "words.txt"
    path.write_text("person, man\n")
    monkeypatch.setenv(TABLE_VARIABLE, str(path))
    with pytest.raises(ValueError, match=f"{path} is not CHAIR's word table: its SHA-256 is"):
        load_table()


def test_the_official_table_is_read_as_the_official_script_reads_it(data_dir: Path) -> None:
    path = data_dir / "chair" / "synonyms.txt"
    if not path.is_file():
        pytest.skip(f"{data_dir} holds no CHAIR word table")
    table = load_table(path)
    assert (len(table), len(set(table.values()))) == (403, 80)
    assert {" motor bike", " cheesecake", "iPhone", "bison", "stove top oven"} <= set(table)
    assert table["kitten"] == "cat"
