"""NAG against numbers that the author's own code produced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from vectors import Tensors, cases, meta, named, vectors

import regaze
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import Layout, Site
from regaze.hooks.diffusion.encode import Encoded
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.kernel import Edits
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows
from regaze.interventions.diffusion.nag import _Negative, combine


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def spec_of(case: dict[str, Any], **more: Any) -> regaze.NAG:
    norm = case.get("norm", "l1")
    return regaze.NAG(
        phi=case["scale_code"] - 1, tau=case["tau"], alpha=case["alpha"], norm=norm, **more
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("case", cases("nag", named("comb")))
def test_the_combination(case: dict[str, Any], norm: str) -> None:
    inputs, expected = vectors("nag")
    name = case["name"]
    positive = inputs.get(f"{name}.z_pos", inputs["comb.z_pos"])
    # Four heads: the norm is over all of them together.
    pair = (positive, inputs["comb.z_neg"])
    z, other = (x.unflatten(2, (4, 8)).transpose(1, 2) for x in pair)
    spec = replace(spec_of(case), norm=norm)
    assert spec.phi == case["phi_paper"]
    got = combine(z, other, spec.phi, spec.tau, spec.alpha, norm).transpose(1, 2).flatten(2)
    assert got.isfinite().all()
    if name != "comb_zero" or norm == "l1":  # There the code's L2 gives NaN.
        torch.testing.assert_close(got, expected[f"{name}.{norm}"], atol=2e-5, rtol=1e-5)


class _Denoiser(nn.Module):
    """A module that counts as a denoiser."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.config: Any = None


def guided(
    attn: nn.Module, spec: regaze.NAG, model: str, site: Site, sizes: tuple[int, int], rows: Rows,
    **call: Any,
) -> Any:  # fmt: skip
    """A module's output with NAG on its kernel; sizes are those of the prompt and the negative."""
    denoiser, own = _Denoiser(attn), sizes[0]
    negative = Encoded(torch.zeros(1, sizes[1], 1))
    work = _Negative((site,), spec=spec, model=model, encoded=negative)
    text = {FAMILIES[model].text: torch.zeros(rows.batch, own, 1)}
    layout = Layout(None, sum(sizes), False, branches=rows.branches)
    if site.kind == "joint" and work.rows:  # A pass counts the tokens of one text.
        layout = replace(layout, n_text=max(sizes), stream=call["hidden_states"].shape[1])
    pass_ = Pass(denoiser, FAMILIES[model], text, rows, layout, None)
    calls = Calls()
    try:
        with (
            Edits(denoiser, {site: [work.attend]}, layout, calls, pass_).applied(),
            torch.no_grad(),
        ):
            return attn(**call)
    finally:
        calls.release()


def weights(inputs: Tensors, prefix: str) -> Tensors:
    found = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    return {k: v for k, v in found.items() if k.endswith((".weight", ".bias"))}


NO_CFG, CFG = Rows(1, slice(0, 1), None), Rows(2, slice(1, 2), slice(0, 1))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", cases("nag", named("sdxl")))
def test_cross_attention_of_sdxl(case: dict[str, Any]) -> None:
    inputs, expected = vectors("nag")
    make: Any = Attention
    attn = make(
        query_dim=24, cross_attention_dim=20, heads=3, dim_head=8, processor=AttnProcessor2_0()
    ).eval()  # fmt: skip
    attn.load_state_dict(weights(inputs, "sdxl."))
    hidden, texts = inputs["sdxl.hidden_states"], ("uncond", "pos", "neg")
    uncond, positive, negative = (inputs[f"sdxl.context_{name}"] for name in texts)
    rows = Rows(4, slice(2, 4), slice(0, 2))
    text = torch.cat([torch.cat([uncond, positive]), torch.cat([negative] * 2)], 1)
    if case["name"].endswith("nocfg"):
        hidden, text, rows = hidden[2:], text[2:], Rows(2, slice(0, 2), None)
    site = Site("attn", "cross", "mid_block", None, 3, "image")
    for name in ("out", "merged"):
        got = guided(attn, spec_of(case), "UNet2DConditionModel", site, (7, 7), rows,
                     hidden_states=hidden, encoder_hidden_states=text)  # fmt: skip
        close(got, expected[f"{case['name']}.{name}"])
        attn.to_out[0] = nn.Identity()


@pytest.mark.parametrize("case", cases("nag", named("wan")))
def test_cross_attention_of_wan(case: dict[str, Any]) -> None:
    (inputs, expected), name = vectors("nag"), case["name"]
    attn: Any = WanAttention(
        24, 4, 6, eps=1e-6, processor=WanAttnProcessor(), cross_attention_dim_head=6
    )
    stored = weights(inputs, f"{name}.")
    missing, others = attn.eval().load_state_dict(stored, strict=False)
    assert not missing
    text = torch.cat([inputs[f"{name}.context_pos"], inputs[f"{name}.context_neg"]], 1)
    site = Site("attn", "cross", "blocks.0", None, 4, "image")
    hidden, out = inputs[f"{name}.hidden_states"], attn.to_out[0]
    attn.to_out[0] = nn.Identity()
    length = inputs[f"{name}.context_pos"].shape[1]
    got = guided(attn, spec_of(case), "WanTransformer3DModel", site, (length, length), NO_CFG,
                 hidden_states=hidden, encoder_hidden_states=text)  # fmt: skip
    if name == "wan_i2v":
        # The stock module counts 512 text tokens, so its unguided second part is added here.
        assert sorted(others) == [k for k in sorted(stored) if "add" in k]
        with torch.no_grad():
            got = got + to_pictures(attn, stored, hidden, inputs[f"{name}.context_image"])
    else:
        assert not others
    close(got, expected[f"{name}.merged"])
    with torch.no_grad():
        close(out(got), expected[f"{name}.out"])


def to_pictures(attn: Any, stored: Tensors, hidden: Tensor, context: Tensor) -> Tensor:
    """Tokens of the first picture that Wan's video reads."""
    key, value = (
        nn.functional.linear(context, stored[f"add_{x}_proj.weight"], stored[f"add_{x}_proj.bias"])
        for x in "kv"
    )
    key = nn.functional.rms_norm(key, (key.shape[-1],), stored["norm_added_k.weight"], 1e-6)
    query = attn.norm_q(attn.to_q(hidden))
    q, k, v = (x.unflatten(2, (4, -1)).transpose(1, 2) for x in (query, key, value))
    found: Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
    return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("stream", ["own", "shared"])
@pytest.mark.parametrize("case", cases("nag", named("sd3")))
def test_joint_attention_of_sd3(case: dict[str, Any], stream: str) -> None:
    """SD3's modulation is neutral here, so that both forms have to give the same."""
    inputs, expected = vectors("nag")
    make: Any = Attention
    attn = make(
        query_dim=24, heads=3, dim_head=8, added_kv_proj_dim=24, context_pre_only=False,
        out_dim=24, bias=True,
        qk_norm="rms_norm", eps=1e-6, processor=JointAttnProcessor2_0(),
    ).eval()  # fmt: skip
    attn.load_state_dict(weights(inputs, "sd3."))
    names = ("uncond", "pos", "neg")
    uncond, positive, negative = (inputs[f"sd3.context_{name}"] for name in names)
    hidden, rows = inputs["sd3.hidden_states"], CFG
    first = torch.cat([uncond, positive])
    if case["name"].endswith("nocfg"):
        hidden, first, rows = hidden[1:], positive, NO_CFG
    second = negative.expand(len(first), -1, -1)
    call = {"hidden_states": hidden, "encoder_hidden_states": torch.cat([first, second], 1)}
    site = Site("attn", "joint", "transformer_blocks.0", 0, 3, "image-text")
    spec = spec_of(case, text_stream=stream)
    image, text = guided(attn, spec, "SD3Transformer2DModel", site, (5, 5), rows, **call)
    text = torch.cat([text[:, :5], text[-1:, 5:]])
    close(image, expected[f"{case['name']}.image"])
    close(text, expected[f"{case['name']}.text"])


def flux_attention(inputs: Tensors, prefix: str, single: bool) -> Any:
    more: dict[str, Any] = {"pre_only": True} if single else {"added_kv_proj_dim": 24}
    attn: Any = FluxAttention(
        24, 2, 12, bias=True, eps=1e-6, processor=FluxAttnProcessor(), **more
    )  # fmt: skip
    attn.eval().load_state_dict(weights(inputs, prefix))
    return attn


@pytest.mark.parametrize("case", cases("nag", named("flux_double")))
def test_double_blocks_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("nag")
    attn = flux_attention(inputs, "flux_double.", single=False)
    hidden = inputs["flux_double.hidden_states"]
    texts = [inputs[f"flux_double.context_{name}"] for name in ("pos", "neg")]
    site = Site("attn", "joint", "transformer_blocks.0", 0, 2, "text-image")
    image, text = guided(
        attn, spec_of(case), "FluxTransformer2DModel", site, (4, 4), NO_CFG,
        hidden_states=hidden, encoder_hidden_states=torch.cat(texts, 1),
        image_rotary_emb=tuple(
            torch.cat([inputs[f"flux.rotary_{x}"][:4], inputs[f"flux.rotary_{x}"]])
            for x in ("cos", "sin")
        ),
    )  # fmt: skip
    close(image, expected[f"{case['name']}.image"])
    close(torch.cat(text.chunk(2, 1)), expected[f"{case['name']}.text"])


@pytest.mark.parametrize("case", cases("nag", named("flux_single")))
def test_single_blocks_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("nag")
    attn = flux_attention(inputs, "flux_single.", single=True)
    site = Site("attn", "joint", "single_transformer_blocks.0", 1, 2, "text-image")
    got = guided(
        attn, spec_of(case), "FluxTransformer2DModel", site, (4, 4), NO_CFG,
        hidden_states=inputs["flux_single.hidden_states"],
        image_rotary_emb=(inputs["flux.rotary_cos"], inputs["flux.rotary_sin"]),
    )  # fmt: skip
    close(got, expected["flux_single.l2"])


@pytest.mark.parametrize("case", cases("peer_nag_flux"))
def test_the_whole_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("peer_nag_flux")
    denoiser: Any = FluxTransformer2DModel(**meta("peer_nag_flux")["transformer_config"])
    names = {k.removeprefix("transformer."): v for k, v in inputs.items() if "transformer." in k}
    denoiser.eval().load_state_dict(names)
    negative = {"text": inputs["context_neg"], "pooled": inputs["pooled_neg"]}
    spec = spec_of(case, embeddings=negative)
    with regaze.attach(denoiser, spec) as run, torch.no_grad():
        (got,) = denoiser(
            inputs["hidden_states"], inputs["context_pos"], inputs["pooled_pos"],
            torch.tensor([case["timestep"]]), inputs["img_ids"], inputs["txt_ids"],
            torch.tensor([case["guidance"]]), return_dict=False,
        )  # fmt: skip
    torch.testing.assert_close(got, expected[case["name"]], atol=5e-5, rtol=0)
    if case["scale_code"] == 1:
        torch.testing.assert_close(got, expected["plain"], atol=5e-5, rtol=0)
    assert run.report().interventions[0].exempt == (case["scale_code"] == 1)
