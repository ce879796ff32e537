"""Methods for video against numbers that their papers' own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn
from vectors import cases, meta, named, vectors

import regaze
from regaze.hooks.diffusion import Host, Layout, Site
from regaze.hooks.diffusion.kernel import editing
from regaze.interventions.diffusion.bytheway import high_band
from regaze.interventions.diffusion.enhance_a_video import intensity
from regaze.interventions.diffusion.radial import block_mask

ENHANCE = "enhance_a_video"
MODELS = {
    "wan": "WanTransformer3DModel",
    "cogvideox": "CogVideoXTransformer3DModel",
    "hunyuan_double": "HunyuanVideoTransformer3DModel",
    "hunyuan_single": "HunyuanVideoTransformer3DModel",
}


@pytest.mark.parametrize("case", cases(ENHANCE, named("score")))
def test_the_factor_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors(ENHANCE)
    query, key = (inputs[f"{case['name']}.{x}"] for x in "qk")
    cfi = intensity(query, key, case["frames"], query.shape[-1] ** -0.5)
    spec = regaze.EnhanceAVideo(weight=case["weight"], per="call")
    got = spec.factor(cfi, case["frames"])
    for name, value in (("cfi", cfi.mean()), ("score", got[0])):
        want = expected[f"{case['name']}.{name}"][0]
        torch.testing.assert_close(value, want, atol=2e-5, rtol=0)
    assert len(set(got.tolist())) == 1


def module(name: str, parameters: dict[str, torch.Tensor]) -> Any:
    """One of diffusers' attention modules with the stored parameters."""
    size, make = meta(ENHANCE)["modules"][name], Attention
    if name == "wan":
        found: Any = WanAttention(
            size["width"], size["heads"], size["head_dim"], processor=WanAttnProcessor()
        )
    elif name == "cogvideox":
        found = make(
            query_dim=size["width"], dim_head=size["head_dim"], heads=size["heads"], bias=True,
            qk_norm="layer_norm", eps=1e-6, processor=CogVideoXAttnProcessor2_0(),
        )  # fmt: skip
    else:
        double = name.endswith("double")
        found = make(
            query_dim=size["width"], added_kv_proj_dim=size["width"] if double else None,
            dim_head=size["head_dim"], heads=size["heads"], out_dim=size["width"], bias=True,
            context_pre_only=False if double else None, qk_norm="rms_norm", eps=1e-6,
            processor=HunyuanVideoAttnProcessor2_0(), pre_only=not double,
        )  # fmt: skip
    found.load_state_dict(parameters)
    return found.eval()


@pytest.mark.parametrize("case", cases(ENHANCE, lambda case: case["name"] in MODELS))
def test_enhance_a_video_equals_the_released_code(case: dict[str, Any]) -> None:
    (inputs, expected), name = vectors(ENHANCE), case["name"]
    stored = {k.removeprefix(f"{name}."): v for k, v in inputs.items() if k.startswith(f"{name}.")}
    attn = module(name, {k: v for k, v in stored.items() if k.endswith((".weight", ".bias"))})
    call = {"hidden_states": stored["hidden_states"]}
    if name == "wan":
        angle = stored["rotary_angle"].repeat_interleave(2, -1)[None, :, None]
        call["rotary_emb"] = (angle.cos(), angle.sin())  # type: ignore[assignment]
    else:
        call["encoder_hidden_states"] = stored["encoder_hidden_states"]
        call["image_rotary_emb"] = (stored["rotary_cos"], stored["rotary_sin"])  # type: ignore[assignment]
    order: Any = {"wan": "image", "cogvideox": "text-image"}.get(name, "image-text")
    site = Site("attn", "self" if name == "wan" else "joint", "blocks.0", 0, 2, order)
    text = 0 if name == "wan" else stored["encoder_hidden_states"].shape[1]
    layout = Layout((case["frames"], 1, case["places"]), text, False)
    host = Host(MODELS[name], (site,))
    spec = regaze.EnhanceAVideo(weight=case["weight"], per="call").resolve(host)
    holder = nn.ModuleDict({"attn": attn})
    with torch.no_grad():
        plain = attn(**call)
        with editing(holder, [site], layout, spec.bind(host).attend):
            got = attn(**call)
    suffix = "" if name == "wan" else "video"
    if name == "wan":
        pairs = [(got, "out"), (plain, "plain")]
    else:
        pairs = [(got[0], suffix), (got[1], "text"), (plain[0], f"{suffix}_plain")]
    for value, tensor in pairs:
        want = expected[f"{name}.{tensor}"]
        # Larger numbers are rounded more coarsely, multiplied or not.
        torch.testing.assert_close(
            value, want, atol=2e-5 * max(1.0, want.abs().max().item()), rtol=0
        )


@pytest.mark.parametrize("case", cases("bytheway"))
def test_bytheway_equals_the_released_code(case: dict[str, Any]) -> None:
    (inputs, expected), name = vectors("bytheway"), case["name"]
    own, first = (
        inputs[f"{name}.{x}"].unflatten(0, (-1, case["heads"])) for x in ("attn", "attn_up1")
    )
    spec = regaze.ByTheWay(alpha=case["alpha"], beta=case["beta_input"], tau=case["tau"])
    got = spec.edited(own, first, branches=2, cond=1, rows=2)
    atol = 1e-5 if case["beta_input"] <= 2 else 1e-4
    torch.testing.assert_close(got.flatten(0, 1), expected[f"{name}.attn_out"], atol=atol, rtol=0)


@pytest.mark.parametrize("case", cases("bytheway", lambda case: case["frames"] == 16))
def test_the_closed_form_equals_the_transform(case: dict[str, Any]) -> None:
    inputs, _ = vectors("bytheway")
    maps = inputs[f"{case['name']}.attn"].unflatten(0, (-1, case["heads"]))
    frames, beta = case["frames"], case["beta_input"]
    band = high_band(frames, case["tau"])
    spectrum = torch.fft.fft(maps, dim=-1)
    want = torch.fft.ifft(torch.where(band, beta * spectrum, spectrum), dim=-1).real
    spec = regaze.ByTheWay(alpha=0.0, beta=beta, tau=case["tau"])
    got = spec.edited(maps, maps, branches=2, cond=1, rows=2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert band.tolist() == [False] + [True] * (frames - 1)


@pytest.mark.parametrize("case", cases("radial"))
def test_radial_masks_equal_the_released_code(case: dict[str, Any]) -> None:
    _, expected = vectors("radial")
    got = block_mask(
        case["frames"], case["tokens_per_frame"], case["sequence_length"], case["decay_factor"],
        case["model_type"] == "wan", case["block_size"],
    )  # fmt: skip
    assert torch.equal(got, expected[f"{case['name']}.mask"])
    video = case["frames"] * case["tokens_per_frame"]
    # Where nothing pads the clip, its last tokens are a shorter block, which is dense.
    alone = block_mask(
        case["frames"], case["tokens_per_frame"], video, case["decay_factor"],
        case["model_type"] == "wan", case["block_size"],
    )  # fmt: skip
    whole = video // case["block_size"]
    assert torch.equal(alone[:whole, :whole], got[:whole, :whole])
    assert bool(alone[whole:].all()) and len(alone) == -(-video // case["block_size"])
