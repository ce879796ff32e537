"""A real browser on a page of the tests' own server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Without the last ones a browser looks for its maker's servers at every start.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; skips the test, with the reason, where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium on the path")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=list(_FLAGS))
        try:
            yield running
        finally:
            running.close()
