"""Regions and Reweight against numbers that the papers' own code produced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor
from vectors import Tensors, cases, meta, named, vectors

import regaze
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import Host, Layout, Site
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.kernel import Edits
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows
from regaze.hooks.diffusion.running import Memory, Running
from regaze.interventions.diffusion import regional
from regaze.interventions.diffusion.reweighting import Weighted


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


def flux(inputs: Tensors) -> Any:
    denoiser: Any = FluxTransformer2DModel(**meta("regional_prompting")["transformer_config"])
    names = {k.removeprefix("transformer."): v for k, v in inputs.items() if "transformer." in k}
    denoiser.eval().load_state_dict(names)
    return denoiser


@pytest.mark.parametrize("case", cases("regional_prompting", named("forward")))
def test_regions_in_the_whole_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("regional_prompting")
    denoiser = flux(inputs)
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


@pytest.mark.parametrize("case", cases("regional_prompting", named("attn")))
def test_regions_in_single_calls_of_flux(case: dict[str, Any]) -> None:
    (inputs, expected), name = vectors("regional_prompting"), case["name"]
    single = name == "attn_single"
    block = f"{'single_' if single else ''}transformer_blocks.0"
    denoiser = flux(inputs)
    attn, length = denoiser.get_submodule(f"{block}.attn"), inputs["context_base"].shape[1]
    texts = torch.cat([inputs["context_region0"], inputs["context_region1"]])
    whole = len(texts) * length
    spec = regaze.Regions(
        [(inputs["region0"], "one"), (inputs["region1"], "two")], case["base_ratio"],
        {"text": texts}, stop=1.0, overlap="all",
    )  # fmt: skip
    site = Site(f"{block}.attn", "joint", block, 0, attn.heads, "text-image")
    work: Any = spec.bind(Host("FluxTransformer2DModel", (site,)))
    grid = tuple(side // 16 for side in inputs["region0"].shape)
    inside = torch.stack([regional.on_grid(mask, grid) for mask in work.masks])
    assert torch.equal(regional.may_see(inside, length), expected["attention_mask"].bool())
    layout = Layout(grid, whole, False)
    family = FAMILIES["FluxTransformer2DModel"]
    text = {family.text: torch.zeros(1, length, 1)}
    pass_ = Pass(denoiser, family, text, Rows(1, slice(0, 1), None), layout, None)

    def longer(x: Tensor) -> Tensor:
        """The base's text, as long as the regions', which lie in the same rows."""
        return torch.cat([x, torch.zeros(1, whole - length, x.shape[2])], 1)

    rotary = (inputs[f"{name}.rotary_cos"], inputs[f"{name}.rotary_sin"])
    if single:
        base = inputs[f"{name}.hidden_states_base"]
        base = torch.cat([longer(base[:, :length]), base[:, length:]], 1)
        call = {"hidden_states": torch.cat([inputs[f"{name}.hidden_states"], base])}
    else:
        hidden, own = inputs[f"{name}.hidden_states"], inputs[f"{name}.context_base"]
        both = torch.cat([inputs[f"{name}.context_regional"], longer(own)], 1)
        call = {"hidden_states": hidden, "encoder_hidden_states": both}
        rotary = (torch.cat([rotary[0][:whole], rotary[0]]),
                  torch.cat([rotary[1][:whole], rotary[1]]))  # fmt: skip
    calls = Calls()
    try:
        with (
            Edits(denoiser, {site: [work.attend]}, layout, calls, pass_).applied(),
            torch.no_grad(),
        ):
            got = attn(**call, image_rotary_emb=rotary)
    finally:
        calls.release()
    if not single:
        regional_, base_ = got[1][:, :whole], got[1][:, whole : whole + length]
        pairs = {"image": got[0], "text_regional": regional_, "text_base": base_}
    else:
        kept = torch.cat([got[1:, :length], got[1:, whole:]], 1)
        pairs = {"regional": got[:1], "base": kept}
    for part, value in pairs.items():
        torch.testing.assert_close(value, expected[f"{name}.{part}"], atol=2e-5, rtol=0)


STEPS = 10


def passing(rows: Rows, columns: int, step: int) -> Pass:
    """A pass of a step."""
    running = Running(None, {"i": step, "timesteps": range(STEPS)}, Memory())
    layout = Layout(None, columns, False, branches=rows.branches)
    return Pass(None, FAMILIES["UNet2DConditionModel"], {}, rows, layout, running)


def work_of(case: dict[str, Any], factors: Tensor, schedule: Tensor) -> Weighted:
    """A case's multipliers, and windows for the columns whose schedule isn't the others'."""
    usual = case["cross_replace_steps"]
    usual = usual["default_"] if isinstance(usual, dict) else usual
    # The base prompt itself keeps its map.
    factors = torch.cat([torch.ones(1, factors.shape[1]), factors])
    spans = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(*factors.shape, 1)
    default = schedule[:, 0, 0]
    assert default.tolist() == [float(n < int(usual * (STEPS + 1))) for n in range(STEPS + 1)]
    for edit in range(schedule.shape[1]):
        for column in range(schedule.shape[2]):
            own = schedule[:, edit, column].nonzero().flatten().tolist()
            if own != default.nonzero().flatten().tolist():
                window = [own[0] / STEPS, (own[-1] + 1) / STEPS]
                spans[edit + 1, column] = torch.tensor(window, dtype=spans.dtype)
    return Weighted(how="values", maps="first", factors=factors, spans=spans)


def weighed(maps: Tensor, work: Weighted, heads: int, step: int) -> Tensor:
    """Maps "(2 prompts) heads, P, T" as the engine edits them: keys and values are the identity."""
    rows, columns = maps.shape[0] // heads, maps.shape[-1]
    query = maps.log().unflatten(0, (rows, heads))
    eye = torch.eye(columns).expand(rows, heads, -1, -1)
    half = rows // 2
    pass_ = passing(Rows(rows, slice(half, rows), slice(0, half)), columns, step)
    site = Site("attn2", "cross", "mid_block", None, heads, "image")

    def kernel(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0, **named)

    call = Call(site, pass_.layout, query, eye, eye, None, 1.0, kernel, pass_=pass_)
    return work.attend(call).flatten(0, 1)


def _offered(case: Mapping[str, Any]) -> bool:
    """Neither refined nor replaced words, nor copied maps of self-attention."""
    return "num_steps" in case and case["previous"] is None


@pytest.mark.parametrize("case", cases("p2p_reweight", _offered))
def test_reweighting_equals_prompt_to_prompt(case: dict[str, Any]) -> None:
    (inputs, expected), name = vectors("p2p_reweight"), case["name"]
    maps, schedule = inputs[f"{name}.maps"], expected[f"{name}.cross_replace_alpha"]
    assert case["num_steps"] == STEPS
    work = work_of(case, inputs[f"{name}.equalizer"], schedule)
    for key in (key for key in expected if key.startswith(f"{name}.step")):
        step = int(key.removeprefix(f"{name}.step"))
        # After the default window a word's own is over, too.
        edited = weighed(maps, work, case["heads"], step) if schedule[step].any() else maps
        torch.testing.assert_close(edited, expected[key], atol=1e-6, rtol=0)


def test_reweighting_needs_no_map() -> None:
    inputs, expected = vectors("p2p_reweight")
    about = {case["name"]: case for case in meta("p2p_reweight")["cases"]}
    schedule = expected[about["fused"]["schedule"]]
    work = work_of(about["reweight_schedule"], inputs[about["fused"]["equalizer"]], schedule)
    query, key, value = (inputs[f"fused.{n}"] for n in "qkv")
    site = Site("attn2", "cross", "mid_block", None, query.shape[1], "image")
    for step in about["fused"]["steps"]:
        about_pass = passing(Rows(2, slice(0, 2), None), key.shape[2], step)
        call = Call(
            site, about_pass.layout, query, key, value, None, query.shape[-1] ** -0.5,
            F.scaled_dot_product_attention, pass_=about_pass,
        )  # fmt: skip
        got = work.attend(call) if schedule[step].any() else call.output
        torch.testing.assert_close(got, expected[f"fused.step{step}"], atol=1e-6, rtol=0)
