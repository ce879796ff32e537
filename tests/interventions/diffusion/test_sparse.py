"""Sparse attention of video models: exactness, promises, reports and bad inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import quiet, state
from tiny_videos import VIDEOS

import regaze
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import RadialAttention

MODELS = ("wan", "hunyuan", "mochi", "cogvideox")
_PIPES: dict[str, Any] = {}


def video(name: str) -> Any:
    return _PIPES.setdefault(name, quiet(VIDEOS[name].build()))


def radial(**more: Any) -> RadialAttention:
    """With blocks so small that there are some on a tiny clip."""
    return RadialAttention(**{"decay": 0.5, "block": 4, "start": 0.0, "dense_layers": 1, **more})


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("family", MODELS)
def test_it_equals_masked_dense_attention_and_leaves_nothing(family: str, guided: bool) -> None:
    pipe, kind = video(family), VIDEOS[family]
    plain = kind.run(pipe, guided=guided)
    before = state(pipe.transformer)
    with regaze.attach(pipe, radial()) as run:
        got = kind.run(pipe, guided=guided)
    spec: Any = run.specs[0]
    with literally(pipe, kind.running(guided), [spec.literal()]):
        want = kind.run(pipe, guided=guided)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-3 * scale
    (report,) = run.report().interventions
    assert report.fired and [layer.layer for layer in report.layers][0] == 1
    assert all(0 < layer.effect < 1 for layer in report.layers)
    assert "density 0." in report.note and "times dense attention's time" in report.note
    assert state(pipe.transformer) == before
    assert torch.equal(kind.run(pipe, guided=guided), plain)
