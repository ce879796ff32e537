"""The wheel holds the packages with all their files, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).resolve().parent.parent
# Folder in the repository -> package in the wheel.
PARTS = {
    "regaze": "regaze",
    "hooks": "regaze/hooks",
    "interventions": "regaze/interventions",
    "evals": "regaze/evals",
}


def sources() -> dict[str, Path]:
    """Every file of the packages, by the name it must have in the wheel."""
    return {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, package in PARTS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves files behind, and would pick them up."""
    copy = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, copy)
    for folder in PARTS:
        shutil.copytree(ROOT / folder, copy / folder)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", copy / "dist", copy)
    (built,) = (copy / "dist").iterdir()
    return built


def pip(*args: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", *args, "--quiet"], check=True)


def test_the_package_list_equals_the_folders() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = config["tool"]["setuptools"]["packages"]
    found = {Path(name).parent for name in sources() if name.endswith("/__init__.py")}
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in found)


def test_every_python_file_lies_in_a_listed_package() -> None:
    names = sources()
    orphans = [
        name
        for name in names
        if name.endswith(".py") and f"{Path(name).parent.as_posix()}/__init__.py" not in names
    ]
    assert orphans == []


def test_the_wheel_holds_exactly_the_files_of_the_packages(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(sources())


@pytest.mark.parametrize("ending", ["/py.typed", ".safetensors", "/processor_config.json", ".j2"])
def test_the_wheel_holds_more_than_python_files(wheel: Path, ending: str) -> None:
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(ending)]


def test_only_regaze_stands_at_the_top_of_the_wheel(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top.split("-")[0] for top in tops} == {"regaze"}
    assert {Path(top).suffix for top in tops} == {"", ".dist-info"}


def test_the_wheel_names_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_installed_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    command = [str(site / "bin" / "regaze"), "list"]
    # The folder comes before the editable install, so the wheel's own files are what runs.
    env = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "vhr" in run.stdout
    code = "import regaze.hooks.attach, regaze.evals.sandbox as last; print(last.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(site / "regaze" / "evals" / "sandbox" / "__init__.py")
