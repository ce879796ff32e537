"""Packages whose names are loaded when they are first used.

A package writes each name once, as an import under ``if TYPE_CHECKING:``, where type checkers and
editors look for it; at run time `lazy` reads the same lines, so that the two can't disagree:

    if TYPE_CHECKING:
        from regaze.interventions.lvlm.vhr import VHR as VHR
    else:
        __getattr__, __dir__, __all__ = lazy(__name__, __file__)
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def exports(file: str | Path) -> dict[str, str]:
    """Find the names that a package's ``__init__.py`` imports under ``if TYPE_CHECKING:``.

    Args:
        file: The source. ``import *`` takes all that the other package exports.

    Returns:
        The module of each name.
    """
    found: dict[str, str] = {}
    for block in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for line in block.body:
            if isinstance(line, ast.ImportFrom) and line.module:
                names = [alias.name for alias in line.names]
                if names == ["*"]:
                    names = importlib.import_module(line.module).__all__
                found |= dict.fromkeys(names, line.module)
    return found


def lazy(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's ``__getattr__``, ``__dir__`` and ``__all__``.

    Args:
        package: Package's ``__name__``.
        file: Package's ``__file__``.
    """
    where = exports(file)

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            # The import system puts each loaded submodule here. What the package exports goes
            # before a submodule of the same name, such as `attach`.
            if not (isinstance(value, ModuleType) and name in where):
                super().__setattr__(name, value)

    module = sys.modules[package]
    module.__class__ = Package

    def load(name: str) -> Any:
        if name in where:
            value = getattr(importlib.import_module(where[name]), name)
            setattr(module, name, value)
            return value
        submodule = f"{package}.{name}"
        try:
            return importlib.import_module(submodule)
        except ModuleNotFoundError as error:
            if error.name != submodule:
                raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted({*vars(module), *where}), sorted(where)
