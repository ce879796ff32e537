"""ViCrop's maps and boxes against numbers that the paper's own code produced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vectors import cases, vectors

from regaze.interventions.lvlm.vicrop import crop_box, relative_map

# Not built: the gradient form and tiles.
BUILT = ("box", "rel")


@pytest.mark.parametrize("case", cases("vicrop", lambda case: case["name"].startswith(BUILT)))
def test_vicrop_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("vicrop")
    name = case["name"]
    if "base" in case:
        size = case["image_width"], case["image_height"]
        box = crop_box(inputs[f"{name}.map"].numpy(), size, case["base"])
        assert list(box) == expected[f"{name}.box"].tolist()
        assert [box[2] - box[0], box[3] - box[1]] == expected[f"{name}.crop_size"].tolist()
        return
    wanted = expected[f"{name}.map"]
    span = slice(case["image_start"], case["image_start"] + case["n_image"])
    # There heads are averaged in the model's dtype.
    query, general = (
        inputs[f"{name}.{which}_row"].mean(0)[span].float().view(wanted.shape).numpy()
        for which in ("question", "general")
    )
    np.testing.assert_allclose(relative_map(query, general), wanted.numpy(), rtol=1e-5)
