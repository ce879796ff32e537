"""Requirements are said once, and one that is too old is refused at import."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from regaze import requirements

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("hooks", "interventions", "evals", "regaze")
PINNED = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)


def floors() -> dict[str, str]:
    """The lowest versions that pyproject allows."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") : text.index("[project.optional")]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)[",]', block))


def test_the_oldest_versions_tested_are_the_oldest_that_are_allowed() -> None:
    oldest = dict(PINNED.findall((ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")))
    for name, floor in floors().items():
        assert oldest[name].removesuffix(".0").startswith(floor.removesuffix(".0")), name
    assert floors().items() >= requirements.OLDEST.items()


@pytest.fixture
def too_old(tmp_path: Path) -> Path:
    """A folder where Python finds an old transformers first."""
    info = tmp_path / "transformers-5.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.2.0\n")
    return tmp_path


def test_a_library_that_is_too_old_is_refused_at_import(too_old: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(too_old)!r}); import regaze"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: regaze needs transformers {requirements.OLDEST['transformers']} or newer, "
        f"and found 5.2.0: pip install 'transformers>={requirements.OLDEST['transformers']}'"
    )


def test_the_command_says_so_in_one_line(too_old: Path) -> None:
    command = Path(sys.executable).with_name("regaze")
    surroundings = os.environ | {"PYTHONPATH": str(too_old)}
    run = subprocess.run([command, "list"], env=surroundings, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: regaze needs transformers ")


@pytest.mark.parametrize(
    ("found", "fits"), [("5.9.1", False), ("5.18.0.dev0", True), ("5.18.0", True), ("5.24.9", True)]
)
def test_versions_are_compared_by_their_numbers(
    found: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "OLDEST", {"transformers": "5.18"})
    monkeypatch.setattr(metadata, "version", lambda name: found)
    if fits:
        requirements.check()
    else:
        with pytest.raises(ImportError, match="5.18 or newer, and found 5.9.1"):
            requirements.check()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "OLDEST", {"no-such-library": "1.0"})
    with pytest.raises(ImportError, match="no-such-library 1.0 or newer, and found none"):
        requirements.check()


@pytest.mark.parametrize("found", ["5.25.0", "5.25.0.dev0", "6.0"])
def test_a_version_that_was_never_tested_is_refused(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: found)
    with pytest.raises(ImportError, match=f"older than 5.25, and found {found}: pip install"):
        requirements.check()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"<{requirements.BELOW['transformers']}" in text


def names_of_torch(tree: ast.Module) -> Iterator[str]:
    """Names such as ``torch.nn.functional.pad`` that a file uses."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] == "torch":
                    known[one.asname or "torch"] = one.name if one.asname else "torch"
                    yield one.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for one in node.names:
                known[one.asname or one.name] = f"{node.module}.{one.name}"
    yield from known.values()
    for node in ast.walk(tree):
        behind: list[str] = []
        while isinstance(node, ast.Attribute):
            behind.insert(0, node.attr)
            node = node.value
        if behind and isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *behind])


def test_only_names_that_the_oldest_torch_has_are_used() -> None:
    """The list was read off the code and tried on the oldest torch, where this test tries it anew.

    A new name goes into the list after `make test-oldest`, whose torch the other tests don't have.
    """
    listed = (ROOT / "tests" / "data" / "torch-names.txt").read_text(encoding="utf-8").split()
    paths = [path for part in PARTS for path in (ROOT / part).rglob("*.py")]
    used = {name for path in paths for name in names_of_torch(ast.parse(path.read_bytes()))}
    assert used == set(listed)
    for name in listed:
        assert exists(name), name
    assert not exists("torch.compiler.is_gone")


def exists(name: str) -> bool:
    """True if torch has that name, or a module of it."""
    found: Any = torch
    parts = name.split(".")
    for i in range(1, len(parts)):
        if not hasattr(found, parts[i]):
            try:
                importlib.import_module(".".join(parts[: i + 1]))
            except ImportError:
                return False
        found = getattr(found, parts[i])
    return True
