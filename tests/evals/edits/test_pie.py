"""PIE-Bench's metrics on cases made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTConfig, ViTModel

from regaze.evals.edits import pie


def picture(values: np.ndarray) -> Image.Image:  # type: ignore[type-arg]
    return Image.fromarray(values.astype(np.uint8))


SIDE = 32
GREY = np.full((SIDE, SIDE, 3), 100)
HALF = np.zeros((SIDE, SIDE), bool)
HALF[:, : SIDE // 2] = True


def test_a_mask_is_runs_and_its_border_is_edited() -> None:
    mask = pie.decode_mask([9, 2, 17, 1], side=8)
    want = np.zeros((8, 8), bool)
    want[1, 1:3] = want[2, 1] = True
    want[[0, -1], :] = want[:, [0, -1]] = True
    assert np.array_equal(mask, want)
    for pairs, said in (([1], "pairs"), ([60, 9], "isn't inside 8 x 8")):
        with pytest.raises(ValueError, match=said):
            pie.decode_mask(pairs, side=8)


def test_the_codes_errors_are_diluted_by_what_is_edited() -> None:
    """Half of the frame is edited, so the mean error of the whole is half of the background's."""
    found = pie.background(picture(GREY), picture(GREY + 51), HALF)
    assert found.background_mse == pytest.approx(0.2**2)
    assert found.mse == pytest.approx(0.2**2 / 2)
    assert found.background_psnr == pytest.approx(-10 * math.log10(0.04))
    assert found.psnr == pytest.approx(found.background_psnr + 10 * math.log10(2))
    # Flat windows: SSIM is that of two means alone, (2 ab + c) / (a^2 + b^2 + c).
    a, b, c = 100 / 255, 151 / 255, 0.01**2
    flat = (2 * a * b + c) / (a * a + b * b + c)
    far = np.zeros_like(HALF)
    far[:, -4:] = True
    assert pie.background(picture(GREY), picture(GREY + 51), ~far).background_ssim == pytest.approx(
        flat
    )
    assert flat < found.ssim < 1


def test_what_is_edited_does_not_count() -> None:
    edited = GREY.copy()
    edited[HALF] = 255
    found = pie.background(picture(GREY), picture(edited), HALF)
    assert found.mse == found.background_mse == 0
    assert found.psnr == found.background_psnr == math.inf
    assert found.ssim == pytest.approx(1)
    nothing = pie.background(picture(GREY), picture(edited), np.ones_like(HALF))
    assert math.isnan(nothing.psnr) and math.isnan(nothing.background_ssim)
    with pytest.raises(ValueError, match="differ in size"):
        pie.background(picture(GREY), picture(edited[:16]), HALF)


def test_likeness_is_that_of_gaussian_windows() -> None:
    """Pixel by pixel, by sums over the window of 11 x 11."""
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (SIDE, SIDE, 3)) for _ in "ab")
    nothing = np.zeros_like(HALF)
    nothing[13, 17] = True
    found = pie.background(picture(one), picture(two), ~nothing)
    side = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    window = (np.outer(side, side) / side.sum() ** 2)[..., None]
    a, b = (x[8:19, 12:23] / 255 for x in (one, two))
    (mean, other), c1, c2 = ((window * x).sum((0, 1)) for x in (a, b)), 0.01**2, 0.03**2
    both = (window * a * b).sum((0, 1)) - mean * other
    spread = sum((window * x * x).sum((0, 1)) for x in (a, b)) - mean**2 - other**2
    want = (2 * mean * other + c1) * (2 * both + c2) / (mean**2 + other**2 + c1) / (spread + c2)
    assert found.background_ssim == pytest.approx(want.mean(), rel=1e-6)


def test_structure_is_how_tokens_resemble_each_other() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    half = math.sqrt(0.5)
    want = torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]])
    torch.testing.assert_close(pie.self_similarity(keys), want)
    # No matter how long keys are, or how they are turned.
    torch.testing.assert_close(pie.self_similarity(-5 * keys), want)
    seen: list[Tensor] = []

    def keys_of(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.eye(2) if len(seen) % 2 else torch.ones(2, 2)

    got = pie.structure_distance(keys_of, picture(GREY), picture(GREY))
    assert got == pytest.approx(0.5)  # Two of four entries differ by 1.
    assert seen[0].shape == (1, 3, 224, 224)
    assert seen[0][0, 0, 0, 0] == pytest.approx((100 - 0.485) / 0.229, rel=1e-5)
    pie.structure_distance(keys_of, picture(GREY), picture(GREY), parity=False)
    assert seen[2][0, 0, 0, 0] == pytest.approx((100 / 255 - 0.485) / 0.229, rel=1e-5)


def test_the_keys_of_a_vision_transformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    keys_of = pie.dino_keys(tmp_path)
    values = torch.rand(1, 3, 32, 32)
    got = keys_of(values)
    assert got.shape == (17, 16)
    with torch.no_grad():
        hidden = model(values, output_hidden_states=True).hidden_states[-2]
    names = dict(model.named_parameters())
    last = max(n for n in names if "layer" in n and n.endswith(("key.weight", "k_proj.weight")))
    block = last[: last.index("attention")]
    norm = "layernorm_before" if f"{block}layernorm_before.weight" in names else "norm1"
    normed = torch.nn.functional.layer_norm(
        hidden, (16,), names[f"{block}{norm}.weight"], names[f"{block}{norm}.bias"],
        config.layer_norm_eps,
    )  # fmt: skip
    bias = last.replace("weight", "bias")
    want = normed @ names[last].T + names[bias]
    torch.testing.assert_close(got, want[0].detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="can't be loaded"):
        pie.dino_keys(tmp_path / "none")
