"""Regions and Reweight against numbers that the papers' own code produced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor
from vectors import cases, meta, named, vectors

import regaze
from regaze.hooks.diffusion import Layout, Site
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows
from regaze.interventions.diffusion import regional
from regaze.interventions.diffusion.reweight import _Weighted


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("case", cases("regional_prompting", named("mask")))
def test_which_tokens_see_each_other(case: dict[str, Any]) -> None:
    inputs, expected = vectors("regional_prompting")
    name, length = case["name"], case["text_tokens_per_region"]
    masks = [x for k, x in inputs.items() if k.startswith(f"{name}.region")]
    inside = torch.stack([regional.on_grid(mask, case["grid"]) for mask in masks])
    assert torch.equal(inside.float(), expected[f"{name}.tokens"])
    want = expected[f"{name}.attention"]
    assert torch.equal(regional.may_see(inside, length), want)
    # And groups, of which no mask is made, give what the mask gives.
    (regions, tokens), generator = inside.shape, torch.Generator().manual_seed(0)
    texts, picture = (torch.randn(3, 2, 2, n, 8, generator=generator)
                      for n in (regions * length, tokens))  # fmt: skip
    groups, kernel = regional.groups(inside), F.scaled_dot_product_attention
    image, text = regional.joint(kernel, picture, texts, groups, regions)
    query, key, value = torch.cat([texts, picture], 3)
    whole = kernel(query, key, value, attn_mask=want)
    torch.testing.assert_close(torch.cat([text, image], 2), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", cases("regional_prompting", named("forward")))
def test_regions_in_the_whole_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("regional_prompting")
    denoiser: Any = FluxTransformer2DModel(**meta("regional_prompting")["transformer_config"])
    names = {k.removeprefix("transformer."): v for k, v in inputs.items() if "transformer." in k}
    denoiser.eval().load_state_dict(names)
    texts = torch.cat([inputs["context_region0"], inputs["context_region1"]])
    ratio = 1.0 if case["base_ratio"] is None else case["base_ratio"]
    every = (case["double_inject_blocks_interval"], case["single_inject_blocks_interval"])
    spec = regaze.Regions(
        [(inputs["region0"], "one"), (inputs["region1"].bool().numpy(), "two")], ratio,
        {"text": texts}, every, stop=1.0, overlap="all",
    )  # fmt: skip
    base = inputs["context_base"]
    with regaze.attach(denoiser, spec), torch.no_grad():
        (got,) = denoiser(
            inputs["hidden_states"], base, inputs["pooled_base"], torch.tensor([case["timestep"]]),
            inputs["img_ids"], torch.zeros(base.shape[1], 3), torch.tensor([case["guidance"]]),
            return_dict=False,
        )  # fmt: skip
    torch.testing.assert_close(got, expected[case["name"]], atol=5e-5, rtol=0)


def weighed(maps: Tensor, factors: Tensor, spec: regaze.Reweight, heads: int) -> Tensor:
    """Maps "(2 prompts) heads, P, T" as the engine edits them: keys and values are the identity."""
    rows, columns = maps.shape[0] // heads, maps.shape[-1]
    query = maps.log().unflatten(0, (rows, heads))
    eye = torch.eye(columns).expand(rows, heads, -1, -1)
    half = rows // 2
    layout = Layout(None, columns, False, branches=2)
    running: Any = SimpleNamespace(step=(0, 1), pipeline=None, run=0)
    about = Rows(rows, slice(half, rows), slice(0, half))
    pass_ = Pass(None, FAMILIES["UNet2DConditionModel"], {}, about, layout, running)
    site = Site("attn2", "cross", "mid_block", None, heads, "image")

    def kernel(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0, **named)

    call = Call(site, layout, query, eye, eye, None, 1.0, kernel, pass_=pass_)
    found = _Weighted((site,), spec=spec, factors=factors).attend(call)
    return found.flatten(0, 1)


@pytest.mark.parametrize("name", ["reweight", "reweight_two"])
def test_reweighting_equals_prompt_to_prompt(name: str) -> None:
    inputs, expected = vectors("p2p_reweight")
    (case,) = (c for c in meta("p2p_reweight")["cases"] if c["name"] == name)
    maps, factors = inputs[f"{name}.maps"], inputs[f"{name}.equalizer"]
    # The base prompt itself keeps its map.
    factors = torch.cat([torch.ones(1, factors.shape[1]), factors])
    spec = regaze.Reweight({"tree": 2.0}, how="values", maps="first")
    edited = weighed(maps, factors, spec, case["heads"])
    for step in (0, 3, 7, 9):
        acts = bool(expected[f"{name}.cross_replace_alpha"][step].all())
        assert acts == (step < int(case["cross_replace_steps"] * (case["num_steps"] + 1)))
        want = expected[f"{name}.step{step}"]
        torch.testing.assert_close(edited if acts else maps, want, atol=1e-6, rtol=0)


def test_reweighting_needs_no_map() -> None:
    """The stored operands, in a step in which every word reads the base prompt's map."""
    inputs, expected = vectors("p2p_reweight")
    assert expected["reweight_schedule.cross_replace_alpha"][3].all()
    query, key, value = (inputs[f"fused.{n}"] for n in "qkv")
    factors = torch.cat([torch.ones(1, 77), inputs["reweight.equalizer"]])
    spec = regaze.Reweight({"tree": 2.0}, how="values", maps="first")
    site = Site("attn2", "cross", "mid_block", None, 2, "image")
    layout = Layout(None, 77, False)
    about = Pass(
        None, FAMILIES["UNet2DConditionModel"], {}, Rows(2, slice(0, 2), None), layout, None
    )
    scale = query.shape[-1] ** -0.5
    call = Call(
        site, layout, query, key, value, None, scale, F.scaled_dot_product_attention, pass_=about
    )
    got = _Weighted((site,), spec=spec, factors=factors).attend(call)
    torch.testing.assert_close(got, expected["fused.step3"], atol=1e-6, rtol=0)
