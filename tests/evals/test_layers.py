"""Dependencies between the parts of evals: no circles, types included, one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EVALS = ROOT / "evals"
# A part and the parts of evals that it may import; those not named may import all that is here.
ALLOWED: dict[str, set[str]] = {
    "sandbox": {"sandbox", "polling", "runs", "outputs"},
    "polling": set(),
    "runs": {"runs", "task"},
    "task": set(),
    "scoring": {"scoring", "runs", "task"},
}


def modules() -> dict[str, Path]:
    """Every module of evals by its full name."""
    return {
        ".".join(("regaze", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in EVALS.rglob("*.py")
    }


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """The modules of evals that one imports anywhere, also for types alone."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if part in MODULES else str(node.module) for part in parts]
        yield from (each for each in names if each in MODULES and each != name)


GRAPH = {name: set(imported(name)) for name in MODULES}


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_lies_below_it(part: str) -> None:
    top = f"regaze.evals.{part}"
    own = [name for name in GRAPH if name == top or name.startswith(f"{top}.")]
    assert own
    found = {target.split(".")[2] for name in own for target in GRAPH[name]}
    assert found <= ALLOWED[part]
