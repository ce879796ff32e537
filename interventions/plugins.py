"""Methods and benchmarks from elsewhere: installed packages that offer them, and single files.

A package offers a method in its ``pyproject.toml``, under the name that it is registered by:

    [project.entry-points."regaze.interventions"]
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

METHODS = "regaze.interventions"
BENCHMARKS = "regaze.benchmarks"


def offered(group: str) -> dict[str, metadata.EntryPoint]:
    """Find what installed packages offer, by name, without importing it.

    Args:
        group: `METHODS` or `BENCHMARKS`.
    """
    return {point.name: point for point in metadata.entry_points(group=group)}


def load(point: metadata.EntryPoint) -> Any:
    """Import what a package offers.

    Raises:
        ImportError: It can't be imported, whatever the reason; the message names the package.
    """
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else "an installed package"
        raise ImportError(
            f"{point.name}: {package} offers {point.value}, which can't be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def load_file(path: Path) -> None:
    """Run a Python file that registers methods or benchmarks.

    Raises:
        OSError: There is no such file.
        ImportError: It raises; the message says where.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--load: there is no file {path}")
    name = f"regaze_loaded_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"--load: {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up there.
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = _line_in(spec.origin or str(path), error)
        raise ImportError(f"--load: {path}{line}: {type(error).__name__}: {error}") from error


def _line_in(path: str, error: BaseException) -> str:
    """The last line of the file that an error came through, as `, line N`."""
    number, at = None, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == path:
            number = at.tb_lineno
        at = at.tb_next
    return "" if number is None else f", line {number}"
