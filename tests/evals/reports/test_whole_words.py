"""No width of the terminal breaks a word of a table."""

from __future__ import annotations

import io

import pytest
from rich import box
from rich.console import Console, RenderableType
from rich.text import Text
from scored import pope_scores, toy_scores

from regaze.evals.reports import tables
from regaze.evals.reports.whole_words import WholeWords

each_width = pytest.mark.parametrize("width", [24, 30, 40, 50, 60, 70, 80, 100])


def shown(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def words(text: str) -> set[str]:
    """Words without rules; a header that is said before each of its cells ends in a colon."""
    return {word.rstrip(":.") for word in text.split() if set(word) != {"─"}}


def table() -> WholeWords:
    found = WholeWords("method", "does", "", box=box.SIMPLE_HEAD, title="Two methods")
    found.add_row("structured_diffusion", "concentrates representations of an image", "one word")
    found.add_section()
    found.add_row("a_star", Text("moves\nlatents", "bold"), "")
    return found


@each_width
@pytest.mark.parametrize(
    "said",
    [table(), tables.render(pope_scores()), tables.summary([pope_scores(), toy_scores()])],
    ids=["table", "scores", "summary"],
)
def test_words_are_whole_and_lines_fit(said: RenderableType, width: int) -> None:
    text = shown(said, width)
    assert max(map(len, text.splitlines())) <= width
    assert words(text) - words(shown(said, 300)) <= words("A wider terminal also shows yes ratio")
    assert "…" not in text


def test_without_room_side_by_side_rows_become_lines() -> None:
    lines = [line.rstrip() for line in shown(table(), 30).splitlines()]
    assert lines == [
        "Two methods",
        "structured_diffusion",
        "  does: concentrates",
        "  representations of an image",
        "  one word",
        "",
        "a_star",
        "  does: moves latents",
        "",
    ]
    assert "structured_diffusion   concentrates" in shown(table(), 80)


def test_columns_that_want_little_get_it_before_those_that_want_much() -> None:
    found = WholeWords("a", "b", box=None, padding=0)
    found.add_row("1 2 3 4", "a long sentence that takes what is left of the line")
    assert shown(found, 30).splitlines()[1].startswith("1 2 3 4a long sentence that")


def test_narrow_scores_keep_every_metric_and_the_p_values() -> None:
    text = shown(tables.render(pope_scores()), 40)
    for part in ("accuracy: 85.4 +9.2▲ [+4.6, +14.2]", "F1: ", "yes ratio: ", "p/Holm: −16 +38"):
        assert part in text
    assert "wider terminal" not in text
