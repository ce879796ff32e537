"""Methods that act on listed heads: which they are, what their controls take, what can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, literally, logits
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import ADHH, SPIN, Devils, from_dict
from regaze.interventions.lvlm.adhh import silence_text
from regaze.interventions.lvlm.devils import guide_image
from regaze.interventions.lvlm.heads import other_heads
from regaze.interventions.lvlm.spin import head_factors

FEW = ((0, 1), (2, 0), (2, 3))


def test_only_listed_heads_lose_the_text() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    spec = ADHH(heads=FEW, threshold=0.1)
    with attach(model.model, spec) as run, torch.no_grad():
        edited = model.model(**inputs).logits
    assert [one.layer for one in run.report().interventions[0].layers] == [0, 2]
    with literally(model, inputs, run.specs), torch.no_grad():
        literal = model.model(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-5 * float(literal.std()))
    every = logits(model, inputs, ADHH(layers=(0, 2), threshold=0.1))
    assert not torch.equal(edited[:, -1], every[:, -1])
    assert torch.equal(
        logits(model, inputs, ADHH(heads=FEW, layers=(2,), threshold=0.1)),
        logits(model, inputs, ADHH(heads=FEW[1:], threshold=0.1)),
    )


def test_text_is_taken_from_the_threshold_on() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]])[None, :, None]
    text, heads = (
        torch.tensor([False, True, True]),
        torch.tensor([True, True, False])[:, None, None],
    )
    taken = silence_text(weights, text, heads, 0.5)
    assert taken[0, :, 0].tolist() == [[0.5, 0, 0], [0.25, 0, 0], [0, 0.5, 0.5]]
    assert torch.equal(silence_text(weights, text, heads, 0.76), weights)


def test_each_sample_of_a_batch_is_held_against_the_threshold_alone() -> None:
    model = tiny("llava")
    spec = ADHH(layers=(0, 1, 2), threshold=0.5)
    batch = logits(model, ask(model, (SHORT, [0]), (LONG, [1])), spec)[:, -1]
    for sample, row in enumerate(((SHORT, [0]), (LONG, [1]))):
        alone = logits(model, ask(model, row), spec)[0, -1]
        torch.testing.assert_close(batch[sample], alone, rtol=0, atol=1e-4)


def test_the_control_takes_as_many_other_heads_of_the_same_layers() -> None:
    found = {3: [0, 2], 5: [1], 6: [0, 1, 2]}
    drawn = other_heads(found, 4)
    assert {layer: len(heads) for layer, heads in drawn.items()} == {3: 2, 5: 1, 6: 3}
    assert not set(drawn[3]) & {0, 2} and 3 in drawn[6]
    assert other_heads(found, 4) == drawn
    control = ADHH(heads=FEW).controls()["other heads"]
    assert isinstance(control, ADHH) and control.take == "others"
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    listed, others = (
        logits(model, inputs, ADHH(heads=FEW, threshold=0, take=take))  # type: ignore[arg-type]
        for take in ("listed", "others")
    )
    assert not torch.equal(listed, others)


def test_published_lists_belong_to_their_models() -> None:
    published = ADHH.preset("llava-1.5-7b")
    assert isinstance(published.heads, tuple) and len(published.heads) == 20
    assert len(ADHH.preset("llava-1.5-13b").heads or ()) == 35
    with pytest.raises(ValueError, match=r"\[16,29\].*layers 0 to 2.*found for"):
        attach(tiny("llava").model, published)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([[0, 4]], r"\[0,4\].*4 heads each"),
        ([[3, 0]], r"\[3,0\].*layers 0 to 2"),
        ([[0, 1], [0, 1]], r"\[0, 1\] twice"),
        ([0, 1], "pairs"),
        ([[0, 1, 2]], "pairs"),
        ([[-1, 0]], "pairs"),
        ([[0, True]], "pairs"),
        ("every", "pairs"),
        (None, "none are given.*discover heads-lvlm"),
    ],
)
def test_lists_that_cannot_be_say_why(heads: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(tiny("llava").model, from_dict({"name": "adhh", "heads": heads}))


def test_heads_are_kept_by_share_and_rounded_down() -> None:
    sums = torch.tensor([[3.0, -1.0, 2.0, 7.0, 0.0]])[..., None]
    assert head_factors(sums, 0.5, 0.25)[0, :, 0].tolist() == [1, 0.25, 0.25, 1, 0.25]
    assert head_factors(sums, 0.5, 0.25, "bottom")[0, :, 0].tolist() == [0.25, 1, 0.25, 0.25, 1]
    assert head_factors(sums, 0.19, 0)[0, :, 0].tolist() == [0] * 5
    drawn = head_factors(sums, 0.5, 0.0, "random")
    assert drawn.sum() == 2 and torch.equal(drawn, head_factors(-sums, 0.5, 0.0, "random"))


def test_both_readings_of_spin_rank_heads_otherwise() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    code, weights, rows = (
        logits(model, inputs, replace(SPIN(keep=0.5, layers=(0, 1)), **fields))
        for fields in (dict[str, Any](), {"score": "weights"}, {"rows": "text"})
    )
    assert not torch.equal(code[:, -1], weights[:, -1])
    assert torch.equal(code[:, :-1], weights[:, :-1])
    assert not torch.equal(code[:, -2], rows[:, -2])


def test_the_guide_is_the_mean_over_the_heads_that_look_most() -> None:
    logits_ = torch.tensor([[4.0, 0.0], [-1.0, 9.0], [2.0, 0.0]])[None, :, None]  # "1 3 1 2"
    image = torch.tensor([True, False])
    every = guide_image(logits_, image, 0.5)
    assert every[0, :, 0, 0].tolist() == pytest.approx([4 + 7 / 6, -1 + 7 / 6, 2 + 7 / 6])
    best = guide_image(logits_, image, 0.5, guides=2)  # The second head looks elsewhere.
    assert best[0, :, 0, 0].tolist() == pytest.approx([5.5, 0.5, 3.5])
    assert torch.equal(every[..., 1], logits_[..., 1])
    for guides in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="guides"):
            Devils(guides=guides)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guides is 9.*4 heads"):
        attach(tiny("llava").model, Devils(guides=9))
