"""Latents moved the literal way: whole maps in every layer that counts, whole passes and back.

Nothing here is shared with the package. Losses are written out place by place; the whole batch runs
with gradients, both branches of it, to the denoiser's last layer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from literal_maps import bias_of, grid_of
from tiny_pipelines import TEXT, Family
from torch import Tensor

Maps = list[list[Tensor]]
"""For each sample the map of each concept, rows by columns (frames below one another)."""


@contextmanager
def recorded(denoiser: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The whole attention maps "B H Q K" of some modules, in the pass that runs inside."""
    found: dict[str, Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        stock = F.scaled_dot_product_attention

        def kernel(name: str) -> Callable[..., Tensor]:
            def literal(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                        scale: float | None = None, **_: Any) -> Tensor:  # fmt: skip
                logits = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
                found[name] = (logits + bias_of(attn_mask)).softmax(-1)
                return found[name] @ value

            return literal

        handles = []
        for name in names:
            module = denoiser.get_submodule(name)
            enter = kernel(name)
            handles += [
                module.register_forward_pre_hook(
                    lambda m, a, k=enter: patch.setattr(F, "scaled_dot_product_attention", k)
                ),
                module.register_forward_hook(
                    lambda m, a, o: patch.setattr(F, "scaled_dot_product_attention", stock)
                ),
            ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def concept_maps(family: str, found: dict[str, Tensor], samples: int, tokens: Sequence[int],
                 drop_first: bool) -> Maps:  # fmt: skip
    """Attend-and-Excite's maps, sample by sample: x 100, softmax, 3 x 3 blur."""
    every = []
    for name, a in found.items():
        text = a
        if family in ("sd3", "sd35"):
            text = a[:, :, :-TEXT, -TEXT:]
        elif family in ("flux", "qwen"):
            text = a[:, :, TEXT:, :TEXT]
        assert text.shape[-1] == TEXT, name
        every += list(text.unbind(1))
    mean = torch.stack(every).mean(0)
    # Of both branches' rows those of the conditional one, which come last.
    each = mean.shape[0] // samples
    frames, rows, columns = grid_of(mean.shape[1])
    if family == "animatediff":
        frames, each = 3, each // 3
    first = int(drop_first)
    maps: Maps = []
    for sample in range(samples):
        place = (each - 1) * samples + sample
        own = mean.reshape(-1, frames, rows, columns, TEXT)[place]
        soft = (100 * own[..., first : TEXT - 1]).softmax(-1)
        maps.append([_blurred(soft[..., token - first]) for token in tokens])
    return maps


def _blurred(x: Tensor) -> Tensor:
    line = torch.tensor([math.exp(-((i / 1.0) ** 2)) for i in (-1, 0, 1)])
    line = line / line.sum()
    out = torch.zeros_like(x)
    padded = F.pad(x[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    for i in range(3):
        for j in range(3):
            shifted = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            out = out + line[i] * line[j] * shifted
    return out


def excite(maps: list[Tensor], masks: list[Tensor] | None) -> Tensor:
    """Attend-and-Excite's loss of a sample."""
    return torch.stack([torch.relu(1 - one.max()) for one in maps]).max()


def segregate(maps: list[Tensor], masks: list[Tensor] | None) -> Tensor:
    """A-STAR's loss of a sample."""
    loss = torch.zeros(())
    for m in range(len(maps)):
        for n in range(m):
            loss = loss + torch.minimum(maps[m], maps[n]).sum() / (maps[m] + maps[n]).sum()
    for one, mask in zip(maps, masks or (), strict=False):
        unit = (one - one.min()) / (one.max() - one.min())
        loss = loss + 1 - torch.minimum(unit, mask).sum() / (unit + mask).sum()
    return loss


@contextmanager
def moved_literally(
    pipe: Any, name: str, family: Family, guided: bool, layers: Sequence[str],
    loss: Callable[[list[Tensor], list[Tensor] | None], Tensor], tokens: Sequence[int],
    sizes: Sequence[float], drop_first: bool,
) -> Iterator[None]:  # fmt: skip
    """Move a pipeline's latents before every step, by one gradient step of the given sizes."""
    denoiser = getattr(pipe, family.denoiser)
    stock, step = denoiser.forward, pipe.scheduler.step
    state: dict[str, Any] = {"masks": None, "step": 0, "new": None, "second": False}

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs).arguments
        call.pop("self")
        call |= call.pop("kwargs", {})
        key = "sample" if "sample" in call else "hidden_states"
        sample = call[key]
        if state["second"]:  # The unconditional call, which follows the conditional one.
            state["second"] = False
            return stock(**call | {key: state["new"]})
        both = guided and family.halves
        samples = len(sample) // (2 if both else 1)
        channels = min(sample.shape[1], 4) if name == "inpaint" else sample.shape[1]
        with torch.enable_grad():
            leaf = sample[:samples, :channels].detach().clone().requires_grad_()
            whole = torch.cat([leaf] * (2 if both else 1))
            whole = torch.cat([whole, sample[:, channels:]], 1)
            with recorded(denoiser, layers) as found:
                stock(**call | {key: whole})
            maps = concept_maps(name, found, samples, tokens, drop_first)
            masks = state["masks"] or [None] * samples
            total = sum(loss(*pair) for pair in zip(maps, masks, strict=True))
            (gradient,) = torch.autograd.grad(total, leaf)  # type: ignore[arg-type]
        state["new"] = leaf.detach() - sizes[state["step"]] * gradient
        state["step"] += 1
        state["second"] = guided and not family.halves
        moved = torch.cat([state["new"]] * (2 if both else 1))
        with recorded(denoiser, layers) as found:
            output = stock(**call | {key: torch.cat([moved, sample[:, channels:]], 1)})
        after = concept_maps(name, found, samples, tokens, drop_first)
        state["masks"] = [[_bright(one.detach()) for one in maps] for maps in after]
        return output

    def stepped(prediction: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(prediction, t, state["new"], *args, **kwargs)

    denoiser.forward, pipe.scheduler.step = forward, stepped
    stepped.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del denoiser.forward, pipe.scheduler.step


def _bright(one: Tensor) -> Tensor:
    low, high = one.min(), one.max()
    return ((one - low) / (high - low) >= 0.5).float()
