"""Prompt Highlighter: spans by text, runs with and without guidance, what can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, TOKENS, answer, ask, logits
from tiny import tiny

from regaze.interventions import PASTA, PromptHighlighter, from_dict
from regaze.interventions.lvlm.highlight import guided


def test_without_guidance_it_is_pastas_include_in_all_heads() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]))
    alone = PromptHighlighter(spans=("dog", "<image>"), weight=4, scale=1)
    same = PASTA(spans=("dog", "<image>"), layers=(0, 1, 2), alpha=4, mode="include")
    assert torch.equal(logits(model, inputs, alone), logits(model, inputs, same))
    assert answer(model, inputs, alone) == answer(model, inputs, same)


def test_guidance_runs_batches_and_beams() -> None:
    model = tiny("llava")
    spec = PromptHighlighter(spans=("is",), scale=2)
    rows = (SHORT, [0]), (LONG, [1])
    batch = logits(model, ask(model, *rows), spec)[:, -1]
    for sample, row in enumerate(rows):
        alone = logits(model, ask(model, row), spec)[0, -1]
        torch.testing.assert_close(batch[sample], alone, rtol=0, atol=2e-4)
    inputs = ask(model, *rows)
    assert [len(one) for one in answer(model, inputs, spec, num_beams=2)] == [TOKENS, TOKENS]
    assert answer(model, inputs, spec)[0] == answer(model, ask(model, rows[0]), spec)[0]


def test_both_spaces_agree_on_the_best_token_of_a_run_that_is_sure() -> None:
    c, u = torch.tensor([[4.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    log, probability = (guided(c, u, 2.0, space) for space in ("log", "probability"))
    assert int(log.argmax()) == int(probability.argmax()) == 0
    assert (probability.abs() <= 2).all() and float(probability.sum()) == pytest.approx(1)
    assert guided(c, u, 2.0, plausibility=0.5).isinf().sum() == 2
    torch.testing.assert_close(guided(c, u, 1.0), c.log_softmax(-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spans": []}, "none is given"),
        ({"spans": ["cat"]}, "'cat' isn't in prompt 0"),
        ({"weight": 0}, "weight"),
        ({"perturb": 2}, "perturb"),
        ({"space": "logit"}, "space"),
    ],
)
def test_what_cannot_be_says_why(fields: dict[str, Any], message: str) -> None:
    model = tiny("llava")
    with pytest.raises(ValueError, match=message):
        spec = from_dict({"name": "highlight", "spans": ["dog"], **fields})
        logits(model, ask(model, (SHORT, [0])), spec)
