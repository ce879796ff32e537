"""What the README shows is what the tests know."""

from __future__ import annotations

import re
from pathlib import Path

from matrix import support_table

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_support_table_is_the_one_that_the_test_matrix_gives() -> None:
    text = README.read_text(encoding="utf-8")
    shown = re.search(r"<!-- support -->\n(.*?)\n<!-- /support -->", text, re.DOTALL)
    assert shown
    assert shown[1].strip() == support_table().strip()
