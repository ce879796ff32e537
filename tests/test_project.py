"""The files around the code: workflows, forms, citation, version, changelog, release."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import regaze

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted((GITHUB / "workflows").glob("*.yml")),
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / n for n in ("bug.yml", "method.yml")],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_file_is_what_its_readers_take(schema: str) -> None:
    pytest.importorskip("check_jsonschema", reason="schemas are checked by check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    command += ["--default-filetype", "yaml", *map(str, SCHEMAS[schema])]
    run = subprocess.run(command, capture_output=True, text=True)
    assert SCHEMAS[schema] and run.returncode == 0, run.stdout + run.stderr


def test_workflows_run_targets_that_the_makefile_has() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    used = {
        name
        for path in SCHEMAS["vendor.github-workflows"]
        for name in re.findall(r"run: make ([\w-]+)", path.read_text(encoding="utf-8"))
    }
    assert {"check", "test", "test-oldest", "docs", "wheel"} <= used <= set(targets)


def test_workflows_try_every_python_that_is_promised() -> None:
    promised = re.findall(
        r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    tried = re.search(r"python-version: \[(.*)\]", (GITHUB / "workflows/ci.yml").read_text())
    assert tried and re.findall(r'"(.*?)"', tried[1]) == promised


def test_the_version_is_said_once(release: ModuleType) -> None:
    assert regaze.__version__ == metadata.version("regaze")
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited and cited[1] == release.version()
    assert "__version__ = _version(" in (ROOT / "regaze" / "__init__.py").read_text()


LOG = """# Changelog

## Unreleased

New

- a line

## 0.1.0 (2026-01-02)

- an older line
"""


def test_a_cut_dates_what_is_unreleased_and_leaves_an_empty_heading(release: ModuleType) -> None:
    found = release.cut(LOG, "0.2.0", "2026-11-28")
    assert found == LOG.replace("## Unreleased\n", "## Unreleased\n\n## 0.2.0 (2026-11-28)\n")
    assert release.notes(found, "0.2.0") == "New\n\n- a line\n"
    assert release.notes(found, "0.1.0") == "- an older line\n"
    for text, said in ((found, "already"), (LOG.replace("0.1.0", "0.2.0"), "already")):
        with pytest.raises(ValueError, match=said):
            release.cut(text, "0.2.0", "2026-11-28")
    with pytest.raises(ValueError, match="nothing under"):
        release.cut(found, "0.3.0", "2026-12-28")
    with pytest.raises(ValueError, match="no heading for 0.3.0: make cut"):
        release.notes(found, "0.3.0")


def test_a_cut_sets_version_and_date_wherever_they_stand(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHANGELOG.md", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(LOG)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    release.cut_files("9.8.7", "2031-02-03")
    assert release.version() == "9.8.7"
    assert "## 9.8.7 (2031-02-03)" in (tmp_path / "CHANGELOG.md").read_text()
    cited = (tmp_path / "CITATION.cff").read_text()
    assert "version: 9.8.7\ndate-released: 2031-02-03\n" in cited and "cff-version: 1.2.0" in cited
    before, after = ((where / "pyproject.toml").read_text() for where in (ROOT, tmp_path))
    changed = [
        pair
        for pair in zip(before.splitlines(), after.splitlines(), strict=True)
        if len({*pair}) > 1
    ]
    assert len(changed) == 1
    for number, date in (("9.9", "2031-02-03"), ("9.9.9", "2031-02-30")):
        with pytest.raises(ValueError):
            release.cut_files(number, date)
