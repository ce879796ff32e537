"""Packages that load their names when they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import regaze
from regaze.hooks.lazy import exports

PACKAGES = ["regaze", "regaze.hooks", "regaze.hooks.diffusion", "regaze.interventions"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_is_there_and_listed(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__)
    for each in package.__all__:
        value = getattr(package, each)
        assert value.__name__ == each
        assert each in dir(package)


def test_a_function_goes_before_the_submodule_of_its_name() -> None:
    code = (
        "import regaze.hooks.attach, regaze.hooks.diffusion.sites\n"
        "from regaze.hooks import attach\n"
        "from regaze.hooks.diffusion import sites\n"
        "print(attach.__module__, sites.__module__, regaze.hooks.attach is attach)\n"
        "print(regaze.evals.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [
        "regaze.hooks.attach", "regaze.hooks.diffusion.host", "True", "regaze.evals",
    ]  # fmt: skip


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'regaze' has no attribute 'atach'"):
        regaze.atach  # type: ignore[attr-defined]  # noqa: B018


def test_a_submodule_that_fails_to_import_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from regaze.hooks.lazy import lazy\n"
        "if TYPE_CHECKING:\n"
        "    from json import dumps as dumps\n"
        "else:\n"
        "    __getattr__, __dir__, __all__ = lazy(__name__, __file__)\n"
    )
    (folder / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("lazy_example")
    assert exports(folder / "__init__.py") == {"dumps": "json"}
    assert package.dumps(1) == "1"
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        package.broken  # noqa: B018
