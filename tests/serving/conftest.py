"""One server for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="serving needs the extra serve")
pytest.importorskip("uvicorn", reason="serving needs the extra serve")

from chat_server import serving

from regaze.evals.asking.models import Loaded
from regaze.serving.engine import Engine


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[Engine, int]]:
    with serving() as found:
        yield found


@pytest.fixture
def port(server: tuple[Engine, int]) -> int:
    return server[1]


@pytest.fixture
def loaded(server: tuple[Engine, int]) -> Loaded:
    """The model that answers; a test may use it while it asks nothing."""
    return server[0].loaded
