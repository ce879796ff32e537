"""Files, headings, commands, options and imports that the documentation points at exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from regaze.cli.commands import app

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["benchmarks", "docs", "evals", "examples"]
PAGES = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)|(?:src|href)=\"([^\"]+)\"")

each_page = pytest.mark.parametrize(
    "page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT))
)


def prose(page: Path) -> str:
    """A page's text without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def code(page: Path, *languages: str) -> list[str]:
    """A page's code blocks in any of these languages."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in blocks if language in languages]


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each shell command on a page, continued lines joined."""
    for block in code(page, "", "bash", "sh", "shell", "console"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if line.startswith(("regaze ", "make ")):
                yield shlex.split(line, comments=True)


@each_page
def test_every_link_to_a_file_or_heading_leads_somewhere(page: Path) -> None:
    dead = []
    for match in LINK.finditer(prose(page)):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@each_page
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    targets = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    wrong = []
    for program, *words in commands(page):
        if program == "make":
            wrong += [word for word in words if "=" not in word and word not in targets]
        else:
            wrong += unknown(words)
    assert wrong == []


def unknown(words: list[str]) -> list[str]:
    """The subcommand or options among a ``regaze`` command's words that do not exist."""
    command = typer.main.get_command(app)
    everywhere = command.params
    while subcommands := getattr(command, "commands", {}):
        if not words or words[0].startswith("-"):
            break
        if (pair := " ".join(words[:2])) in subcommands:
            words = [pair, *words[2:]]
        if words[0] not in subcommands:
            return words[:1]
        command, words = subcommands[words[0]], words[1:]
    options = {"-h", "--help"}.union(
        *(one.opts + one.secondary_opts for one in (*everywhere, *command.params))
    )
    given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in given if option not in options]


@each_page
def test_python_code_parses_and_what_it_imports_from_regaze_exists(page: Path) -> None:
    for block in code(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regaze"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_readme_shows_the_commands_a_newcomer_needs() -> None:
    shown = {tuple(words[:2]) for words in commands(ROOT / "README.md")}
    assert {("make", "demo"), ("make", "test"), ("regaze", "eval")} <= shown


def test_pictures_name_no_folder_of_the_machine_that_made_them() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            for key, text in picture.info.items():
                assert not re.search(r'"/\w|"[A-Z]:', str(text)), (path.name, key)


def test_the_map_of_the_engine_names_each_of_its_files() -> None:
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    table = page.partition("## The files")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+(?:\*)?\.py)`", table.partition("`evals/")[0]))
    files = {path.name for path in (ROOT / "hooks").glob("*.py")} - {"__init__.py"}
    ours = {name for name in files if name in named or name.startswith("literal_")}
    assert ours == files
    assert {name for name in named if name != "literal_*.py"} <= files


def test_the_map_of_diffusion_names_each_of_its_files() -> None:
    page = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")
    table = page.partition("## Map of files")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", table))
    files = {path.name for path in (ROOT / "hooks" / "diffusion").glob("*.py")} - {"__init__.py"}
    assert named == files
