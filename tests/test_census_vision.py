"""Every vision tower that is said to be known is looked at and edited exactly, run on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from census_lvlm import EVERY, bare_host, tiny_model
from torch import Tensor
from vision_maps import Raise, Spec, explicitly, literal, of_picture

from regaze.hooks import attach, capture
from regaze.hooks.families import FAMILIES
from regaze.hooks.host import find_host
from regaze.hooks.pictures import Eye
from regaze.hooks.vision_towers import VISION

SEEN = [family for family in EVERY if FAMILIES[family].vision]
UNSEEN = [f for f in EVERY if not FAMILIES[f].vision and not FAMILIES[f].refuse]
FRAMES = [[1, 4, 6], [2, 4, 4]]
"""A picture and two frames."""
GRIDS = [[1, 4, 6], [1, 4, 4], [1, 4, 4]]
"""Three pictures."""


def pictures(eye: Eye) -> tuple[dict[str, Any], list[int]]:
    """The tower's input, and the lengths of pictures in a packed sequence."""
    config: Any = eye.tower.config
    generator = torch.Generator().manual_seed(0)
    if eye.vision.layout in ("grids", "windows"):
        size = int(config.patch_size) ** 2 * int(config.temporal_patch_size)
        size *= int(getattr(config, "in_channels", 3))
        patches = torch.randn(24 + 2 * 16, size, generator=generator)
        # GLM's tower takes frames one by one.
        grids = GRIDS if type(eye.tower).__name__.startswith("Glm4v") else FRAMES
        return {"hidden_states": patches, "grid_thw": torch.tensor(grids)}, [24, 16, 16]
    pixels = torch.randn(2, 3, 24, 24, generator=generator)
    if eye.vision.layout == "packed":
        sizes = torch.tensor([[8, 16], [24, 24]])
        return {"pixel_values": pixels, "image_sizes": sizes}, [2, 9]
    return {"pixel_values": pixels}, []


@torch.no_grad()
def run(eye: Eye, given: dict[str, Any]) -> Tensor:
    found: Tensor = eye.tower(**given).last_hidden_state
    return found


@pytest.mark.parametrize("family", SEEN)
def test_a_known_tower_is_seen_and_edited_exactly(family: str) -> None:
    model = tiny_model(family).model
    eye = find_host(model).eye
    given, lengths = pictures(eye)
    plain = run(eye, given)
    with explicitly(eye, lengths) as maps:
        torch.testing.assert_close(run(eye, given), plain, rtol=0, atol=1e-4)
    with capture(model, "all", tower="vision") as seen:
        assert torch.equal(run(eye, given), plain)
    assert len(seen.captured) == len(maps) * len(seen.pictures)
    for one in seen.captured:
        want = of_picture(maps[one.layer], [p.length for p in seen.pictures], one.picture)
        torch.testing.assert_close(one.weights, want, rtol=0, atol=1e-5)
        columns = seen.pictures[one.picture].grid.flatten().sort().values
        first = int(eye.vision.class_token)
        assert torch.equal(columns, torch.arange(first, len(columns) + first))
    with explicitly(eye, lengths, literal("all", eye.vision.class_token)):
        want = run(eye, given)
    with attach(model, Spec(Raise("all"))) as attached:
        found = run(eye, given)
    assert attached.report().fired
    size = float(want.abs().max())
    assert float((want - plain).abs().max()) > 1e-2 * size
    torch.testing.assert_close(found, want, rtol=0, atol=2e-5 * size)
    assert torch.equal(run(eye, given), plain)


@pytest.mark.parametrize("family", UNSEEN)
def test_another_tower_raises(family: str) -> None:
    model = tiny_model(family).model
    with pytest.raises(ValueError, match=r"vision tower of .* neither edited nor looked at"):
        capture(model, "all", tower="vision")


def test_every_tower_in_the_table_is_tried() -> None:
    found = {type(bare_host(family).eye.tower).__name__ for family in SEEN}
    assert found == set(VISION)
