"""VAR: which tokens are sinks, which heads are edited, and where the weight goes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from methods import LAYERS, SINKS
from tiny import as_deep, tiny
from torch import Tensor

from regaze.hooks import attach, families
from regaze.hooks.host import find_host
from regaze.interventions import VAR
from regaze.interventions.lvlm.sinks import sink_values

FAMILIES = ("llava", "qwen2_vl", "gemma3", "mistral3")


def edited_maps(spec: VAR, layer: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps "H Q K" of one layer before and after, image columns and sinks."""
    model = tiny("llava", attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]))
    with torch.no_grad():
        plain = model.model(**inputs, output_attentions=True, output_hidden_states=True)
        with attach(model.model, dataclasses.replace(spec, layers=(layer,))):
            edited = model.model(**inputs, output_attentions=True).attentions[layer][0]
    found = spec.literal_sinks(plain.hidden_states[layer])[0]
    image = model.expected_image_columns(inputs)[0]
    return plain.attentions[layer][0], edited, image, found


def test_weight_moves_from_all_sinks_to_the_rest_of_the_image() -> None:
    spec = VAR(rho=0.45, p=0.8, **SINKS)
    before, after, image, found = edited_maps(spec)
    rest = image & ~found
    assert 0 < int((image & found).sum()) < int(image.sum())
    heads, rows = 0, range(int(image.nonzero().max()) + 1, before.shape[1])
    for head in range(4):
        for row in rows:
            a, b = before[head, row], after[head, row]
            on_image, on_rest = float(a[image].sum()), float(a[rest].sum())
            if on_image < spec.floor or on_rest / on_image < spec.rho:
                assert torch.equal(a, b)
                continue
            heads += 1
            torch.testing.assert_close(b[found], 0.2 * a[found])
            taken = 0.8 * float(a[found].sum())
            torch.testing.assert_close(b[rest], a[rest] * (1 + taken / on_rest))
            torch.testing.assert_close(b[~found & ~image], a[~found & ~image])
            assert float(b.sum()) == pytest.approx(1, abs=1e-5)
    assert 0 < heads < 4 * len(rows)
    assert torch.equal(before[:, : rows[0]], after[:, : rows[0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_paper_and_the_code_name_the_same_edits_differently(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    paper, code = VAR(rho=0.45, p=0.8, **SINKS), VAR(rho=0.55, p=0.2, sense="code", **SINKS)
    assert paper.keep == pytest.approx(code.keep)
    same, other = logits(model, inputs, paper), logits(model, inputs, code)
    torch.testing.assert_close(same, other, rtol=0, atol=1e-4)
    unlike = VAR(rho=0.45, p=0.8, sense="code", **SINKS)
    assert (logits(model, inputs, unlike) - same).abs().max() > 0.1


def test_a_sample_without_visual_sinks_is_left_alone_beside_one_with() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    dims = (0, 1, 2)
    tower: Any = model.model.get_decoder()
    entering: list[Tensor] = []
    handle = tower.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    plain = logits(model, inputs)
    handle.remove()
    phi = sink_values(entering[0], dims)
    image = model.expected_image_columns(inputs)
    strongest = [float(phi[row][image[row]].max()) for row in range(2)]
    tau = sum(strongest) / 2 / 8  # of sqrt(64)
    spec = VAR(rho=0, p=0.8, floor=0, tau=tau, sink_dims=dims, layers=(0,))
    edited = logits(model, inputs, spec)
    has_sinks = int(strongest[1] > strongest[0])
    assert (edited - plain)[has_sinks].abs().max() > 0.1
    torch.testing.assert_close(edited[1 - has_sinks], plain[1 - has_sinks], rtol=0, atol=1e-5)


def test_an_image_of_nothing_but_sinks_is_left_alone() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    spec = VAR(rho=0, p=0.8, floor=0, tau=0, sink_dims=(0,), layers=LAYERS)
    torch.testing.assert_close(
        logits(model, inputs, spec), logits(model, inputs), rtol=0, atol=1e-5
    )


def test_all_may_be_taken_from_the_sinks() -> None:
    _, after, _, found = edited_maps(VAR(rho=0, p=1, **{**SINKS, "floor": 0}))
    assert (after[:, -1][:, found] == 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(after.shape[:2]))


@pytest.mark.parametrize("setting", ["floor", "rho", "tau"])
def test_thresholds_that_nothing_passes_leave_all_alone(setting: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    spec = VAR(**{"rho": 0.45, "p": 0.8, **SINKS, setting: 1.0})
    torch.testing.assert_close(
        logits(model, inputs, spec), logits(model, inputs), rtol=0, atol=1e-5
    )


def test_phi_is_bounded_by_the_root_of_the_width() -> None:
    one_hot = torch.zeros(1, 1, 64)
    one_hot[..., 5] = -1000
    assert float(sink_values(one_hot, [3, 5])) == pytest.approx(8)
    assert float(sink_values(one_hot, [3])) == 0
    hidden = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    want = hidden[..., [3, 5]].abs().amax(-1) / hidden.square().mean(-1).sqrt()
    torch.testing.assert_close(sink_values(hidden, [3, 5]), want)


@pytest.mark.parametrize(
    ("model_type", "hidden_size", "n_layers", "n_kv_heads", "dims"),
    [
        ("llava", 4096, 32, 32, (2533, 1415)),
        ("llava", 5120, 40, 40, (2100, 4743)),
        ("qwen2_vl", 3584, 28, 4, (458, 2570)),
        ("internvl", 4096, 32, 8, (3584,)),
    ],
)
def test_published_sink_dimensions_are_known(
    model_type: str, hidden_size: int, n_layers: int, n_kv_heads: int, dims: tuple[int, ...]
) -> None:
    tower = dataclasses.replace(
        as_deep(find_host(tiny("llava").model), n_layers),
        family=families.FAMILIES[model_type],
        hidden_size=hidden_size,
        n_kv_heads=n_kv_heads,
    )
    spec = VAR().resolve(tower)
    assert set(spec.sink_dims or ()) == set(dims)
    assert spec.tau is not None
    assert spec.tau * hidden_size**0.5 == pytest.approx(20)
    assert spec.layers == tuple(range(2, n_layers - 1))
    assert VAR(sense="code").resolve(tower).layers == tuple(range(2, n_layers))
