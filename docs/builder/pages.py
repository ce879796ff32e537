"""Facts about a method from other pages: its row and notes in methods.md, cards, models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from builder.specs import ROOT
from regaze.interventions import Intervention


@dataclass(frozen=True)
class Table:
    """A Markdown table.

    Attributes:
        heading: The heading above the table.
        header: The table's first row.
        rows: The rows under the header.
    """

    heading: str
    header: list[str]
    rows: list[list[str]]


@cache
def text(page: str) -> str:
    """A page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def tables(page: str) -> Iterator[Table]:
    """The tables of a page, in order."""
    heading, lines = "", list[str]()
    for line in [*text(page).splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            header, *rows = [cells(one) for one in lines]
            yield Table(heading, header, rows[1:])
            lines = []


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def does(cls: type[Intervention]) -> tuple[str, str] | None:
    """A method's effect in the words of methods.md: the head of that column, and the text."""
    for table in tables("docs/methods.md"):
        for row in table.rows:
            if cls.name in re.findall(r"`(\w+)`", row[0]):
                return table.header[1], row[1]
    return None


def notes(cls: type[Intervention]) -> str:
    """The paragraphs of methods.md that begin with its name in bold."""
    _, _, listed = text("docs/methods.md").partition("\n## Where paper and code differ\n")
    listed = listed.partition("\n## ")[0].strip()
    for note in re.split(r"\n\n(?=\*\*)", listed):
        title = re.match(r"\*\*(.+?)\.?\*\*", note)
        if title and any(_same(part, cls) for part in re.split(r" and |, ", title[1])):
            return note
    return ""


def avoid(cls: type[Intervention]) -> str:
    """The advice of methods.md against a method's use."""
    for table in tables("docs/methods.md"):
        if table.heading == "When not to use them":
            for row in table.rows:
                if f"`{cls.name}`" in row[0]:
                    return row[1]
    return ""


def refusals(cls: type[Intervention]) -> dict[str, str]:
    """Families of vision-language models on which it raises, as docs/models.md says, and why."""
    text_ = text("docs/models.md")
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", _between(text_, "support"), re.MULTILINE))
    found: dict[str, str] = {}
    for table in tables("docs/models.md"):
        for place, names in enumerate(table.header):
            if cls.name.upper() in names.split(", "):
                for row in table.rows:
                    if why := re.match(r"no<sup>(\d+)</sup>", row[place]):
                        models = re.sub(r"<sup>\d+</sup>", "", row[0])
                        reason = reasons[why[1]]
                        found[reason] = f"{found[reason]}, {models}" if reason in found else models
    return found


def cards(cls: type[Intervention]) -> list[str]:
    """Cards of shipped models in which it was measured."""
    pages = sorted(ROOT.glob("evals/sandbox/models/*/README.md"))
    shown = [page.relative_to(ROOT).as_posix() for page in pages]
    return [page for page in shown if re.search(rf"`{cls.name}\b|\b{cls.__name__}\b", text(page))]


def beside_pictures(cls: type[Intervention]) -> bool:
    """True if a table of the page of pictures measures it."""
    rows = [row for table in tables("docs/pictures.md") for row in table.rows]
    return any(re.search(rf"`{cls.name}\b", row[0]) for row in rows)


def _between(text_: str, name: str) -> str:
    return text_.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def key(name: str) -> str:
    """A name's letters and figures, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names_of(cls: type[Intervention]) -> set[str]:
    """The keys that a method is found by."""
    return {key(cls.name), key(cls.__name__)}


def _same(title: str, cls: type[Intervention]) -> bool:
    named = key(title)
    return named in names_of(cls) or any(len(n) > 4 and named.startswith(n) for n in names_of(cls))
