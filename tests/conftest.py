"""Surroundings that every test shares."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: one thread fixes the order of sums, so that equal means equal bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for a model hub; a forgotten download fails at once instead of hanging.
os.environ["HF_HUB_OFFLINE"] = "1"
# Most objects are those of the libraries and of models that stay: look at them less often.
gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the benchmarks' own files, which the repository may not hold."""
    folder = os.environ.get("REGAZE_DATA")
    if folder is None:
        pytest.skip("REGAZE_DATA does not name a folder with the benchmarks' own files")
    return Path(folder)


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    """Fail the test that leaves gradients off, not one that comes later."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("the test left gradients off, for the whole process")


@pytest.fixture(autouse=True, scope="module")
def shared_pipelines_stay() -> Iterator[None]:
    """Fail the file that changes a shared pipeline, not one that comes later."""
    yield
    shared = sys.modules.get("tiny_pipelines")
    if shared is not None and (names := shared.changed()):
        pytest.fail(f"the file left shared pipelines changed: {', '.join(names)}")


@pytest.fixture
def own_methods() -> Iterator[None]:
    """Forget the methods that a test registers; those of regaze stay, as their modules do."""
    from regaze.interventions import base
    from regaze.interventions.shipped import outlines

    yield
    for name in set(base._REGISTRY) - set(outlines()):
        del base._REGISTRY[name]
