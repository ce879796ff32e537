"""The page of error messages quotes messages that the code really has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from test_docs import ROOT

PARTS = ("hooks", "interventions", "evals", "regaze")
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^## `(.+)`$", PAGE, re.MULTILINE)


def texts() -> Iterator[str]:
    """Every text in the code, with a zero where something is put in."""
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(_piece(piece) for piece in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def _piece(piece: ast.expr) -> str:
    known = isinstance(piece, ast.Constant) and isinstance(piece.value, str)
    return str(ast.literal_eval(piece)) if known else "\0"


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(texts())


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_message_is_one_of_the_code(quoted: str, code: str) -> None:
    assert quoted in code


def test_each_message_is_listed_explained_and_answered() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert len(sections) == len(QUOTED) >= 30
    for section in sections:
        assert "**Why.**" in section and "**Do.**" in section, section.splitlines()[0]
    table = PAGE.partition("\n## ")[0]
    assert len(re.findall(r"\]\(#", table)) == len(QUOTED)
