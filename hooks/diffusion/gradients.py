"""A denoiser's pass with gradients: from a pipeline's latents to a loss on text maps, and back.

It runs on the conditional rows alone and ends at the last layer whose map is needed; parameters are
frozen, so that gradients flow to the latents only. Maps are float32; a float16 model's loss is
multiplied by a power of two, as large as its gradients can bear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.rows import (
    Rows,
    call_of_rows,
    copy_containers,
    sample_of,
    variables_of,
)
from regaze.hooks.diffusion.sites import Site, read_layout
from regaze.hooks.diffusion.text_maps import Reader
from regaze.hooks.diffusion.works import Descent, Objective

# Powers of two for a float16 model's loss, until no gradient overflows.
_HALF_SCALES = (16, 12, 8, 4, 0)

Edited = Callable[[Mapping[str, Any]], AbstractContextManager[None]]
"""Puts what edits a denoiser's own branches around a pass of some call."""


@dataclass(frozen=True)
class Source:
    """Where a pipeline's latents go into its denoiser's call."""

    denoiser: Any
    scale: Callable[[Tensor], Tensor]
    cond: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, module: Any, pipeline: Any, call: Mapping[str, Any], rows: Rows) -> Source:
        """Find it.

        Raises:
            ValueError: The call's sample isn't made of the pipeline's latents alone, or the
                denoiser or scheduler is one that this can't work with.
        """
        denoiser = getattr(module, "_orig_mod", module)
        scheduler, variables = pipeline.scheduler, variables_of(pipeline)
        _check(denoiser, scheduler, len(variables["timesteps"]))
        cond = call_of_rows(call, rows.cond or slice(0, rows.batch), rows.batch)
        name = "sample" if "sample" in call else "hidden_states"
        latents, sample = variables.get("latents"), cond[name]
        scales: list[Callable[[Tensor], Tensor]] = [lambda z: z]
        if hasattr(scheduler, "scale_model_input") and "t" in variables:
            scales.insert(0, partial(_scaled, scheduler, variables["t"]))
        for scale in scales:
            if isinstance(latents, Tensor) and latents.shape[0] == sample.shape[0]:
                scaled = scale(latents).to(sample.dtype)
                if torch.equal(sample[:, : scaled.shape[1]], scaled):
                    return cls(denoiser, scale, cond, name)
        raise ValueError(
            f"{type(pipeline).__name__} calls its denoiser with something else than its latents, "
            "which therefore can't be updated; use the plain text-to-image pipeline of this model"
        )

    def sample(self, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
        """A call's sample with other latents, in all its branches."""
        old = sample_of(call)
        scaled = self.scale(latents).to(old.dtype)
        scaled = scaled.repeat(len(old) // len(scaled), *[1] * (old.ndim - 1))
        # Inpainting's mask and masked image follow the latents.
        rest = old[:, scaled.shape[1] :]
        return torch.cat([scaled, rest], 1) if rest.shape[1] else scaled


def _scaled(scheduler: Any, t: Any, latents: Tensor) -> Tensor:
    scaled: Tensor = scheduler.scale_model_input(latents, t)
    return scaled


def _check(denoiser: Any, scheduler: Any, steps: int) -> None:
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
    kept = getattr(scheduler, "disable_corrector", None)
    corrects = kept is not None and not set(range(steps - 1)) <= set(kept)
    if corrects or type(scheduler).__name__.startswith("SASolver"):
        raise ValueError(
            f"{type(scheduler).__name__} corrects each step's latents from those before, which "
            "would discard the update; use another scheduler, or for UniPC "
            "disable_corrector=list(range(steps))"
        )


@contextmanager
def differentiable(denoiser: Any) -> Iterator[None]:
    """Let passes inside have gradients, of their inputs only."""
    frozen = [p for p in denoiser.parameters() if p.requires_grad]
    # A checkpointed block runs anew in the backward pass, which nobody would read then.
    again = [m for m in denoiser.modules() if getattr(m, "gradient_checkpointing", False) is True]
    with ExitStack() as stack:
        for parameter in frozen:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        for module in again:
            stack.callback(setattr, module, "gradient_checkpointing", True)
            module.gradient_checkpointing = False
        if any(m._compiled_call_impl is not None for m in denoiser.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.enable_grad())
        yield


def measure(
    source: Source, sites: tuple[Site, ...], objective: Objective, edited: Edited, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each sample at some latents, "B", and its gradient, both float32."""
    leaf = latents.detach().clone().requires_grad_()
    call = {**source.cond, source.name: source.sample(leaf, source.cond)}
    layout, samples = read_layout(source.denoiser, call), len(leaf)
    reader = Reader(sites, layout, (samples, slice(0, samples)), stop=True)
    with reader.reading(source.denoiser), edited(call):
        source.denoiser.forward(**copy_containers(call))
    loss = objective.loss(reader.maps())
    half = source.cond[source.name].dtype == torch.float16
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
