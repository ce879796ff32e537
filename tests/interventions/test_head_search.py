"""Heads found by trying them: PASTA's profiling, AD-HH's attribution."""

from __future__ import annotations

import math

import pytest
import torch
from asking import SHORT, ask, logits
from tiny import tiny

from regaze.hooks import attach
from regaze.hooks.edits import Edit
from regaze.interventions import ADHH, PAI, VHR
from regaze.interventions.lvlm.head_search import Caption, attribute_heads, rank_heads


def test_heads_are_ranked_by_what_they_gain() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))

    def score() -> float:
        with torch.no_grad():
            return float(model.model(**inputs).logits[0, -1].log_softmax(-1)[7])

    tried = ((0, 1), (2, 0), (2, 3))
    ranking = rank_heads(model.model, ADHH(threshold=0), score, heads=tried)
    assert int((~ranking.scores.isnan()).sum()) == 3
    for layer, head in tried:
        alone = logits(model, inputs, ADHH(heads=((layer, head),), threshold=0))
        want = float(alone[0, -1].log_softmax(-1)[7]) - score()
        assert float(ranking.scores[layer, head]) == pytest.approx(want, abs=1e-6)
    order = ranking.best(3)
    gains = [float(ranking.scores[pair]) for pair in order]
    assert gains == sorted(gains, reverse=True) and ranking.best(1, lowest=True) == order[-1:]
    with pytest.raises(ValueError, match="3 were tried"):
        ranking.best(4)
    with pytest.raises(ValueError, match="no field heads"):
        rank_heads(model.model, PAI(), score)
    with pytest.raises(ValueError, match=r"vhr .* chooses them itself \(heads=top\)"):
        rank_heads(model.model, VHR(), score)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_attribution_is_what_silencing_a_head_takes_from_a_word(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    answer = torch.tensor([5, 9, 11, 6])
    ranking = attribute_heads(model.model, [Caption(inputs, answer, [2], [1, 3])])

    class Silence(Edit):
        def scale_heads(self, layer, out, null, pass_):  # type: ignore[no-untyped-def]
            factor = torch.ones(len(out), out.shape[2])
            factor[:, head] = 0 if pass_.decodes and pass_.past == at else 1
            return factor

    class Spec:
        label, acts_on = "silence", PAI.acts_on

        def resolve(self, host):  # type: ignore[no-untyped-def]
            return self

        def bind(self, host):  # type: ignore[no-untyped-def]
            return Silence([layer])

    def word(place: int) -> float:
        with torch.no_grad():
            cache = model.model(**inputs, use_cache=True).past_key_values
            for step in range(place):
                ids = answer[None, step : step + 1]
                out = model.model(input_ids=ids, past_key_values=cache)
        return float(out.logits[0, -1].log_softmax(-1)[answer[place]])

    layer, head, length = 1, 2, inputs["input_ids"].shape[1]
    influence = {}
    for place in (1, 2, 3):
        at, plain = length + place - 1, word(place)
        with attach(model.model, Spec()):
            influence[place] = plain - word(place)
    want = influence[2] - (influence[1] + influence[3]) / 2
    assert float(ranking.scores[layer, head]) == pytest.approx(want, abs=1e-4)
    assert not math.isnan(float(ranking.scores.sum()))
    assert len(ranking.best(4)) == 4


def test_words_that_cannot_be_compared_say_why() -> None:
    model = tiny("llava")
    inputs, answer = ask(model, (SHORT, [0])), torch.tensor([5, 9])
    with pytest.raises(ValueError, match="no true words"):
        attribute_heads(model.model, [Caption(inputs, answer, [1], [])])
    for place in (0, 2):
        with pytest.raises(ValueError, match="from 1 to 1"):
            attribute_heads(model.model, [Caption(inputs, answer, [place], [1])])
