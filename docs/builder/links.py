"""Places of the repository's files on the site, and links between them.

Pages are written so that they read well where the repository is hosted: their links are relative
paths to files. On the site, pages outside of docs/ get a place, and source files a page that shows
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from builder.specs import ROOT

_LINK = re.compile(r"(\]\(<?|(?:src|href)=\")([^)\s>\"]+)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


@cache
def moved() -> dict[str, str]:
    """Pages outside of docs/, and what they are called on the site."""
    cards = [*ROOT.glob("evals/sandbox/models/*/README.md"), *ROOT.glob("evals/sandbox/smol/*.md")]
    models = {
        card.relative_to(ROOT).as_posix(): f"models/{card.parent.name}.md" for card in sorted(cards)
    }
    return {
        "README.md": "index.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "benchmarks/README.md": "benchmarks.md",
        "evals/sandbox/README.md": "models/index.md",
        **models,
    }


def site_page(path: str) -> str | None:
    """The place on the site of a file of the repository; None if it has none."""
    if path in moved():
        return moved()[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def code_page(path: str) -> str:
    """The page that shows a source file or lists a folder."""
    return f"code/{path}.md"


def linked(pages: Iterable[str]) -> set[str]:
    """Files and folders that pages of the repository link to and that have no page themselves."""
    found = set()
    for page in pages:
        for path, _ in _targets((ROOT / page).read_text(encoding="utf-8"), page):
            if not (site_page(path) or "").endswith((".md", ".png", ".svg", ".json")):
                found.add(path)
    return found


def rewritten(text: str, page: str, on_site: str) -> str:
    """A page's text with the links that it has on the site.

    Args:
        text: Markdown.
        page: The page's path in the repository.
        on_site: The page's path on the site.
    """

    def again(match: re.Match[str]) -> str:
        target = _target(match[2], page)
        if target is None:
            return match[0]
        path, anchor = target
        there = site_page(path)
        if there is None or not there.endswith((".md", ".png", ".svg", ".json")):
            there = code_page(path)
        start = PurePosixPath(on_site).parent
        return match[1] + os.path.relpath(there, start).replace(os.sep, "/") + anchor

    parts = _CODE.split(text)
    return "".join(part if n % 2 else _LINK.sub(again, part) for n, part in enumerate(parts))


def shown(path: str) -> str:
    """The text of the page that shows a source file, or lists a folder."""
    there = ROOT / path
    if there.is_dir():
        names = sorted(p.name for p in there.iterdir() if not p.name.startswith((".", "__")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    kind = {".py": "python", ".toml": "toml", ".json": "json"}.get(there.suffix, "")
    source = there.read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n`````{kind}\n{source}\n`````\n"


def _targets(text: str, page: str) -> Iterator[tuple[str, str]]:
    for match in _LINK.finditer(_CODE.sub("", text)):
        if target := _target(match[2], page):
            yield target


def _target(link: str, page: str) -> tuple[str, str] | None:
    """The file of the repository that a link leads to, and what follows its path."""
    path, sign, anchor = link.partition("#")
    if re.match(r"[a-z]+:", link) or not path:
        return None
    there = Path(os.path.normpath(ROOT / Path(page).parent / path))
    if not there.exists() or ROOT not in there.parents:
        return None
    return there.relative_to(ROOT).as_posix(), sign + anchor
