"""The documentation site builds without a warning, needs no network, and its links hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from builder import links, reference
from test_docs import ROOT

MISSING = "the site is built with mkdocs-material: pip install -e '.[docs]'"
needs_mkdocs = pytest.mark.skipif(
    not all(util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason=MISSING,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        # No --quiet: it hides warnings from --strict, too.
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@needs_mkdocs
def test_the_site_builds_strictly_and_fetches_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", text
        )
        assert loaded == [], page


@needs_mkdocs
def test_cards_hold_their_drawings_and_reference_pages_their_signatures(site: Path) -> None:
    card = (site / "methods/vhr.html").read_text(encoding="utf-8")
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="rg"' in card
    assert 'href="../code/interventions/lvlm/vhr.py.html"' in card
    api = (site / "reference/regaze.html").read_text(encoding="utf-8")
    assert "interventions" in api and "Raises" in api
    assert "regaze eval pope" not in api
    assert "--batch-size" in (site / "commands.html").read_text(encoding="utf-8")


@needs_mkdocs
def test_lists_tables_and_angle_brackets_are_what_they_were_meant_to_be(site: Path) -> None:
    wrong = []
    for page in site.rglob("*.html"):
        text = re.sub(
            r"<pre.*?</pre>|<code.*?</code>", "", page.read_text(encoding="utf-8"), flags=re.S
        )
        if re.search(r"<p>[^<]*\n(?:- |\* |\d\. |\|)|<image>", text):
            wrong.append(page.name)
    assert wrong == []


def test_links_lead_to_the_page_that_shows_a_file() -> None:
    text = "[a](../hooks/edits.py#L3) [b](engine.md) [c](../README.md) [d](x:y) `[e](../hooks)`"
    assert links.rewritten(text, "docs/verify.md", "verify.md") == (
        "[a](code/hooks/edits.py.md#L3) [b](engine.md) [c](index.md) [d](x:y) `[e](../hooks)`"
    )
    card = links.rewritten("[a](../../hooks/edits.py)", "docs/methods/pag.md", "methods/pag.md")
    assert card == "[a](../code/hooks/edits.py.md)"
    assert {"hooks/edits.py", "interventions/base.py"} <= links.linked(["CONTRIBUTING.md"])


def test_every_example_and_command_is_on_a_page() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert f"## {path.name}" in reference.examples()
    listed = reference.commands()
    assert "## regaze eval pope" in listed or "## regaze eval" in listed
    assert "`--with`" in listed and "## regaze verify" in listed
