"""The map of files in docs/diffusion.md names every file of the engine, and no other."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_file_is_on_the_map_once(root: Path) -> None:
    page = (root / "docs" / "diffusion.md").read_text(encoding="utf-8")
    section = page.split("## Map of files")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+\.py)`", section)
    files = {path.name for path in (root / "hooks" / "diffusion").glob("*.py")}
    assert sorted(named) == sorted(files - {"__init__.py"})
