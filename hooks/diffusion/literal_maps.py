"""Attention of some modules by explicit maps, "B H N N", edited as a formula reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.diffusion.sites import Layout, Site, choose, find_sites


@dataclass(frozen=True)
class Map:
    """The whole attention maps of one kernel call, "B H N N", and what they are made of.

    Attributes:
        site: The attention module.
        query: "B H N D".
        key: "B H N D".
        logits: "B H N N", scaled, without the mask.
        bias: The mask as numbers that are added to logits, broadcastable to them.
        weights: "B H N N": softmax(logits + bias).
        scale: Factor of ``query key'``.
        image: Place of the image's tokens.
        split: Division of the batch: branches (and whole clips), frames, images per prompt.
        layout: Layout of the pass's tokens.
        branches: Number of branches of guidance in the batch, and which is the conditional one.
        value: "B H N D".
        step: The sampling step, and of how many.
    """

    site: Site
    query: Tensor
    key: Tensor
    logits: Tensor
    bias: Tensor
    weights: Tensor
    scale: float
    image: slice
    split: tuple[int, int, int]
    layout: Layout = Layout(None, 0, False)
    branches: tuple[int, int] = (1, 0)
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    step: tuple[int, int] = (0, 1)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the image's tokens; 1 each if they aren't known.

        Raises:
            ValueError: There are others than the picture has here.
        """
        known = self.layout.grid(self.site, self.image.stop - self.image.start) or ()
        frames, rows, columns = (1, 1, 1, *known)[-3:]
        return frames, rows, columns

    @property
    def identity(self) -> Tensor:
        """The map of tokens that see nothing but themselves, "N N"."""
        return torch.eye(self.weights.shape[-1], dtype=torch.float32, device="cpu").to(self.weights)


def bias_of(mask: Tensor | None, like: Tensor) -> Tensor:
    """A kernel's mask as numbers to add to logits."""
    if mask is None:
        return like.new_zeros(1)
    if mask.dtype == torch.bool:
        return like.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask.to(like.dtype)


@contextmanager
def kernels(
    denoiser: Any, names: Sequence[str], kernel: Callable[[str], Callable[..., Tensor]]
) -> Iterator[None]:
    """Give some attention modules another kernel than torch's, but for an IP-Adapter's attention.

    That is a further call on the queries of one before.

    Args:
        denoiser: The model.
        names: Paths of the modules.
        kernel: Makes the kernel of a module, from its path.

    Raises:
        RuntimeError: A module never called it.
    """
    stock = F.scaled_dot_product_attention
    came: set[str] = set()

    def enter(name: str, other: Callable[..., Tensor]) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            asked: list[Tensor] = []

            def noted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                if any(query is one for one in asked):
                    return stock(query, *args, **kwargs)
                came.add(name)
                asked.append(query)
                return other(query, *args, **kwargs)

            F.scaled_dot_product_attention = noted

        return hook

    def leave(*_: Any) -> None:
        F.scaled_dot_product_attention = stock

    with ExitStack() as stack:
        stack.callback(leave)
        for name in names:
            module = denoiser.get_submodule(name)
            handle = module.register_forward_pre_hook(enter(name, kernel(name)))
            stack.callback(handle.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield
    if missed := [name for name in names if name not in came]:
        raise RuntimeError(
            f"{missed[0]} made no call of scaled_dot_product_attention, so it has no map to edit: "
            "its processor computes attention by another kernel"
        )


@contextmanager
def edited(
    denoiser: Any,
    layers: Sequence[str | int],
    edit: Callable[[Map], Tensor],
    layout: Layout,
    split: tuple[int, int, int] = (1, 1, 1),
    branches: tuple[int, int] = (1, 0),
    factor: Callable[[Map], Tensor] | None = None,
    values: Callable[[Map], Tensor] | None = None,
    step: tuple[int, int] = (0, 1),
) -> Iterator[None]:
    """Edit the maps of some attention modules in the passes inside.

    Args:
        denoiser: The model.
        layers: The modules, by path or number.
        edit: From a call's `Map` to edited weights.
        layout: Layout of the passes' tokens.
        split: See `Map.split`.
        branches: See `Map.branches`.
        factor: From a call's `Map` to what the module's output is multiplied by, "B".
        values: From a call's `Map` to the values that weights are multiplied with, if others.
        step: See `Map.step`.
    """
    if layout.segments:
        raise NotImplementedError("attention part by part isn't written out here")
    factors: dict[str, Tensor] = {}
    found = find_sites(denoiser)
    sites = {s.name: s for s in found if s.name in layers}
    if len(sites) < len(layers):
        sites = {site.name: site for site in choose(found, layers)}
    stock = F.scaled_dot_product_attention
    square: set[str] = set()

    def literal(name: str) -> Callable[..., Tensor]:
        def kernel(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            columns = layout.n_text if sites[name].kind == "cross" else query.shape[-2]
            if key.shape[-2] != columns:  # An IP-Adapter's, whose keys are its own.
                return stock(query, key, value, attn_mask=attn_mask, scale=scale)
            square.add(name)
            group = query.shape[1] // key.shape[1]
            q, k, v = query.float(), *(x.float().repeat_interleave(group, 1) for x in (key, value))
            times = scale or query.shape[-1] ** -0.5
            logits = q @ k.transpose(-1, -2) * times
            bias = bias_of(attn_mask, logits)
            weights = (logits + bias).softmax(-1).nan_to_num(0)
            image = layout.image(sites[name].order, logits.shape[-1])
            about = Map(
                sites[name], q, k, logits, bias, weights, times, image, split, layout,
                branches, v, step,
            )  # fmt: skip
            if factor is not None:
                factors[name] = factor(about)
            weighed, chosen = v if values is None else values(about), edit(about)
            unseen = (bias == -torch.inf).all(-1, keepdim=True)  # Rows of padding, which see none.
            chosen = chosen.masked_fill(unseen & chosen.isnan(), 0)
            return (chosen @ weighed).to(query.dtype)

        return kernel

    def scaled(name: str) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            first, *rest = output if isinstance(output, tuple) else (output,)
            first = first * factors.pop(name)[:, None, None]
            return (first, *rest) if isinstance(output, tuple) else first

        return hook

    with kernels(denoiser, list(sites), literal), ExitStack() as stack:
        for name in sites if factor is not None else ():
            module = denoiser.get_submodule(name)
            stack.callback(module.register_forward_hook(scaled(name)).remove)
        yield
    if others := [name for name in sites if name not in square]:
        raise NotImplementedError(
            f"{others[0]} has fewer rows than columns in its maps, which isn't written out here"
        )
