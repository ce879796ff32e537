"""Latents moved down a gradient in many pipelines equal whole passes with explicit maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from literal_denoisers import STOCK, kernels
from test_census_pipelines import GUIDED, built
from tiny_calls import cells
from tiny_guided import PIPES
from torch import Tensor

import regaze
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.literal_maps import bias_of
from regaze.hooks.diffusion.rows import call_by_name
from regaze.hooks.diffusion.sites import TEXT, find_sites, read_layout
from regaze.interventions.diffusion.concept_maps import literal_blur

TOKENS = (1, 3)


def layers_of(pipe: Any) -> list[Any]:
    """Two layers that see the text."""
    found = [s for s in find_sites(pipe.transformer) if s.kind in TEXT and "audio" not in s.name]
    return [found[1], found[-1]]


@contextmanager
def moved_literally(pipe: Any, name: str, guided: bool, sizes: list[float]) -> Iterator[None]:
    """Move one sample's latents before every step by a gradient step of the given sizes."""
    kind, denoiser = PIPES[name], pipe.transformer
    stock, step = denoiser.forward, pipe.scheduler.step
    sites = {site.name: site for site in layers_of(pipe)}
    state: dict[str, Any] = {"new": None, "step": 0, "second": False}

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = call_by_name(denoiser, args, kwargs)
        key = family_of(denoiser).sample

        def given(latents: Tensor, sample: Tensor) -> Any:
            whole = torch.cat([latents] * (len(sample) // len(latents)))
            # What stands beside the latents stays.
            whole = torch.cat([whole, sample[:, whole.shape[1] :]], 1)
            return list(whole) if listed else whole

        listed = isinstance(call[key], list)
        sample = torch.stack(call[key]) if listed else call[key]
        pipe.scheduler.step = stepped  # Not before: pipelines copy schedulers.
        if state["second"]:  # The unconditional call, which follows the conditional one.
            state["second"] = False
            return again(call | {key: given(state["new"], sample)})
        both = guided and kind.how == "batch"
        cond = 1 if both and not kind.cond_first else 0
        maps: list[Tensor] = []
        turns: dict[str, int] = {}

        def kernel(path: str, query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
            if path not in sites:
                return STOCK(query, key, value, **named)
            scale = named.get("scale") or query.shape[-1] ** -0.5
            each = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(each, 1) for x in (key, value))
            logits = query @ key.transpose(-1, -2) * scale
            # Padding that looks at nothing gets nothing, and no gradient that isn't a number.
            bias = bias_of(named.get("attn_mask"), query)
            dead = (bias == -torch.inf).all(-1, keepdim=True)
            a = (logits + torch.where(dead, 0.0, bias)).softmax(-1) * ~dead
            order, total = sites[path].order, key.shape[2]
            turns[path] = turns.get(path, -1) + 1
            # Mochi calls its kernel for one sample after the other.
            row = cond if len(a) > 1 else 0
            if both and len(a) == 1 and turns[path] != cond:
                return a @ value
            if sites[path].kind == "joint":
                first = total - query.shape[2] if layout.segments else 0
                image, text = layout.image(order, total), layout.text(order, total)
                if image.start - first >= 0 and query.shape[2] > image.start - first:
                    rows = slice(image.start - first, image.stop - first)
                    maps.append(a[row, :, rows, text])
            else:
                maps.append(a[row])
            return a @ value

        with torch.enable_grad():
            channels = sample.shape[1] - kind.beside
            leaf = sample[:1, :channels].detach().clone().requires_grad_()
            layout = read_layout(denoiser, call)
            del denoiser.forward
            try:
                with kernels(denoiser, kernel), torch.enable_grad():
                    denoiser(**call | {key: given(leaf, sample)})
            finally:
                denoiser.forward = forward
            mean = torch.cat(maps).mean(0)
            frames, rows, columns = cells(mean.shape[0])
            soft = (100 * mean.reshape(frames, rows, columns, -1)[..., :-1]).softmax(-1)
            peaks = [literal_blur(soft[..., token], 0.5).max() for token in TOKENS]
            loss = torch.stack([torch.relu(1 - peak) for peak in peaks]).max()
            (gradient,) = torch.autograd.grad(loss, leaf)
        state["new"] = leaf.detach() - sizes[state["step"]] * gradient
        state["step"] += 1
        state["second"] = guided and kind.how == "calls"
        return again(call | {key: given(state["new"], sample)})

    def again(call: dict[str, Any]) -> Any:
        with torch.no_grad():
            return stock(**call)

    def stepped(prediction: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        new = state["new"]
        return step(prediction, t, new[:, :, 0] if new.ndim > sample.ndim else new, *args, **kwargs)

    denoiser.forward = forward
    stepped.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del denoiser.forward, pipe.scheduler.step


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("name", PIPES)
def test_moved_latents_equal_those_of_explicit_maps(name: str, guided: bool) -> None:
    pipe, kind = built(name), PIPES[name]
    plain = kind.run(pipe, guided)
    spec = regaze.AttendAndExcite(
        tokens=TOKENS, layers=tuple(s.name for s in layers_of(pipe)), cut="last", stop=1.0,
        refine="", step_size=2.0,
    )  # fmt: skip
    with regaze.attach(pipe, spec) as run:
        got = kind.run(pipe, guided)
    sizes = [2.0 * math.sqrt(1 - 0.5 * i) for i in range(2)]
    with moved_literally(pipe, name, guided, sizes):
        want = kind.run(pipe, guided)
    assert (got - plain).abs().max() > 1e-4
    scale = max(1.0, want.abs().max().item())
    assert (got - want).abs().max() < 2e-4 * scale
    assert run.report().fired
