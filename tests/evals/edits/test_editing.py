"""The part that an edit might change is shown where the model's tokens lie in the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regaze.evals.edits.editing import _mask
from regaze.interventions import ConsistEdit
from regaze.interventions.diffusion.edit_source import Source

SHARES = torch.zeros(1, 24)
SHARES[0, 5:9] = 1.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def shown(grid: tuple[int, ...], **fields: str) -> torch.Tensor | None:
    source = Source(torch.zeros(2, 1, 4, 4, 6), torch.arange(2.0), SHARES, grid).keep()
    return _mask(ConsistEdit(source=str(source), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (2, 12), (1, 4, 6)])
def test_tokens_lie_where_the_model_had_them(grid: tuple[int, ...]) -> None:
    found = shown(grid)
    assert found is not None and found.shape == grid[-2:]
    assert torch.equal(found.flatten(), SHARES[0] > 0)
    outside = shown(grid, region="outside")
    assert outside is not None and torch.equal(outside, ~found)


@pytest.mark.parametrize("grid", [(), (2, 3, 4)], ids=["unknown", "a video's"])
def test_places_are_never_guessed(grid: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="doesn't say how its tokens lie in the picture"):
        shown(grid)
