"""ConsistEdit against numbers that its own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from vectors import Tensors, cases, named, vectors

import regaze
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import Layout, Site
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.kernel import Edits
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows
from regaze.hooks.diffusion.running import Memory
from regaze.hooks.diffusion.running import Running as Pipe
from regaze.interventions.diffusion.consistent import Consistent
from regaze.interventions.diffusion.edit_mask import Attended, Running, relative, shares

GRID = (4, 5)
STEPS = 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class _Denoiser(nn.Module):
    """A module that counts as a denoiser."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.config: Any = None


def weights(inputs: Tensors, prefix: str) -> Tensors:
    found = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    return {k: v for k, v in found.items() if k.endswith((".weight", ".bias"))}


def joint(inputs: Tensors, name: str) -> Any:
    make: Any = Attention
    attn = make(
        query_dim=12, heads=3, dim_head=4, added_kv_proj_dim=12, context_pre_only=False,
        out_dim=12, bias=True, eps=1e-6, processor=JointAttnProcessor2_0(),
        qk_norm="rms_norm" if name == "sd3_module1" else None,
    ).eval()  # fmt: skip
    attn.load_state_dict(weights(inputs, f"{name}."))
    return attn


def flux(inputs: Tensors) -> Any:
    attn: Any = FluxAttention(
        12, 3, 4, bias=True, eps=1e-6, processor=FluxAttnProcessor(), pre_only=True
    )
    attn.eval().load_state_dict(weights(inputs, "flux_single."))
    return attn


def edited(attn: nn.Module, work: Any, case: dict[str, Any], model: str, site: Site,
           rows: Rows, n_text: int, **call: Any) -> Any:  # fmt: skip
    """A module's output with a work on its kernel, in the case's step."""
    denoiser = _Denoiser(attn)
    layout = Layout(GRID, n_text, False, n_image=20, branches=rows.branches)
    running = Pipe(None, {"i": case.get("step", 0), "timesteps": range(STEPS)}, Memory())
    pass_ = Pass(denoiser, FAMILIES[model], {}, rows, layout, running)
    calls = Calls()
    try:
        editors = {site: [work.attend]} if work.attending(pass_) else {}
        with Edits(denoiser, editors, layout, calls, pass_).applied(), torch.no_grad():
            return attn(**call)
    finally:
        calls.release()


def work_of(case: dict[str, Any], inputs: Tensors, site: Site) -> Consistent:
    free = "nomask" in case["name"]
    mask = inputs["preserve_mask"] == 0
    spec = regaze.ConsistEdit(mask="all" if free else mask, strength=case["qk_steps"] / STEPS)
    return Consistent((site,), spec=spec, given=() if free else (mask,), free=free)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", cases("consistedit", named("sd3_module")))
def test_joint_attention_of_sd3(case: dict[str, Any]) -> None:
    inputs, expected = vectors("consistedit")
    module = case["name"].partition(".")[0]
    site = Site("attn", "joint", "transformer_blocks.0", 0, 3, "image-text")
    image, text = edited(
        joint(inputs, module), work_of(case, inputs, site), case, "SD3Transformer2DModel", site,
        Rows(4, slice(2, 4), slice(0, 2)), 7, hidden_states=inputs[f"{module}.hidden_states"],
        encoder_hidden_states=inputs[f"{module}.encoder_hidden_states"],
    )  # fmt: skip
    close(image, expected[f"{case['name']}.image"])
    close(text, expected[f"{case['name']}.text"])


@pytest.mark.parametrize("case", cases("consistedit", named("flux_single")))
def test_single_blocks_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("consistedit")
    site = Site("attn", "joint", "single_transformer_blocks.0", 0, 3, "text-image")
    rotary = (inputs["flux_single.rotary_cos"], inputs["flux_single.rotary_sin"])
    got = edited(
        flux(inputs), work_of(case, inputs, site), case, "FluxTransformer2DModel", site,
        Rows(2, slice(0, 2), None), 6, hidden_states=inputs["flux_single.hidden_states"],
        image_rotary_emb=rotary,
    )  # fmt: skip
    close(got, expected[case["name"]])


def test_double_blocks_of_flux_are_left_alone() -> None:
    from tiny_pipelines import tiny

    with regaze.attach(tiny("flux"), regaze.ConsistEdit(mask="all")) as run:
        layers = run.specs[0].layers  # type: ignore[attr-defined]
    assert layers == ("single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn")
    # And so does the code: these are the stock module's.
    inputs, expected = vectors("consistedit")
    hidden, text = (inputs[f"flux_double.{x}hidden_states"] for x in ("", "encoder_"))
    attn: Any = FluxAttention(
        12, 3, 4, bias=True, eps=1e-6, processor=FluxAttnProcessor(), added_kv_proj_dim=12
    )
    attn.eval().load_state_dict(weights(inputs, "flux_double."))
    rotary = tuple(
        inputs[f"flux_single.rotary_{x}"][: hidden.shape[1] + text.shape[1]] for x in ("cos", "sin")
    )
    with torch.no_grad():
        image, words = attn(hidden, text, image_rotary_emb=rotary)
    close(image, expected["flux_double.image"])
    close(words, expected["flux_double.text"])


def members(case: dict[str, Any]) -> Tensor:
    found = torch.zeros(1, case["text_len"])
    found[0, case["token_positions"]] = 1
    return found


@pytest.mark.parametrize("told", [True, False], ids=["by-lse", "by-kernel"])
@pytest.mark.parametrize("case", cases("consistedit", named("mask_sd3")))
def test_the_mask_of_sd3(case: dict[str, Any], told: bool) -> None:
    inputs, expected = vectors("consistedit")
    site = Site("attn", "joint", "transformer_blocks.0", 0, 3, "image-text")
    layout = Layout(GRID, case["text_len"], False, n_image=20)
    both = members(case).expand(2, -1)
    seen = Running()
    for number in range(len(inputs["mask_sd3.q"])):
        query, key = (inputs[f"mask_sd3.{name}"][number] for name in "qk")
        call = Call(
            site,
            layout,
            query,
            key,
            key,
            None,
            0.5,
            torch.nn.functional.scaled_dot_product_attention,
        )
        rows = Attended.of(call, query, key, key) if told else Attended(query, key, None, None)
        assert (rows.lse is not None) == told
        seen.add(shares(call, rows, torch.arange(2), both, "joint"))
        got = relative(seen.mean())
        close(got, expected["mask_sd3.normalised"][number].flatten(1))
    preserve = ~(got[1] > case["threshold"])
    assert torch.equal(preserve.float(), expected["mask_sd3.preserve_last"].flatten())


@pytest.mark.parametrize("case", cases("consistedit", named("mask_flux")))
def test_the_mask_of_flux(case: dict[str, Any]) -> None:
    inputs, expected = vectors("consistedit")
    site = Site("attn", "joint", "single_transformer_blocks.0", 0, 3, "text-image")
    attn, seen = flux(inputs), Running()
    rotary = (inputs["mask_flux.rotary_cos"], inputs["mask_flux.rotary_sin"])
    for number, hidden in enumerate(inputs["mask_flux.hidden_states"]):

        class Reading:
            def attending(self, pass_: Pass) -> bool:
                return True

            def attend(self, call: Call) -> Tensor:
                rows = Attended.of(call, call.query, call.key, call.value)
                seen.add(shares(call, rows, torch.arange(1), members(case), "joint"))
                return call.output

        got = edited(
            attn, Reading(), case, "FluxTransformer2DModel", site, Rows(1, slice(0, 1), None),
            case["text_len"], hidden_states=hidden[None], image_rotary_emb=rotary,
        )  # fmt: skip
        close(got[:, case["text_len"] :], expected[f"mask_flux.call{number}.image_out"])
        close(relative(seen.mean()), expected["mask_flux.normalised"][number].flatten()[None])
    preserve = ~(relative(seen.mean())[0] > case["threshold"])
    assert torch.equal(preserve.float(), expected["mask_flux.preserve_last"].flatten())
