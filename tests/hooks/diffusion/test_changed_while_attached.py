"""A pipeline that is changed while something is attached acts on it still, or says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForText2Image,
    ContextParallelConfig,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    ParallelConfig,
    PyramidAttentionBroadcastConfig,
    StableDiffusionImg2ImgPipeline,
    TaylorSeerCacheConfig,
    UNet2DConditionModel,
    apply_faster_cache,
    apply_first_block_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from tiny_pipelines import FAMILIES, noise, quiet, unet, vae

import regaze

PAG = regaze.PAG(scale=1.5, layers=("mid",))
ON = regaze.PAG(scale=1.5, layers=(1,))


def built(family: str) -> Any:
    return quiet(FAMILIES[family].build())


CONFIGS = (
    FirstBlockCacheConfig(threshold=0.1),
    FasterCacheConfig(current_timestep_callback=lambda: 500),
    PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_caching_switched_on_while_attached_raises(config: Any) -> None:
    pipe, kind = built("flux"), FAMILIES["flux"]
    with regaze.attach(pipe, ON):
        want = kind.run(pipe)
        with pytest.raises(ValueError, match=r"Config can't be switched on while.*detach first"):
            pipe.transformer.enable_cache(config)
        assert not pipe.transformer.is_cache_enabled
        assert torch.equal(kind.run(pipe), want)
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=r"step caching is on in this Flux.*disable_cache"):
        regaze.attach(pipe, ON)


BY_HAND = (
    ("flux", apply_first_block_cache, CONFIGS[0]),
    ("flux", apply_faster_cache, CONFIGS[1]),
    ("flux", apply_pyramid_attention_broadcast, CONFIGS[2]),
    ("sd", apply_pyramid_attention_broadcast, CONFIGS[2]),
    ("flux", apply_taylorseer_cache, TaylorSeerCacheConfig()),
)


@pytest.mark.parametrize(
    ("family", "apply", "config"), BY_HAND, ids=[f"{f}-{a.__name__}" for f, a, _ in BY_HAND]
)
def test_caching_put_on_by_hand_raises(family: str, apply: Any, config: Any) -> None:
    pipe = built(family)
    with regaze.attach(pipe, ON):
        apply(getattr(pipe, FAMILIES[family].denoiser), config)
        with pytest.raises(ValueError, match="step caching is on.*hooks that were put on by hand"):
            FAMILIES[family].run(pipe)
    with pytest.raises(ValueError, match="step caching is on"):
        regaze.attach(pipe, ON)


def test_attention_that_is_spread_over_processes_raises() -> None:
    pipe = built("flux")
    config = ContextParallelConfig(ring_degree=2)
    with regaze.attach(pipe, ON):
        pipe.transformer._parallel_config = ParallelConfig(context_parallel_config=config)
        with pytest.raises(
            ValueError, match=r"in parallel over processes.*without parallel_config"
        ):
            FAMILIES["flux"].run(pipe)
    with pytest.raises(ValueError, match="in parallel over processes"):
        regaze.attach(pipe, ON)


def test_a_replaced_denoiser_raises_until_detached() -> None:
    pipe, kind = built("sd"), FAMILIES["sd"]
    own, before = type(pipe), pipe.unet
    plain = kind.run(pipe)
    attached = regaze.attach(pipe, PAG)
    edited = kind.run(pipe)
    pipe.unet = unet()
    with pytest.raises(RuntimeError, match="this pipeline's unet was replaced while pag"):
        kind.run(pipe)
    pipe.unet = before
    assert torch.equal(kind.run(pipe), edited)
    pipe.unet = unet()
    attached.detach()
    assert type(pipe) is own
    assert torch.equal(kind.run(pipe), plain)  # The other one has the same weights.


def test_a_replaced_denoiser_that_nobody_keeps_raises_too() -> None:
    pipe = built("sd")
    with regaze.attach(pipe, PAG):
        pipe.register_modules(unet=unet())
        with pytest.raises(RuntimeError, match="this pipeline's unet was replaced while pag"):
            FAMILIES["sd"].run(pipe)


def test_classes_are_what_others_take_them_for() -> None:
    """Tables of classes hold the edited parts' own: siblings are made, processors reset."""
    pipe, kind = built("sd"), FAMILIES["sd"]
    pipe.register_modules(vae=vae())
    with regaze.attach(pipe, PAG):
        want = kind.run(pipe)
    pipe.enable_attention_slicing(1)
    with regaze.attach(pipe, PAG):
        other = quiet(StableDiffusionImg2ImgPipeline.from_pipe(pipe))
        same = quiet(AutoPipelineForText2Image.from_pipe(pipe))
        assert other.unet is same.unet is pipe.unet
        assert type(pipe.unet) in {UNet2DConditionModel}
        assert type(pipe.unet) not in {AutoencoderKL}
        pipe.unet.set_default_attn_processor()
        torch.testing.assert_close(kind.run(same), want, rtol=1e-5, atol=1e-5)


def test_what_runs_outside_of_the_denoisers_call_raises() -> None:
    pipe = built("sd")
    call = (noise(1, 4, 8, 6), 500, noise(1, 5, 16))
    with torch.no_grad():
        plain = pipe.unet.forward(*call)[0]
        with regaze.attach(pipe.unet, PAG) as run:
            with pytest.raises(RuntimeError, match="outside of a call of its denoiser"):
                pipe.unet.forward(*call)
            edited = pipe.unet(*call)[0]
        assert run.report().fired and not torch.equal(edited, plain)
        assert torch.equal(pipe.unet.forward(*call)[0], plain)


def halved(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
    """Guidance ends after the first step."""
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": tensors["prompt_embeds"][-2:]} if step == 0 else {}


def another(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1)}


def written_to(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
    tensors["prompt_embeds"].mul_(1.1)
    return {}


def test_a_negative_prompt_that_a_callback_changes_raises() -> None:
    pipe, kind = built("sd"), FAMILIES["sd"]

    def flipped(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
        return {name: tensor.flip(1) for name, tensor in tensors.items()}

    called: dict[str, Any] = {
        "callback_on_step_end": flipped,
        "callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"],
    }
    with (
        regaze.attach(pipe, regaze.NAG()),
        pytest.raises(ValueError, match="negative_prompt_embeds were changed while it runs"),
    ):
        kind.run(pipe, **called)
    own = regaze.NAG(embeddings={"text": noise(1, 5, 16, seed=9)})
    with regaze.attach(pipe, own) as run:
        kind.run(pipe, **called)
    assert run.report().fired


@pytest.mark.parametrize("change", [another, written_to])
def test_words_of_a_prompt_that_a_callback_changes_raise(change: Any) -> None:
    pipe, kind = built("sd"), FAMILIES["sd"]
    called: dict[str, Any] = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    words, texts = regaze.Reweight({2: 1.5}), PAG
    with regaze.attach(pipe, texts):
        kind.run(pipe, callback_on_step_end=change, **called)
    with (
        regaze.attach(pipe, words),
        pytest.raises(ValueError, match="embeddings were changed while the pipeline runs"),
    ):
        kind.run(pipe, callback_on_step_end=change, **called)
    # What stays the prompt may come in another tensor, and the next run has a prompt of its own.
    with regaze.attach(pipe, words) as run:
        edited = kind.run(pipe, callback_on_step_end=halved, **called)
        kind.run(pipe, prompt_embeds=noise(2, 5, 16, seed=7))
    assert run.report().fired
    assert not torch.equal(edited, kind.run(pipe, callback_on_step_end=halved, **called))
