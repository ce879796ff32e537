"""Heat maps lie over what the model saw, by the rule that CARVE crops by."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from regaze.evals.reports.gallery import as_seen
from regaze.interventions.lvlm.carve_regions import middle


def processor(edge: int, crop: int) -> SimpleNamespace:
    square = {"height": crop, "width": crop}
    images = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square)
    return SimpleNamespace(image_processor=images)


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # 256 pixels of the shorter side become 256, of which the middle 224 are seen.
        ((256, 256), (16, 16, 240, 240)),
        ((250, 128), (69, 8, 181, 120)),
        ((128, 250), (8, 69, 120, 181)),
    ],
)
def test_of_a_resized_picture_the_middle_is_seen(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    shown = as_seen(ramp(*size), processor(256, 224))
    assert middle(processor(256, 224).image_processor, size) == box
    assert shown.size == (box[2] - box[0], box[3] - box[1])
    assert shown.getpixel((0, 0)) == (box[0], box[1], 0)
    assert shown.getpixel((shown.width - 1, shown.height - 1)) == (box[2] - 1, box[3] - 1, 0)


def test_where_the_crop_is_as_wide_as_the_shorter_side_the_ends_of_the_longer_are_lost() -> None:
    assert as_seen(ramp(100, 60), processor(224, 224)).getpixel((0, 0)) == (20, 0, 0)


def test_the_whole_picture_is_seen_where_nothing_is_cropped() -> None:
    whole = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False))
    for one in (None, whole, SimpleNamespace()):
        assert as_seen(ramp(100, 60), one).size == (100, 60)
