"""What the README shows is what the tests know."""

from __future__ import annotations

import re
from pathlib import Path

import census_table
import pytest
from census_lvlm import FEWER
from matrix import support_table

README = Path(__file__).resolve().parent.parent / "README.md"


def shown(name: str) -> str:
    """What stands between two marks."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    assert found
    return found[1].strip()


@pytest.mark.skipif(FEWER, reason="an older transformers has fewer families")
def test_the_support_table_is_the_one_that_the_test_matrix_gives() -> None:
    assert shown("support") == support_table().strip()


def test_the_table_of_denoisers_is_the_one_that_the_census_gives() -> None:
    assert shown("denoisers") == census_table.support_table().strip()
