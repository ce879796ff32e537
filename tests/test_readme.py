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


@pytest.mark.skipif(FEWER, reason="an older transformers has fewer families")
def test_the_support_table_is_the_one_that_the_test_matrix_gives() -> None:
    assert shown("support") == support_table().strip()


def test_the_table_of_denoisers_is_the_one_that_the_census_gives() -> None:
    assert shown("denoisers") == census_table.support_table().strip()


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_links_to_the_card_of_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\[`(\w+)`\]\(docs/methods/(\w+)\.md\)", text)
    assert sorted(name for name, _ in linked) == sorted(outlines())
    assert all(name == card for name, card in linked)
