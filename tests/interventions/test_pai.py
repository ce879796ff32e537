"""PAI's contrast with a text-only prompt, and the layers that PAI and VAF act at by default."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import as_deep, tiny

from regaze.hooks.host import find_host
from regaze.interventions import PAI, VAF
from regaze.interventions.lvlm.contrasts import guide


@pytest.mark.parametrize("gamma", [0.5, 1.1, 3.0])
@pytest.mark.parametrize("plausibility", [0.1, 0.5, 1.0])
def test_the_contrast_is_the_formula_token_by_token(gamma: float, plausibility: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, text_scores = 3 * torch.randn(2, 2, 9, generator=generator)
    mixed = guide(scores, text_scores, gamma, plausibility)
    for row in range(2):
        p, text = scores[row].softmax(-1).tolist(), text_scores[row].softmax(-1).tolist()
        cut = 0
        for token in range(9):
            if p[token] < plausibility * max(p):
                assert mixed[row, token] == -math.inf
                cut += 1
                continue
            want = gamma * (math.log(p[token]) - math.log(text[token])) + math.log(text[token])
            assert float(mixed[row, token]) == pytest.approx(want, abs=1e-4)
        assert 0 < cut < 9


def test_without_contrast_the_log_probabilities_stay_uncut() -> None:
    scores = torch.tensor([[0.0, 5.0, -9.0]])
    assert torch.equal(guide(scores, torch.zeros(1, 3), gamma=1.0), scores.log_softmax(-1))


@pytest.mark.parametrize(("n_layers", "pai", "vaf"), [
    (32, range(2, 32), range(9, 15)),
    (40, range(2, 40), range(11, 19)),
    (3, range(2, 3), range(1, 2)),
    (2, range(1, 2), range(1, 2)),
    (1, range(0, 1), range(0, 1)),
])  # fmt: skip
def test_default_layers_scale_with_depth(n_layers: int, pai: range, vaf: range) -> None:
    host = as_deep(find_host(tiny("llava").model), n_layers)
    assert PAI().resolve(host).layers == tuple(pai)
    assert VAF().resolve(host).layers == tuple(vaf)
