"""Outlines of the shipped methods, read off their sources without importing them.

A method's module needs torch, and a list of names should not wait for that. So a class says its
``name``, ``summary`` and ``paper`` as plain strings, itself or by a base in the same file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regaze.hooks.lazy import exports


@dataclass(frozen=True)
class Outline:
    """A method as its class describes it.

    Attributes:
        summary: One line on the method.
        paper: The paper, or the repository.
        module: The module to import.
        presets: Names of its published settings.
    """

    summary: str
    paper: str
    module: str
    presets: tuple[str, ...] = ()


@cache
def outlines() -> Mapping[str, Outline]:
    """The methods that this package exports, by the names that they are registered under."""
    here = Path(__file__).parent
    found = {}
    for module in dict.fromkeys(exports(here / "__init__.py").values()):
        path = here.joinpath(*module.split(".")[2:]).with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        if "\n@register\n" in text:
            for said in _registered(ast.parse(text)):
                presets = tuple(said.get("presets", "").split())
                found[said["name"]] = Outline(said["summary"], said["paper"], module, presets)
    return found


def _registered(module: ast.Module) -> Iterator[dict[str, str]]:
    """The texts of each class that is decorated by ``@register``, inherited ones included."""
    classes: dict[str, dict[str, str]] = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            texts: dict[str, str] = {}
            for base in reversed(node.bases):
                texts |= classes.get(ast.unparse(base), {})
            classes[node.name] = texts | _texts(node)
            if "register" in map(ast.unparse, node.decorator_list):
                yield classes[node.name]


def _texts(node: ast.ClassDef) -> dict[str, str]:
    """The class attributes that are set to a string, and the keys of those set to a dict."""
    keys = {
        line.target.id: " ".join(str(ast.literal_eval(key)) for key in line.value.keys if key)
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(line.value, ast.Dict)
    }
    return keys | {
        line.target.id: ast.literal_eval(line.value)
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    }
