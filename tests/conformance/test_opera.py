"""OPERA's penalty against numbers that the paper's own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vectors import cases, span, vectors

from regaze.interventions.lvlm.opera import over_trust, rollback_column


@pytest.mark.parametrize("case", cases("opera"))
def test_the_penalty_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("opera")
    name, weights = case["name"], inputs[f"{case['name']}.attn"]
    image = span(weights.shape[-1], case["image_start"], case["image_end_inclusive"] + 1)
    found, columns = over_trust(
        weights, image, case["response_start"], scale=case["scale"], half=True
    )
    wanted = expected[f"{name}.penalty"]
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=1e-3)
    assert torch.equal(columns, expected[f"{name}.columns"])
    assert torch.equal(rollback_column(columns), expected[f"{name}.mode_column"])
    scores = inputs[f"{name}.candidate_scores"] - case["penalty_weight"] * found
    torch.testing.assert_close(scores, expected[f"{name}.scores"], atol=1e-5, rtol=1e-3)
    exact, _ = over_trust(weights, image, case["response_start"], scale=case["scale"])
    finite = wanted.isfinite()
    torch.testing.assert_close(
        exact[finite], wanted[finite].float(), atol=1e-5 if name == "len4" else 1e-6, rtol=1e-2
    )


def test_the_product_goes_down_each_column() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 16, 16, generator=generator).tril()
    image = torch.zeros(16, dtype=torch.bool)
    found, column = over_trust(weights, image, 4)
    rows = (weights / weights.sum(-1, keepdim=True))[0].double()
    scores = []
    for j in range(4, 16):
        product = 1e-7
        for i in range(j, 16):
            product *= 50 * float(rows[i, j])
        scores.append(product)
    assert float(found) == pytest.approx(max(scores), rel=1e-4)
    assert int(column) == scores.index(max(scores))


def test_what_overflows_in_the_code_is_bounded_here() -> None:
    weights = torch.zeros(1, 60, 60)
    weights[..., 0] = weights[..., 5] = 0.5
    image = torch.zeros(60, dtype=torch.bool)
    assert over_trust(weights, image, 5, half=True)[0].isinf().all()
    assert over_trust(weights, image, 5)[0].isfinite().all()
    with pytest.raises(ValueError, match="begins at column 60 of 60"):
        over_trust(weights, image, 60)
