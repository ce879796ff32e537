"""A pipeline that is changed while something is attached acts on it still, or says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_faster_cache,
)
from tiny_pipelines import FAMILIES, quiet, unet

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


def test_caching_put_on_by_hand_raises() -> None:
    pipe = built("flux")
    with regaze.attach(pipe, ON):
        apply_faster_cache(pipe.transformer, CONFIGS[1])
        with pytest.raises(ValueError, match="step caching is on"):
            FAMILIES["flux"].run(pipe)


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
