"""A denoiser's pass with gradients: from a pipeline's latents to a loss on text maps, and back.

It runs on the conditional rows alone and ends at the last layer whose map is needed; parameters are
frozen, so that gradients flow to the latents only. Maps are float32; a float16 model's loss is
multiplied by a power of two, as large as its gradients can bear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.passes import Editors
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.source import Source
from regaze.hooks.diffusion.text_maps import Enough, Reader
from regaze.hooks.locks import BriefLock

# Powers of two for a float16 model's loss, until no gradient overflows.
_HALF_SCALES = (16, 12, 8, 4, 0)


@dataclass(frozen=True)
class Descent:
    """The updates of one step.

    Attributes:
        size: Factor of the gradient.
        target: Samples with a larger loss are first moved until it is at most this.
        limit: Greatest number of those moves.
        update: True if all are moved once more then.
    """

    size: float
    target: float = math.inf
    limit: int = 0
    update: bool = True


def check_gradients(denoiser: Any) -> None:
    """Check that a denoiser's pass can have gradients.

    Raises:
        ValueError: It can't; the message says why.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "tensors made under torch.inference_mode() can have no gradients, which moving latents "
            "needs; run the pipeline without it (it runs under torch.no_grad() by itself)"
        )
    registries = (getattr(m, "_diffusers_hook", None) for m in denoiser.modules())
    if any(registry is not None and registry.hooks for registry in registries):
        raise ValueError(
            "group offloading and layerwise casting change weights that the gradient pass still "
            "needs; use enable_model_cpu_offload() instead, or none"
        )


class _Frozen:
    """Parameters without gradients, and blocks without checkpoints, while any thread wants that."""

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._held: dict[int, tuple[Any, set[object], list[Any], list[Any]]] = {}

    def enter(self, denoiser: Any, owner: object) -> None:
        with self._lock:
            if id(denoiser) not in self._held:
                parameters = [p for p in denoiser.parameters() if p.requires_grad]
                # A checkpointed block runs anew in the backward pass, which nobody would read then.
                again = [
                    m
                    for m in denoiser.modules()
                    if getattr(m, "gradient_checkpointing", False) is True
                ]
                self._held[id(denoiser)] = (denoiser, set(), parameters, again)
            _, owners, parameters, again = self._held[id(denoiser)]
            owners.add(owner)
            for parameter in parameters:
                parameter.requires_grad_(False)
            for module in again:
                module.gradient_checkpointing = False

    def leave(self, denoiser: Any, owner: object | None) -> None:
        """Restore parameters and blocks when the last owner leaves; for None at once."""
        with self._lock:
            held = self._held.get(id(denoiser))
            if held is None:
                return
            _, owners, parameters, again = held
            owners.discard(owner)
            if owner is not None and owners:
                return
            for parameter in parameters:
                parameter.requires_grad_(True)
            for module in again:
                module.gradient_checkpointing = True
            del self._held[id(denoiser)]


_FROZEN = _Frozen()


@contextmanager
def differentiable(denoiser: Any) -> Iterator[None]:
    """Let passes inside have gradients, of their inputs only."""
    owner = object()
    try:
        _FROZEN.enter(denoiser, owner)
        with torch.enable_grad():
            yield
    finally:
        _FROZEN.leave(denoiser, owner)


def thawed(denoiser: Any) -> None:
    """End what an interrupt may have left of `differentiable`."""
    _FROZEN.leave(denoiser, None)


def measure(
    source: Source,
    sites: Sequence[Site],
    loss_of: Callable[[Tensor], Tensor],
    forward: Callable[[dict[str, Any], Editors], Any],
    latents: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss of each sample at some latents, "B", and its gradient, both float32.

    Args:
        source: Place of the latents in a call.
        sites: The sites whose maps are read.
        loss_of: The loss of each sample, from their maps (see `Reader.maps`).
        forward: Runs the denoiser on a call, and edits sites.
        latents: The latents.
    """
    leaf = latents.detach().clone().requires_grad_()
    call = {**source.cond, source.name: source.sample(leaf, source.cond)}
    reader = Reader(sites, stop=True)
    with suppress(Enough):
        forward(call, {site: [reader.read] for site in sites})
    loss = loss_of(reader.maps())
    half = source.dtype == torch.float16
    return loss.detach(), _gradient(loss.sum(), leaf, half)


def _gradient(loss: Tensor, leaf: Tensor, half: bool) -> Tensor:
    if not loss.requires_grad:  # No sample has anything to improve.
        return torch.zeros_like(leaf)
    powers = _HALF_SCALES if half else (0,)
    for power in powers:
        last = power == powers[-1]
        (grad,) = torch.autograd.grad(loss * 2.0**power, leaf, retain_graph=not last)
        if grad.isfinite().all():
            return grad / 2.0**power
    raise ValueError("the gradient of the latents isn't finite in this model; use float32")


def descended(
    latents: Tensor, plan: Descent, measure: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Latents after a step's updates. Samples stop being refined one by one.

    As in Attend-and-Excite's code, the loss that ends a sample's refinement is that of the latents
    before their last move.
    """
    loss, gradient = measure(latents)
    active = loss > plan.target
    for _ in range(plan.limit):
        if not active.any():
            break
        moved = latents - plan.size * gradient
        latents = torch.where(active.view(-1, *[1] * (latents.ndim - 1)), moved, latents)
        before = loss
        loss, gradient = measure(latents)
        active = active & (before > plan.target)
    return latents - plan.size * gradient if plan.update else latents
