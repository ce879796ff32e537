"""Fixtures of the tests of commands."""

from __future__ import annotations

import pytest
from toy import save_toy_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy_model(tmp_path_factory.mktemp("models") / "toy"))
