"""Lists of attention heads for methods to act on: pairs (layer, head)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_indices
from regaze.hooks.host import Host
from regaze.interventions.base import Intervention

Pairs = tuple[tuple[int, int], ...]
"""Pairs (layer, head), both counted from 0."""
Heads = Pairs | Literal["all"]


def check_heads(method: str, heads: Any) -> None:
    """Check that a field is a list of different pairs, or "all", or isn't given.

    Raises:
        ValueError: It is something else.
    """
    if heads is None or heads == "all":
        return
    example = 'pairs (layer, head) such as [[16,29],[26,9]], or "all" of the layers'
    if not isinstance(heads, tuple):
        raise ValueError(f"{method}: heads must be {example}, got {heads!r}")
    for pair in heads:
        whole = isinstance(pair, tuple) and len(pair) == 2
        if not whole or not all(type(i) is int and i >= 0 for i in pair):
            raise ValueError(f"{method}: heads must be {example}, but it holds {pair!r}")
    if len(set(heads)) < len(heads):
        twice = next(pair for pair in heads if heads.count(pair) > 1)
        raise ValueError(f"{method}: heads holds {list(twice)} twice")


def check_listed(method: str, heads: Heads | None, layers: Collection[int] | None) -> None:
    """Check that heads, or layers whose heads are all meant, are given.

    Raises:
        ValueError: Neither is.
    """
    if heads is None and layers is None:
        raise ValueError(
            f"{method} acts on listed heads, and none are given: set heads to pairs (layer, head) "
            "that were found for this very model (by regaze discover heads-lvlm), or layers to "
            "take all their heads"
        )


def choose_heads(
    method: str, host: Host, heads: Heads | None, layers: Collection[int] | None
) -> tuple[Heads, tuple[int, ...]]:
    """The heads and layers to act on, checked against a model.

    Args:
        method: The method's name.
        host: The model.
        heads: Pairs, "all" heads of ``layers``, or None, which says the same if there are layers.
        layers: Layers to edit; by default those of the heads, or all layers if all heads are
            meant.

    Raises:
        ValueError: Neither is given, or a layer or head doesn't exist.
    """
    if layers is not None:
        check_indices(method, "layers", layers, host.n_layers, f"this {host.model_type}")
        layers = tuple(host.site(layer).layer for layer in sorted(layers))
    check_listed(method, heads, layers)
    if heads is None or heads == "all":
        every = tuple(site.layer for site in host.sites)
        return "all", every if layers is None else tuple(layers)
    for layer, head in heads:
        if layer >= host.n_layers or head >= host.n_heads:
            raise ValueError(
                f"{method}: heads holds [{layer},{head}], but this {host.model_type} has layers 0 "
                f"to {host.n_layers - 1} of {host.n_heads} heads each: head lists belong to the "
                "model they were found for"
            )
        host.site(layer)
    named = tuple(sorted({layer for layer, _ in heads}))
    return heads, named if layers is None else tuple(layers)


def by_layer(heads: Heads, layers: Collection[int], n_heads: int) -> dict[int, list[int]]:
    """The heads of each layer that has any; of a resolved spec."""
    if heads == "all":
        return {layer: list(range(n_heads)) for layer in layers}
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        if layer in layers:
            found.setdefault(layer, []).append(head)
    return found


def head_masks(found: Mapping[int, Collection[int]], n_heads: int) -> dict[int, Tensor]:
    """By layer, a bool mask "H 1 1" of the heads to act on."""
    masks = {}
    for layer, heads in found.items():
        masks[layer] = torch.zeros(n_heads, 1, 1, dtype=torch.bool, device="cpu")
        masks[layer][list(heads)] = True
    return masks


def choice_controls(spec: Any) -> dict[str, Intervention]:
    """Name the controls of a method with ``heads="top"``: as many random or bottom heads."""
    if spec.heads != "top":
        return {}
    return {
        "random heads": replace(spec, heads="random"),
        "bottom heads": replace(spec, heads="bottom"),
    }


def random_keys(count: int, device: torch.device) -> Tensor:
    """A number for each head to choose it by, with a fixed seed: the same on every device."""
    return torch.rand(
        count, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(device)


def other_heads(found: Mapping[int, Collection[int]], n_heads: int) -> dict[int, list[int]]:
    """Draw as many heads of each layer, with a fixed seed: a control.

    Listed ones are avoided as far as a layer has others.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for layer, heads in sorted(found.items()):
        order: list[int] = torch.randperm(n_heads, generator=generator, device="cpu").tolist()
        order = [h for h in order if h not in heads] + [h for h in order if h in heads]
        drawn[layer] = sorted(order[: len(heads)])
    return drawn
