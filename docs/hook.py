"""Hooks of MkDocs: pages from outside of docs/, pages made of the code, links, drawings."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from builder import links, reference
from builder.specs import ROOT, methods

from regaze.interventions import get

_ORIGIN: dict[str, str] = {}
"""Pages of the site, and the file of the repository that each is written in."""


def on_startup(**_: Any) -> None:
    """Lay out the packages for the reference, before mkdocstrings looks for its paths."""
    layout = ROOT / "build" / "docs" / "regaze"
    layout.mkdir(parents=True, exist_ok=True)
    for path in [*(ROOT / "regaze").iterdir(), *(ROOT / part for part in _PARTS)]:
        with suppress(FileExistsError):
            (layout / path.name).symlink_to(path)


def on_config(config: Any) -> Any:
    """Put every method into the navigation."""
    groups: dict[str, list[str]] = {"vision-language models": [], "diffusers pipelines": []}
    for name in methods():
        groups[get(name).acts_on].append(f"methods/{name}.md")
    cards = [place for place in links.moved().values() if place.startswith("models/")]
    more: dict[str, list[Any]] = {
        "Start here": _unlisted(config.nav),
        "Methods": [
            {"Language models": groups["vision-language models"]},
            {"Diffusion models": groups["diffusers pipelines"]},
        ],
        "Models": sorted(cards, key=lambda place: place != "models/index.md"),
    }
    for entry in config.nav:
        for title, pages in entry.items():
            if title in more:
                pages += more[title]
    return config


def _unlisted(nav: Any) -> list[str]:
    """Pages of docs/ that the navigation doesn't name."""
    named = str(nav)
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    return [page for page in pages if f"'{page}'" not in named]


_PARTS = ("hooks", "interventions", "evals")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that don't lie in docs/."""
    _ORIGIN.clear()
    for file in files.documentation_pages():
        _ORIGIN[file.src_uri] = f"docs/{file.src_uri}"
    for path, name in links.moved().items():
        if path != "README.md":
            files.append(File.generated(config, name, content=(ROOT / path).read_text("utf-8")))
            _ORIGIN[name] = path
    for name, text in reference.pages().items():
        files.append(File.generated(config, name, content=text))
    wanted = links.linked(_ORIGIN.values())
    wanted |= {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    for path in sorted(wanted):
        files.append(File.generated(config, links.code_page(path), content=links.shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Give a page the links that it has on the site, and put drawings into it."""
    origin = _ORIGIN.get(page.file.src_uri)
    if origin is None:
        return markdown
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = links.rewritten(text, origin, page.file.src_uri)
    if not origin.startswith("docs/methods/"):
        return text

    def drawn(match: re.Match[str]) -> str:
        return (ROOT / "docs" / "methods" / match[1]).read_text(encoding="utf-8").strip()

    return re.sub(r"!\[[^\]]*\]\((\w+\.svg)\)", drawn, text)
