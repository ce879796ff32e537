"""VHR: which heads react to the image, and what reinforcing them does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import EDITS, pairs
from methods import LAYERS, Method
from tiny import as_deep, tiny
from torch import Tensor
from transformers import DynamicCache, StaticCache

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.hooks.literal_prompt import read
from regaze.hooks.literal_runs import compare_prompts
from regaze.interventions import VHR
from regaze.interventions.lvlm import vhr
from regaze.interventions.lvlm.vhr import choose_heads


def random_heads(seed: int, heads: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    seen, blind = torch.randn(2, 1, heads, 5, generator=generator)
    # A few heads surge with and without the image.
    surge = torch.rand(heads, generator=generator) > 0.8
    return seen * torch.where(surge, 6, 1)[:, None], blind * torch.where(surge, 4, 1)[:, None]


@pytest.mark.parametrize("heads", [4, 7, 32])
@pytest.mark.parametrize(
    ("outlier_filter", "unbiased"), [*itertools.product([True, False], repeat=2)]
)
def test_heads_are_chosen_as_the_formula_says(
    heads: int, outlier_filter: bool, unbiased: bool
) -> None:
    spec = VHR(outlier_filter=outlier_filter, unbiased=unbiased)
    surged = 0
    for seed in range(20):
        seen, blind = random_heads(seed, heads)
        chosen = choose_heads(seen, blind, outlier_filter, unbiased)[0]
        assert torch.equal(chosen, spec.literal_factors(seen[0], blind[0]) != 1)
        divergence = (seen - blind).norm(dim=-1)[0]
        surged += int(not chosen[divergence.argmax()])
    assert (surged > 0) == outlier_filter


def test_half_of_the_heads_are_chosen_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, blind = torch.randn(2, 3, 8, 5, generator=generator)
    chosen = choose_heads(seen, blind)
    assert chosen.sum(1).tolist() == [4, 4, 4]
    for sample in range(3):
        alone = choose_heads(seen[sample : sample + 1], blind[sample : sample + 1])
        assert torch.equal(chosen[sample], alone[0])


def test_heads_that_do_not_react_are_not_chosen() -> None:
    seen = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    assert not choose_heads(seen, seen).any()
    assert not choose_heads(seen, seen * (1 + 1e-7), rounding=1e-6).any()


def test_controls_take_as_many_heads_from_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, blind = torch.randn(2, 2, 8, 5, generator=generator)
    state = torch.get_rng_state()
    top, bottom, drawn = (
        choose_heads(seen, blind, outlier_filter=False, heads=heads)
        for heads in ("top", "bottom", "random")
    )
    assert torch.equal(bottom, ~top)
    assert drawn.sum(1).tolist() == [4, 4]
    assert torch.equal(drawn[0], drawn[1])  # whatever the sample
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, choose_heads(blind, seen, outlier_filter=False, heads="random"))


@pairs("vhr", "vhr-mask")
def test_the_prompt_without_image_is_the_prompt_with_its_image_tokens_dropped(
    family: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[Tensor, Tensor]] = []

    def note(seen: Tensor, blind: Tensor, *options: Any) -> Tensor:
        noted.append((seen[0], blind[0]))
        return torch.zeros(seen.shape[:2], dtype=torch.bool)  # nothing is reinforced

    model = tiny(family)
    inputs = ask(model, (LONG, [1]))
    monkeypatch.setattr(vhr, "choose_heads", note)
    logits(model, inputs, method.acts)
    host = find_host(model.model, model.processor)
    spec: Any = method.acts
    with_image, without = compare_prompts(host, inputs, spec.null_image)
    for layer, (seen, blind) in enumerate(noted):
        torch.testing.assert_close(seen, with_image[layer], rtol=0, atol=1e-4)
        torch.testing.assert_close(blind, without[layer], rtol=0, atol=1e-4)
        assert layer == 0 or (seen - blind).abs().max() > 0.01
    assert len(noted) == 3


@pairs("vhr")
def test_the_two_ways_to_remove_the_image_differ(family: str, method: Method) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    host = find_host(model.model, model.processor)
    kept = [not image for image in read(host, inputs).image]
    dropped, hidden = (compare_prompts(host, inputs, way)[1][2] for way in ("drop", "mask"))
    # Rotary positions are relative: where no text stands before the image they agree.
    assert torch.allclose(dropped, hidden, atol=1e-4) == (not any(kept[: kept.index(False)]))


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_the_callers_cache_holds_the_prompt_and_nothing_else(family: str, kind: Any) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    length = inputs["input_ids"].shape[1]
    config = model.model.config.get_text_config()
    caches = []
    for spec in (EDITS["vhr"].acts, None):
        cache = kind(config, length + 4) if kind is StaticCache else kind(config=config)
        with attach(model.model, *([spec] if spec else [])), torch.no_grad():
            out = model.model(**inputs, past_key_values=cache)
        assert out.past_key_values is cache
        assert out.logits.shape[:2] == (2, length)
        assert int(cache.get_seq_length()) == length
        caches.append(cache)
    edited, plain = caches
    assert edited.layers[0].keys.shape == plain.layers[0].keys.shape
    assert torch.equal(edited.layers[0].keys, plain.layers[0].keys)
    assert not torch.allclose(edited.layers[1].keys, plain.layers[1].keys)


def test_without_a_cache_none_is_returned() -> None:
    model = tiny("llava")
    with attach(model.model, VHR(layers=LAYERS)), torch.no_grad():
        assert model.model(**ask(model, (SHORT, [0])), use_cache=False).past_key_values is None
        made = model.model(**ask(model, (SHORT, [0]))).past_key_values
    assert type(made) is DynamicCache


def test_every_row_of_a_chosen_head_is_scaled() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    noted: list[Tensor] = []
    projection: Any = model.model.get_decoder().layers[0].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda _, args: noted.append(args[0]))
    length = inputs["input_ids"].shape[1]
    logits(model, inputs)
    logits(model, inputs, VHR(alpha=3, layers=(0,)))
    handle.remove()
    plain, scaled = (out[0, :length].reshape(length, 4, 16) for out in noted)
    ratio = (scaled / plain).median(-1).values
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    assert sorted(ratio[0].round().tolist()) == [1, 1, 3, 3]


@pytest.mark.parametrize("heads", ["bottom", "random"])
def test_controls_act_differently(heads: Any) -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]))
    top, control = (
        logits(model, inputs, VHR(layers=LAYERS, heads=which)) for which in ("top", heads)
    )
    assert (top - control)[0, -1].abs().max() > 0.1


def test_two_reinforcements_multiply_where_they_agree() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    both = logits(model, inputs, VHR(alpha=2, layers=(1,)), VHR(alpha=3, layers=(2,)))
    with attach(model.model, VHR(alpha=3, layers=(2,))):
        nested = logits(model, inputs, VHR(alpha=2, layers=(1,)))
    assert torch.equal(both, nested)


@pytest.mark.parametrize(
    ("family", "layers"),
    [("llava", (1, *range(18, 32))), ("instructblip", tuple(range(14, 32)))],
)
def test_default_layers_are_the_papers(family: str, layers: tuple[int, ...]) -> None:
    host = as_deep(find_host(tiny(family).model), 32)
    assert VHR().resolve(host).layers == layers
