"""The README and the tables of models agree with the tests."""

from __future__ import annotations

import re
from pathlib import Path

import census_table
import pytest
from census_lvlm import FEWER
from matrix import support_table

from regaze.interventions.shipped import outlines

ROOT = Path(__file__).resolve().parent.parent


def shown(name: str) -> str:
    """The text between two marks in the page of supported models."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    assert found
    return found[1].strip()


def facts(table: str) -> dict[tuple[str, str], tuple[str, str]]:
    """What a table says: by model and methods a word and the reason of its footnote."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", table, re.MULTILINE))

    def read(cell: str) -> tuple[str, str]:
        word, _, note = cell.strip().partition("<sup>")
        return word, reasons.get(note.removesuffix("</sup>"), "")

    head, _, *rows = [line[2:-2].split(" | ") for line in table.splitlines() if line[:1] == "|"]
    said = {}
    for titles, *cells in rows:
        for title, mark in map(read, titles.split(", ")):
            said[title, "is known"] = ("yes", mark)
            said |= {(title, of): read(cell) for of, cell in zip(head[1:], cells, strict=True)}
    for titles, reason in re.findall(r"^- (.*?): (.*)$", table, re.MULTILINE):
        said |= {(title, "is refused"): ("yes", reason) for title in titles.split(", ")}
    return said


@pytest.mark.skipif(FEWER, reason="an older transformers has fewer families")
def test_the_support_table_is_the_one_that_the_test_matrix_gives() -> None:
    assert shown("support") == support_table().strip()


def test_the_support_table_says_of_each_family_here_what_the_test_matrix_gives() -> None:
    here, said = facts(support_table()), facts(shown("support"))
    assert ("LLaVA", "is known") in here and len(here) > 400
    assert {known: said.get(known) for known in here} == here


def test_the_table_of_denoisers_is_the_one_that_the_census_gives() -> None:
    assert shown("denoisers") == census_table.support_table().strip()


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_links_to_the_card_of_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\[`(\w+)`\]\(docs/methods/(\w+)\.md\)", text)
    assert sorted(name for name, _ in linked) == sorted(outlines())
    assert all(name == card for name, card in linked)
