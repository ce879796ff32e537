"""What there is to say of the shipped methods, read off their sources: nothing is imported.

A method's module needs torch, and a list of names should not wait for that.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regaze.hooks.lazy import exports


@dataclass(frozen=True)
class Outline:
    """A method as its class describes it.

    Attributes:
        summary: What it does.
        paper: Where it is described.
        module: What to import for it.
    """

    summary: str
    paper: str
    module: str


@cache
def outlines() -> Mapping[str, Outline]:
    """The methods that this package exports, by the names that they are registered under."""
    here = Path(__file__).parent
    found = {}
    for module in dict.fromkeys(exports(here / "__init__.py").values()):
        path = here.joinpath(*module.split(".")[2:]).with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        if "\n@register\n" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(one, ast.Name) and one.id == "register" for one in node.decorator_list
            ):
                said = _texts(node)
                found[said["name"]] = Outline(said["summary"], said.get("paper", ""), module)
    return found


def _texts(node: ast.ClassDef) -> dict[str, str]:
    """The class attributes that are set to a string."""
    return {
        line.target.id: ast.literal_eval(line.value)
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    }
