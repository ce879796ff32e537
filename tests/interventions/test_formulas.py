"""Boundary values of the methods' pure functions, against the formulas written out by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from regaze.hooks.passes import Columns, GrowingMask
from regaze.interventions.lvlm.adaptvis import choose_weights
from regaze.interventions.lvlm.adhh import silence_text
from regaze.interventions.lvlm.avisc import find_blind, largest_layers
from regaze.interventions.lvlm.contrasts import contrast, cut
from regaze.interventions.lvlm.devils import guide_image
from regaze.interventions.lvlm.dola import choose_exits, difference, distances
from regaze.interventions.lvlm.gift import boost
from regaze.interventions.lvlm.ilvad_maps import came_into_view, text_factors
from regaze.interventions.lvlm.opera import over_trust
from regaze.interventions.lvlm.paint import choose_patches
from regaze.interventions.lvlm.pasta import span_bias
from regaze.interventions.lvlm.spin import SPIN, head_factors
from regaze.interventions.lvlm.var import VAR, redistribution, sums_and_bounds


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def columns(length: int, *at: int) -> torch.Tensor:
    return torch.isin(torch.arange(length), torch.tensor(at, dtype=torch.long))


def test_spin_keeps_as_many_heads_as_the_code_whatever_the_share() -> None:
    for heads, keep in itertools.product((1, 3, 7, 14, 32, 40), (0, 0.07, 0.29, 0.55, 0.95, 1.0)):
        for sums in (torch.randn(2, heads, 3), torch.zeros(2, heads, 3)):
            kept = (head_factors(sums, keep, 0.1) == 1).sum(1)
            assert (kept == int(keep * heads)).all(), (heads, keep)


@pytest.mark.parametrize("hidden", ["window moved on", "masked"])
def test_spin_leaves_rows_alone_that_see_nothing_of_the_image(hidden: str) -> None:
    edit: Any = SPIN(layers=(0,)).bind(cast(Any, None))
    logits = torch.randn(2, 5, 1, 6)
    image = columns(6, 1, 2).expand(2, 1, 1, 6).clone()
    if hidden == "masked":
        seen = torch.ones(2, 1, 1, 6, dtype=torch.bool)
        seen[1, ..., :3] = False
        logits = logits.masked_fill(~seen, -math.inf)
        given = Columns(image, image & False, seen=seen)
    else:
        image[1] = False
        given = Columns(image, image & False, offset=4)
    weights = logits.softmax(-1)
    first, second = edit.edit_weights(0, weights, logits, given)
    assert int((first != weights[0]).any(-1).sum()) == 1  # one head in five is scaled by default
    assert torch.equal(second, weights[1])


def test_adhh_zeroes_at_the_threshold_sample_by_sample() -> None:
    weights = torch.tensor([[[[0.6, 0.4]]], [[[0.7, 0.3]]]])
    text, every = torch.tensor([False, True]), torch.ones(1, 1, 1, dtype=torch.bool)
    found = silence_text(weights, text, every, 0.4)
    assert found[:, 0, 0, 1].tolist() == [0.0, pytest.approx(0.3)]
    assert torch.equal(silence_text(weights, text, ~every, 0.0), weights)
    assert torch.equal(silence_text(weights, text & False, every, 0.4), weights)


def test_devils_takes_the_mean_over_query_heads_of_each_sample_on_all_images() -> None:
    logits, image = torch.randn(2, 6, 1, 9), columns(9, 2, 3, 6, 7)
    logits[..., 0] = -math.inf
    want = logits.clone()
    for sample, head, j in itertools.product(range(2), range(6), (2, 3, 6, 7)):
        guide = sum(abs(float(logits[sample, h, 0, j])) for h in range(6)) / 6
        want[sample, head, 0, j] += 0.5 * guide
    torch.testing.assert_close(guide_image(logits, image, 0.5), want)


def test_paint_takes_shares_of_all_none_and_equal_patches() -> None:
    local, summary = choose_patches(torch.zeros(9), torch.zeros(9), 0.25)
    assert (int(local.sum()), int(summary.sum())) == (2, 0)
    local, summary = choose_patches(torch.rand(9), torch.tensor([0.0] * 8 + [9.0]), 1.0)
    assert (int(local.sum()), summary.nonzero().flatten().tolist()) == (8, [8])
    assert not choose_patches(torch.rand(7), torch.rand(7), 0.0)[0].any()


@pytest.mark.parametrize("heads", [1, 3, 5, 8])
def test_gift_s_boost_with_odd_numbers_of_heads_and_two_images(heads: int) -> None:
    logits = torch.randn(2, heads, 1, 14)
    weights = logits.softmax(-1)
    image, question = columns(14, 2, 3, 4, 7, 8), columns(14, 10, 11, 12)
    saliency = torch.rand(2, 1, 1, 14) * image
    shape = (2, 1, 1, 14)
    bias = boost(weights, saliency, image.expand(shape), question.expand(shape), 4.0, 1.3)
    found = (logits + bias).softmax(-1)
    for sample in range(2):
        a = weights[sample, :, 0].double()
        new, half = a.clone(), heads // 2
        sees = a[:, image].sum(-1).argsort(descending=True)[:half].tolist()
        reads = a[:, question].sum(-1).argsort(descending=True)[:half].tolist()
        for head in sees:
            new[head, image] *= (4 * saliency[sample, 0, 0, image].double()).exp()
        ratio = new[sees][:, image].sum() / a[sees][:, image].sum() if half else 1.0
        for head in reads:
            new[head, question] *= 1.3 * ratio
        want = (new / new.sum(-1, keepdim=True)).float()
        torch.testing.assert_close(found[sample, :, 0], want, atol=1e-6, rtol=1e-5)


def test_the_cut_of_contrasts_at_its_ends() -> None:
    clean, other = torch.randn(3, 11), torch.randn(3, 11)
    for alpha, beta in itertools.product((0, 0.5, 3), (0, 0.1, 1)):
        want = (1 + alpha) * clean - alpha * other
        if beta:
            bound = clean.amax(-1, keepdim=True) + math.log(beta)
            want = want.masked_fill(clean < bound, -math.inf)
        torch.testing.assert_close(contrast(clean, other, alpha, beta), want)
    assert (contrast(clean, other, 1, 1).isfinite().sum(-1) == 1).all()
    assert cut(torch.zeros(1, 4), torch.zeros(1, 4), 1.0).isfinite().all()


@pytest.mark.parametrize(("layers", "patches"), [(1, 5), (4, 1), (6, 32)])
def test_avisc_with_one_layer_one_patch_and_shares_at_their_ends(layers: int, patches: int) -> None:
    weights = torch.rand(layers, patches)
    mass = (weights.sum(1) / weights.sum()).tolist()
    order = sorted(range(layers), key=lambda n: -mass[n])
    for gamma in (0, 0.3, 0.5, 0.9):
        below = sum(sum(mass[n] for n in order[: k + 1]) < gamma for k in range(layers))
        kept = order[: 1 + below]
        assert largest_layers(weights, gamma).tolist() == kept
        mean = weights[kept].mean(0)
        bound = mean.mean() + (mean.std() if patches > 1 else 0)
        assert torch.equal(find_blind(weights, gamma, 1.0), mean >= bound)


def test_dola_s_two_divergences_and_equal_exits() -> None:
    mature, exits = torch.randn(2, 3, 9), torch.randn(4, 2, 3, 9)
    p, q = mature.softmax(-1).double(), exits.softmax(-1).double()
    m = (p + q) / 2

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    mixture, jsd = (kl(m, p) + kl(m, q)) / 2, (kl(p, m) + kl(q, m)) / 2
    torch.testing.assert_close(distances(mature, exits, "mixture"), mixture.float())
    torch.testing.assert_close(distances(mature, exits, "jsd"), jsd.float())
    assert torch.equal(difference(mature, exits[0], 0), mature - exits[0])
    assert not choose_exits(mature, mature.expand(3, -1, -1, -1), "mixture").any()


def test_adaptvis_rounds_to_two_decimals_before_it_compares() -> None:
    for likeliest, weight in ((0.2951, 1.5), (0.2949, 0.5)):
        rest = (1 - likeliest) / 4
        scores = torch.tensor([[likeliest, *4 * [rest]]]).log()
        assert choose_weights(scores, 0.3, 0.5, 1.5).tolist() == [weight]
        assert choose_weights(scores, 0, 0.5, 1.5).tolist() == [1.5]
        assert choose_weights(scores, 1.01, 0.5, 1.5).tolist() == [0.5]


def test_var_without_sinks_with_nothing_else_and_with_all_taken() -> None:
    weights, image = torch.rand(1, 3, 2, 8).softmax(-1), columns(8, 2, 3, 4, 5)[None]
    for sinks in (image, image & False, columns(8, 0)[None]):
        known = sums_and_bounds(image, sinks, VAR(rho=0.5, p=0.6, floor=0.0))
        assert not redistribution(weights, *known).any()
    known = sums_and_bounds(image, columns(8, 0, 2)[None], VAR(rho=0.0, p=1.0, floor=0.0))
    edited = weights * (1 + redistribution(weights, *known))
    torch.testing.assert_close(edited.sum(-1), torch.ones(1, 3, 2))
    assert not edited[..., [0, 2]].any()


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_var_biases_logits_to_the_weights_that_it_moves(p: float) -> None:
    logits, image = 3 * torch.randn(3, 5, 4, 12), columns(12, 2, 3, 4, 5, 6).repeat(3, 1)
    sinks = torch.stack([columns(12, 0, 3), columns(12, 0), columns(12, 2, 3, 4, 5, 6)])
    logits[0, :, :, 9:] = -math.inf
    edit: Any = VAR(rho=0.4, p=p, floor=0.2, sink_dims=(0,), layers=(0,)).bind(
        cast(Any, SimpleNamespace(hidden_size=4))
    )
    sums, bounds = sums_and_bounds(image, sinks, edit.spec)
    edit.sums[0] = GrowingMask(sums), bounds
    given, weights = Columns(image[:, None, None], image[:, None, None] & False), logits.softmax(-1)
    moved = edit.move_weights(0, weights, given)
    torch.testing.assert_close(moved, edit.edit_logits(0, logits, given).softmax(-1))
    assert torch.equal(moved[0], weights[0]) == (p == 0)
    assert torch.equal(moved[1:], weights[1:])  # No sink in the image, or nothing else.


def test_pasta_s_union_of_overlapping_spans_and_a_sample_without_one() -> None:
    inside = torch.stack([columns(6, 1, 2), columns(6, 2, 3)])[None]
    inside = torch.cat([inside, inside & False])
    bias = span_bias(inside, torch.ones(2, 6, dtype=torch.bool), 0.01)
    want = math.log(0.01) * (~columns(6, 1, 2, 3)).float()
    torch.testing.assert_close(bias[0], want)
    assert not bias[1].any()


@pytest.mark.parametrize("positions", [9, 10, 11])
def test_opera_s_two_branches_meet_at_ten_positions(positions: int) -> None:
    weights, image = torch.rand(2, 3, 20, 20).tril(), columns(20, 2, 3, 4, 5)
    first = 20 - positions
    found, _ = over_trust(weights, image, first)
    rows = weights / weights.sum(-1, keepdim=True)
    if positions <= 10:
        torch.testing.assert_close(found, -rows[..., -1, 2:6].sum(-1))
        return
    scores = [1e-7 * (50 * rows[..., j:, j].double()).prod(-1) for j in range(first, 20)]
    torch.testing.assert_close(found, torch.stack(scores).amax(0).float(), rtol=1e-4, atol=0)


def test_ilvad_without_transitions_and_without_ground() -> None:
    assert not came_into_view(torch.ones(4, 6), 5.0).any()
    nothing = torch.zeros(1, 4)
    assert (text_factors(nothing, nothing.bool(), 1.0)[0] == 1).all()
    ground, known = torch.tensor([[3.0, 1.0, 2.0, 9.0]]), columns(4, 0, 1, 2)[None]
    assert text_factors(ground, known, 0.0)[0].tolist() == [[1.0, 0.0, 0.5, 1.0]]
