"""Evidence on a denoiser, taken by running it: whose rows are whose, and edits of explicit maps.

Nothing here is shared with the package. Where the picture's rows are is seen from what changes if
the picture alone changes, in a model whose attention is made to mix nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.hooks.diffusion.literal_maps import bias_of
from regaze.interventions.diffusion.seg import blur_matrix

Kernel = Callable[..., Tensor]
Edit = Callable[["Map"], Tensor]
"""Makes the edited map, "B H N K"."""

STOCK = F.scaled_dot_product_attention


class Map:
    """One call's map, and what an edit of it may want to know.

    Attributes:
        query: "B H N D".
        key: "B H K D".
        logits: "B H N K".
        bias: The mask as numbers to add to them.
        scale: Their factor.
        image: The picture's rows.
        first: The column that is the first row's own.
    """

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor, scale: float, image: Tensor):
        self.query, self.key, self.bias, self.scale, self.image = query, key, bias, scale, image
        self.logits = query @ key.transpose(-1, -2) * scale
        self.first = key.shape[2] - query.shape[2]

    @property
    def plain(self) -> Tensor:
        """The map as it is."""
        return self.of(self.logits)

    def of(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """The map of other logits; padding that looks at nothing gets nothing."""
        return ((logits + self.bias) / temperature).softmax(-1).nan_to_num(0)

    def eye(self) -> Tensor:
        """Every row looks at itself."""
        rows, columns = self.logits.shape[-2:]
        return torch.eye(columns)[self.first : self.first + rows].expand_as(self.logits)


def alone(one: Map) -> Tensor:
    return one.eye()


def image_alone(one: Map) -> Tensor:
    """The picture's rows see themselves and what isn't the picture."""
    rows = one.image.nonzero().flatten()
    logits = one.logits.clone()
    for row in rows.tolist():
        for other in rows.tolist():
            if other != row:
                logits[:, :, row, one.first + other] = -torch.inf
    return one.of(logits)


def blurred(sigma: float, grid: tuple[int, ...]) -> Edit:
    def edit(one: Map) -> Tensor:
        rows = one.image.nonzero().flatten()
        if not len(rows):
            return one.plain
        frames = len(rows) // (grid[-2] * grid[-1])
        blur = torch.full((len(rows), len(rows)), 1 / len(rows))
        if sigma < 9999:
            lines = (blur_matrix(side, sigma) for side in grid[-2:])
            blur = torch.kron(torch.eye(frames), torch.kron(*lines))
        logits = one.logits.clone()
        logits[:, :, rows] = blur @ logits[:, :, rows]
        return one.of(logits)

    return edit


def soft(target: str, u: float, tau: float = 1.0) -> Edit:
    def edit(one: Map) -> Tensor:
        if target == "identity":
            goal = one.eye()
        elif target == "uniform":
            goal = one.of(torch.zeros_like(one.logits))
        elif target == "temperature":
            goal = one.of(one.logits, tau)
        else:
            # A row that no row looks at is padding.
            seen = (one.bias + torch.zeros_like(one.logits) > -1e4).any(2)[:, 0]
            weight = seen[:, one.first :].float()[:, None, :, None]
            mean = (one.query * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
            goal = one.of(
                mean @ one.key.transpose(-1, -2) * one.scale + torch.zeros_like(one.logits)
            )
        return (1 - u) * one.plain + u * goal

    return edit


# -- running -----------------------------------------------------------------------------------


@contextmanager
def kernels(denoiser: nn.Module, kernel: Callable[..., Tensor]) -> Iterator[None]:
    """Run ``kernel(path, query, key, value, **settings)`` for torch's; the path may be ""."""
    inside: list[str] = []
    handles = []
    for path, module in denoiser.named_modules():
        if hasattr(module, "processor"):
            handles += [
                module.register_forward_pre_hook(lambda m, a, p=path: inside.append(p)),
                module.register_forward_hook(lambda m, a, o: inside.pop() and None),
            ]

    def run(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        named = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | named
        return kernel(inside[-1] if inside else "", query, key, value, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", run)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def changed_rows(
    denoiser: nn.Module, call: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Queries and keys of each module's calls, "N" and "K", that two calls' difference reaches.

    Attention gives zeros meanwhile, so no token hears of another.
    """
    seen: list[dict[str, list[tuple[Tensor, Tensor]]]] = []
    for arguments in (call, other):
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def mute(
            path: str, query: Tensor, key: Tensor, value: Tensor,
            found: dict[str, list[tuple[Tensor, Tensor]]] = found, **named: Any,
        ) -> Tensor:  # fmt: skip
            found.setdefault(path, []).append((query.clone(), key.clone()))
            return torch.zeros(*query.shape[:-1], value.shape[-1])

        with kernels(denoiser, mute), torch.no_grad():
            denoiser(**arguments)
        seen.append(found)
    return {
        path: [
            (_differ(query, other_query), _differ(key, other_key))
            for (query, key), (other_query, other_key) in zip(ours, seen[1][path], strict=True)
        ]
        for path, ours in seen[0].items()
    }


def _differ(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().amax((0, 1, 3)) > 1e-6


def literally(
    denoiser: nn.Module, call: Mapping[str, Any], images: Mapping[str, list[Tensor]], edit: Edit
) -> Tensor:
    """The denoiser's output with the maps of some modules edited.

    Args:
        denoiser: The denoiser.
        call: The denoiser's arguments.
        images: For each module to edit, the picture's rows of its calls, call by call;
            again from the first one if there are more calls.
        edit: Makes the edited maps.
    """
    turns = {path: itertools.cycle(rows) for path, rows in images.items()}

    def kernel(path: str, query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        if path not in turns:
            return STOCK(query, key, value, **named)
        scale = named.get("scale") or query.shape[-1] ** -0.5
        bias = bias_of(named.get("attn_mask"), query)
        each = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(each, 1) for x in (key, value))
        return edit(Map(query, key, bias, scale, next(turns[path]))) @ value

    with kernels(denoiser, kernel), torch.no_grad():
        output = denoiser(**call)
    return prediction(output)


def maps_of(denoiser: nn.Module, call: Mapping[str, Any], path: str) -> list[Map]:
    """The maps of one module's calls."""
    found: list[Map] = []

    def kernel(at: str, query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        if at == path:
            scale = named.get("scale") or query.shape[-1] ** -0.5
            each = query.shape[1] // key.shape[1]
            bias, keys = bias_of(named.get("attn_mask"), query), key.repeat_interleave(each, 1)
            found.append(Map(query, keys, bias, scale, torch.ones(query.shape[2])))
        return STOCK(query, key, value, **named)

    with kernels(denoiser, kernel), torch.no_grad():
        denoiser(**call)
    return found


def prediction(output: Any) -> Tensor:
    """A denoiser's prediction; lists as one tensor."""
    first = output[0]
    return torch.stack(first) if isinstance(first, list) else first
