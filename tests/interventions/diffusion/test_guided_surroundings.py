"""Adapters, offloading, compilation and other attention backends around an attached guidance."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers import (
    FirstBlockCacheConfig,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionAdapterPipeline,
    T2IAdapter,
    attention_backend,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from methods import METHODS
from scenes import differ, steps
from tiny_pipelines import FAMILIES, image, quiet, sd3_parts, sd_parts, tiny, vae
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import regaze
from regaze.hooks.diffusion.literal import WholeForm, literally
from regaze.hooks.diffusion.literal_latents import LatentForm, moved_literally


def fresh(family: str) -> Any:
    """A pipeline that a test may change."""
    return quiet(FAMILIES[family].build())


def guided(family: str, pipe: Any, **more: Any) -> tuple[Tensor, str]:
    """The pipeline's latents with PAG attached, and how the guidance ran."""
    kind = FAMILIES[family]
    with regaze.attach(pipe, METHODS["pag"].on(family), **more) as run:
        latents = kind.run(pipe)
    report = run.report()
    assert report.fired
    return latents, report.interventions[0].note


def close(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() < 1e-5 * want.abs().max())


@pytest.mark.parametrize(
    "processor", [AttnProcessor(), SlicedAttnProcessor(1)], ids=["eager", "sliced"]
)
def test_processors_without_the_kernel_are_switched_for_edited_layers_only(processor: Any) -> None:
    pipe, kind = fresh("sd"), FAMILIES["sd"]
    want, _ = guided("sd", pipe)
    pipe.unet.set_attn_processor(processor)
    plain = kind.run(pipe)
    got, _ = guided("sd", pipe)
    assert close(got, want)
    assert all(p is processor for p in pipe.unet.attn_processors.values())
    assert torch.equal(kind.run(pipe), plain)


@pytest.mark.parametrize("family", ["flux", "wan", "qwen"])
def test_another_backend_is_switched_for_edited_layers_only(family: str) -> None:
    pipe = fresh(family)
    want, _ = guided(family, pipe)
    # A model's backend is also made everyone's; that ends with this block.
    with attention_backend("native"):
        pipe.transformer.set_attention_backend("flex")
        layers = pipe.transformer.attn_processors.values()
        before = [vars(p).get("_attention_backend") for p in layers]
        assert set(before) == {"flex"}
        pipe.transformer.set_attention_backend("_native_math")
        got, _ = guided(family, pipe)
        assert (got - want).abs().max() < 1e-4 * want.abs().max()
        assert {vars(p).get("_attention_backend") for p in layers} == {"_native_math"}
        pipe.transformer.reset_attention_backend()
    assert close(guided(family, pipe)[0], want)


def test_a_processor_that_calls_no_kernel_raises_and_leaves_no_trace() -> None:
    class Ours:
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden_states

    pipe, kind = fresh("sd"), FAMILIES["sd"]
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = Ours()
    plain = kind.run(pipe)
    with (
        regaze.attach(pipe, regaze.PAG()),
        pytest.raises(RuntimeError, match=r"Ours made no call.*skipped silently"),
    ):
        kind.run(pipe)
    assert torch.equal(kind.run(pipe), plain)


def test_step_caching_raises() -> None:
    pipe = fresh("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="disable_cache"):
        regaze.attach(pipe, regaze.PAG())


def test_fused_projections() -> None:
    pipe = fresh("sd")
    want, _ = guided("sd", pipe)
    pipe.unet.fuse_qkv_projections()
    assert close(guided("sd", pipe)[0], want)


class _LowRank(nn.Module):
    """A LoRA layer around a linear one, as peft wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(2, base.in_features, generator=generator))
        self.b = nn.Parameter(torch.randn(base.out_features, 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + x @ self.a.T @ self.b.T


def test_an_unmerged_adapter_equals_the_merged_one() -> None:
    pipe = fresh("sd")
    merged = copy.deepcopy(pipe)
    for one in (pipe, merged):
        attn = one.unet.mid_block.attentions[0].transformer_blocks[0].attn1
        low_rank = _LowRank(attn.to_v)
        if one is merged:
            attn.to_v.weight.data += low_rank.b @ low_rank.a
        else:
            attn.to_v = low_rank
    got, want = guided("sd", pipe)[0], guided("sd", merged)[0]
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_an_ip_adapter_keeps_working() -> None:
    pipe, kind = fresh("sd"), FAMILIES["sd"]
    processors: dict[str, Any] = {}
    torch.manual_seed(3)
    for name, old in pipe.unet.attn_processors.items():
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        cross = IPAdapterAttnProcessor2_0(width, 16, num_tokens=(2,), scale=0.7)
        processors[name] = old if "attn1" in name else cross
    pipe.unet.set_attn_processor(processors)
    pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"
    pipe.unet.encoder_hid_proj = nn.Identity()
    stock = pipe.unet.forward
    images = [torch.randn(4, 1, 2, 16)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        rows = len(args[0])
        kwargs["added_cond_kwargs"] = {"image_embeds": [images[0][:rows]]}
        return stock(*args, **kwargs)

    call = kind.call(2, True)
    text = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])
    sample = torch.cat([call["latents"]] * 2)
    added = {"image_embeds": images}
    args = {"encoder_hidden_states": text, "added_cond_kwargs": added, "return_dict": False}
    with torch.no_grad():
        plain = pipe.unet(sample, torch.tensor(500), **args)[0]
        bare = {"cond_rows": slice(2, 4)}
        with regaze.attach(pipe.unet, regaze.PAG(scale=2.0), **bare):  # type: ignore[arg-type]
            forked = pipe.unet(sample, torch.tensor(500), **args)[0]
        with regaze.attach(pipe.unet, regaze.PAG(scale=2.0), fork=False, **bare):  # type: ignore[arg-type]
            whole = pipe.unet(sample, torch.tensor(500), **args)[0]
    assert close(forked, whole)
    assert (forked - plain).abs().max() > 1e-3
    assert (forked[2:] - plain[2:] - (forked[:2] - plain[:2])).abs().max() < 1e-5


@contextmanager
def offloaded(module: nn.Module) -> Iterator[None]:
    """Weights live elsewhere and come layer by layer, as with sequential offloading."""
    cpu_offload(module, execution_device=torch.device("cpu"))
    try:
        yield
    finally:
        remove_hook_from_submodules(module)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_sequential_offloading(family: str) -> None:
    pipe = fresh(family)
    want, note = guided(family, pipe)
    with offloaded(getattr(pipe, FAMILIES[family].denoiser)):
        got, offloaded_note = guided(family, pipe)
    assert close(got, want)
    assert note == offloaded_note


def test_group_offloading_runs_whole_extra_passes() -> None:
    pipe = fresh("flux")
    want, _ = guided("flux", pipe)
    pipe.transformer.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), offload_type="block_level",
        num_blocks_per_group=1,
    )  # fmt: skip
    got, note = guided("flux", pipe)
    assert close(got, want)
    assert "whole extra passes" in note


@pytest.mark.parametrize(
    "method", ["pag", "seg-infinite", "softpag-query-mean", "reweight", "attend_and_excite"]
)
@pytest.mark.parametrize("family", ["sd", "sd35", "qwen"])
def test_autocast(family: str, method: str) -> None:
    """Norms give queries and keys of float32 beside values of 16 bits."""
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, METHODS[method].on(family)) as run:
        want = kind.run(pipe)
        with torch.autocast("cpu", torch.bfloat16):
            got = kind.run(pipe)
    assert run.report().fired
    assert (got - want).abs().max() < 0.15 * want.abs().max()


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "default", [default_dtype, lambda: torch.device("meta")], ids=["dtype", "device"]
)
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_default_dtype_and_device_change_nothing(family: str, default: Any) -> None:
    """Tensors that land on this device by themselves hold no data."""
    pipe, kind = tiny(family), FAMILIES[family]
    call = kind.call(1, True)
    acting = [name for name, method in METHODS.items() if family in method.scenes]
    assert len(acting) > 15
    for name in acting:
        run: dict[str, Any] = {**call, **steps(name)}
        with regaze.attach(pipe, METHODS[name].on(family)):
            want = pipe(**run)[0]
            with default():
                got = pipe(**run)[0]
        assert differ(got, want) < 1e-5, name


@pytest.mark.parametrize("way", ["wrapped", "in place", "blocks"])
def test_compiled_denoisers(way: str) -> None:
    """The main branch runs compiled, without new graphs; the perturbed one as it is."""
    torch._dynamo.reset()
    pipe, kind = fresh("flux"), FAMILIES["flux"]
    want, _ = guided("flux", pipe)
    counter = CompileCounterWithBackend("eager")
    if way == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend=counter)
    elif way == "in place":
        pipe.transformer.compile(backend=counter)
    else:
        pipe.transformer.compile_repeated_blocks(backend=counter)
    plain = kind.run(pipe)
    graphs = counter.frame_count
    got, note = guided("flux", pipe)
    assert close(got, want)
    assert ("whole extra passes" in note) == (way != "blocks")
    assert counter.frame_count > 0
    if way != "in place":  # There the hooks are part of what is compiled.
        assert counter.frame_count == graphs
    assert torch.equal(kind.run(pipe), plain)


def test_inputs_that_a_denoiser_consumes_are_kept_for_its_branches() -> None:
    """T2I adapters' residuals are popped off a list, and added to what blocks returned."""
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(2, True)
    args: dict[str, Any] = {"encoder_hidden_states": call["prompt_embeds"], "return_dict": False}

    def run(**more: Any) -> tuple[Tensor, str]:
        residuals = [torch.ones(2, 8, 8, 6), torch.ones(2, 16, 4, 3)]
        with torch.no_grad(), regaze.attach(pipe.unet, regaze.PAG(), **more) as attached:
            out: Tensor = pipe.unet(
                call["latents"], torch.tensor(500), **args,
                down_intrablock_additional_residuals=residuals,
            )[0]  # fmt: skip
        return out, attached.report().interventions[0].note

    (got, note), (want, _) = run(), run(fork=False)
    assert close(got, want)
    assert "T2I adapter" in note


def _brighter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Changes what a denoiser is given, as an adapter of its text does."""
    return args, kwargs | {"encoder_hidden_states": 1.3 * kwargs["encoder_hidden_states"]}


def _stronger(module: nn.Module, args: Any, output: Any) -> Any:
    """Changes what a denoiser predicts."""
    return (1.2 * output[0], *output[1:])


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fork", [True, False], ids=["fork", "whole"])
@pytest.mark.parametrize("method", ["pag", "attend_and_excite"])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_hooks_of_others_on_the_denoiser_are_a_part_of_it(
    family: str, method: str, fork: bool, first: bool
) -> None:
    pipe, kind = fresh(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)

    def hook() -> None:
        denoiser.register_forward_pre_hook(_brighter, with_kwargs=True)
        denoiser.register_forward_hook(_stronger)

    if first:
        hook()
    with regaze.attach(pipe, METHODS[method].on(family), fork=fork) as run:
        if not first:
            hook()
        got = kind.run(pipe)
    with written_out(pipe, kind, run.specs[0]):
        want = kind.run(pipe)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_hooks_of_others_on_a_compiled_denoiser_are_a_part_of_it() -> None:
    torch._dynamo.reset()
    pipe, compiled = fresh("flux"), fresh("flux")
    compiled.transformer = torch.compile(compiled.transformer, backend="eager")
    for one in (pipe, compiled):
        one.transformer.register_forward_hook(_stronger)
    want, _ = guided("flux", pipe)
    got, _ = guided("flux", compiled)
    assert close(got, want)


def test_the_stock_processor_class_is_never_replaced_while_running() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    seen: set[Any] = set()

    def look(module: nn.Module, args: Any) -> None:
        seen.add(type(module.processor))

    attn = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    handle = attn.register_forward_pre_hook(look)
    with regaze.attach(pipe, regaze.PAG()):
        kind.run(pipe)
    handle.remove()
    assert seen == {AttnProcessor2_0}


@pytest.mark.parametrize("method", ["pag", "nag", "attend_and_excite"])
def test_residuals_that_a_denoiser_consumes_do_not_harm_literal_forms(method: str) -> None:
    torch.manual_seed(1)
    adapter: Any = T2IAdapter(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=8,
        adapter_type="full_adapter",
    )  # fmt: skip
    parts = sd_parts() | {"vae": vae(), "adapter": adapter.eval()}
    pipe, kind = quiet(StableDiffusionAdapterPipeline(**parts)), FAMILIES["sd"]
    call: dict[str, Any] = {"image": image(2)}
    with regaze.attach(pipe, METHODS[method].on("sd")) as run:
        got = kind.run(pipe, **call)
    with written_out(pipe, kind, run.specs[0]):
        want = kind.run(pipe, **call)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_blocks_left_out_beside_a_controlnet_are_written_out_too() -> None:
    stock, kind = fresh("sd3"), FAMILIES["sd3"]
    net: Any = SD3ControlNetModel.from_transformer(
        stock.transformer, num_layers=2, num_extra_conditioning_channels=0
    )
    for name, weight in net.named_parameters():
        if "controlnet" in name or "pos_embed_input" in name:
            nn.init.normal_(weight, std=0.2)  # They begin at zero.
    parts = {n: stock.components[n] for n in sd3_parts()} | {"vae": vae(), "controlnet": net.eval()}
    pipe = quiet(StableDiffusion3ControlNetPipeline(**parts))

    def latents() -> Tensor:
        torch.manual_seed(0)  # The autoencoder draws the control picture's latents.
        return kind.run(pipe, control_image=image(2))

    with regaze.attach(pipe, METHODS["slg"].on("sd3")) as run:
        got = latents()
    with written_out(pipe, kind, run.specs[0]):
        want = latents()
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    "spec",
    [regaze.PAG(adaptive=0.004), regaze.TPG(), METHODS["a_star"].on("sdxl")],
    ids=lambda spec: spec.name,
)
def test_a_run_that_ends_early_is_timed_by_its_own_steps(spec: Any) -> None:
    pipe, kind = fresh("sdxl"), FAMILIES["sdxl"]
    early: dict[str, Any] = {"num_inference_steps": 5, "denoising_end": 0.6}
    plain = kind.run(pipe, **early)
    with regaze.attach(pipe, spec) as run:
        got = kind.run(pipe, **early)
    with written_out(pipe, kind, run.specs[0]):
        want = kind.run(pipe, **early)
    assert close(got, want)
    assert not close(got, plain)


def written_out(pipe: Any, kind: Any, spec: Any) -> Any:
    form, manner = spec.literal(), kind.running()
    if isinstance(form, WholeForm):
        return form.within(pipe, manner)
    if isinstance(form, LatentForm):
        return moved_literally(pipe, manner, form)
    return literally(pipe, manner, [form])
