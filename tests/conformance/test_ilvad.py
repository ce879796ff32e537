"""ILVAD against numbers that the authors' code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import cases, causal_logits, named, span, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions.lvlm.ilvad_maps import (
    best_half,
    came_into_view,
    look,
    seen_patches,
    text_factors,
)


@pytest.mark.parametrize("case", cases("ilvad", named("map")))
def test_what_comes_into_view_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("ilvad")
    means = seen_patches(inputs["map.rows"].transpose(1, 2)).mean(0)
    found = (case["alpha"] * came_into_view(means, case["tau"])).exp()
    wanted = expected[f"{case['name']}.multiplier"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def edited(
    weights: Tensor, log_m: Tensor, image: Tensor, ground: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Logarithms of a row's weights "1 H 1 K" edited, and its clamped ground."""
    heads, _ = look(weights, log_m, image)
    text = torch.zeros_like(image)
    text[..., -ground.shape[1] :] = True
    factors, held = text_factors(ground, torch.ones_like(ground).bool(), beta)
    reads = best_half((weights * text).sum(-1))
    log_g = torch.zeros_like(log_m)
    log_g[..., -ground.shape[1] :] = factors.log()
    return weights.log() + heads[..., None] * log_m + reads[..., None] * log_g, held


def test_two_steps_behind_a_prompt_equal_the_released_code() -> None:
    found = cases("ilvad", named("edit"))
    if found[0].values[0] is None:
        pytest.skip("no vectors of ilvad")
    inputs, expected = vectors("ilvad")
    ground = torch.zeros(1, 0)
    for step, one in enumerate(found):
        case = one.values[0]
        start, end = case["image_start"], case["image_end_exclusive"]
        length = case["prompt_len"] + step
        image = span(length, start, end)[None, None, None]
        log_m = torch.zeros(1, 1, 1, length)
        log_m[image] = inputs["edit.multiplier"].log()
        ground = torch.cat([ground, torch.zeros(1, length - end)], 1) if step == 0 else ground
        total = torch.zeros(1, 1)
        for layer in range(len(inputs["edit.q"])):
            query, key, value = (inputs[f"edit.{n}"][layer][:, :, :length] for n in "qkv")
            logits = causal_logits(query, key, lambda z: z)
            weights = logits.softmax(-1)
            if step == 0:
                _, more = look(weights[:, :, end:-1], log_m, image)
                ground = ground + torch.nn.functional.pad(more, (0, 1))
            row = weights[:, :, -1:]
            total = total + look(row, log_m, image)[1]
            if layer in case["layers"]:
                new, ground = edited(row, log_m, image, ground, case["beta"])
                row = new.softmax(-1)
            wanted = expected[f"{case['name']}.attn_last_row"][layer]
            torch.testing.assert_close(row[0, :, 0], wanted, atol=5e-6, rtol=0)
            wanted = expected[f"{case['name']}.out_last_row"][layer]
            torch.testing.assert_close(mix_values(row, value).flatten(), wanted, atol=2e-5, rtol=0)
        ground = torch.cat([ground, total], 1)
        wanted = expected[f"{case['name']}.groundedness"]
        torch.testing.assert_close(ground[0], wanted, atol=2e-5, rtol=0)
