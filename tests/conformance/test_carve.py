"""CARVE's map, mask and crop against what the paper's own code produced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from regaze.interventions.lvlm.carve_regions import Rule, contrast, magnify, strongest, to_pixels

HERE = Path(__file__).resolve().parent.parent / "data" / "conformance"
FOLDER = Path(os.environ.get("REGAZE_CONFORMANCE") or HERE) / "carve"
RULES: dict[str, Rule] = {
    "attention_sum": "attention",
    "size": "size",
    "remove_small": "drop_small",
}


def _cases(regions: bool) -> list[Any]:
    if not (FOLDER / "meta.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no vectors in {FOLDER}"))]
    listed = json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))["cases"]
    return [
        pytest.param(case, id=case["name"])
        for case in listed
        if case["name"].startswith("regions.") == regions
    ]


def _vectors() -> dict[str, Any]:
    # The attention rows of some cases are bfloat16, which numpy lacks; their head means are not.
    tensors: dict[str, Any] = load_file(FOLDER / "expected.safetensors")
    return tensors


def _image(name: str) -> Image.Image:
    from safetensors import safe_open

    with safe_open(FOLDER / "inputs.safetensors", "np") as file:
        return Image.fromarray(file.get_tensor(f"{name}.image"))


@pytest.mark.parametrize("case", _cases(regions=False))
def test_map_mask_and_crop(case: dict[str, Any]) -> None:
    expected, name = _vectors(), case["name"]
    data, variant = name.split(".")
    fused = contrast(
        expected[f"{data}.query.head_mean"],
        expected[f"{data}.general.head_mean"],
        steps=case["step_mode"],
        lam=case["lam"],
    )
    pixels = to_pixels(fused.reshape(case["grid"]), tuple(case["image_width_height"]))
    of_map = "v4" if variant == "v4" else "v3"
    np.testing.assert_allclose(pixels, expected[f"{data}.{of_map}.fused_map"], rtol=1e-5)

    mask = strongest(
        pixels,
        top=case["top_percent"],
        rule=RULES[case["region_rule"]],
        regions=case["min_keep_regions"],
        smallest=case["outlier_percent"] / 100,
    )
    np.testing.assert_array_equal(mask, expected[f"{name}.mask"].astype(bool))

    refined = np.asarray(magnify(_image(data), mask)).astype(int)
    wanted = expected[f"{name}.refined_image"].astype(int)
    assert refined.shape == wanted.shape
    assert np.abs(refined - wanted).max() <= 1


@pytest.mark.parametrize("case", _cases(regions=True))
def test_regions(case: dict[str, Any]) -> None:
    from safetensors import safe_open

    with safe_open(FOLDER / "inputs.safetensors", "np") as file:
        keys = set(file.keys())
        pixels = file.get_tensor("regions.map") if "regions.map" in keys else None
    expected = _vectors()
    mask = strongest(
        expected["regions.map"] if pixels is None else pixels,
        top=case["top_percent"],
        rule=RULES[case["region_rule"]],
        regions=case["min_keep_regions"],
        smallest=case["outlier_percent"] / 100,
    )
    np.testing.assert_array_equal(mask, expected[f"{case['name']}.mask"].astype(bool))
