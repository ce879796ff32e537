"""ViCrop's maps and boxes against numbers that the paper's own code produced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vectors import cases, vectors

from regaze.interventions.lvlm.vicrop_maps import (
    crop_box,
    gradient_map,
    join,
    relative_map,
    tile_boxes,
)


@pytest.mark.parametrize("case", cases("vicrop"))
def test_vicrop_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("vicrop")
    name = case["name"]
    if name.startswith("tiles"):
        size = case["image_width"], case["image_height"]
        boxes = tile_boxes(size)
        assert (len(boxes), len(boxes[0])) == (case["rows"], case["columns"])
        assert [list(box) for row in boxes for box in row] == expected[f"{name}.boxes"].tolist()
        maps = inputs[f"{name}.maps"].numpy()[:, None, None]
        rows = [list(maps[i : i + case["columns"]]) for i in range(0, len(maps), case["columns"])]
        np.testing.assert_array_equal(join(rows)[0, 0], expected[f"{name}.map"].numpy())
        return
    if "base" in case:
        size = case["image_width"], case["image_height"]
        box = crop_box(inputs[f"{name}.map"].numpy(), size, case["base"])
        assert list(box) == expected[f"{name}.box"].tolist()
        assert [box[2] - box[0], box[3] - box[1]] == expected[f"{name}.crop_size"].tolist()
        return
    wanted = expected[f"{name}.map"]
    span = slice(case["image_start"], case["image_start"] + case["n_image"])
    if name == "grad":
        row = inputs["grad.row"].requires_grad_()
        found = gradient_map(row, torch.einsum("cht,ht->c", inputs["grad.W"], row)).mean(0)
        np.testing.assert_allclose(found[span].view(24, 24).numpy(), wanted.numpy(), rtol=1e-5)
        return
    # There heads are averaged in the model's dtype.
    query, general = (
        inputs[f"{name}.{which}_row"].mean(0)[span].float().view(wanted.shape).numpy()
        for which in ("question", "general")
    )
    np.testing.assert_allclose(relative_map(query, general), wanted.numpy(), rtol=1e-5)
