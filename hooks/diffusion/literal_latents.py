"""Latents moved the literal way: whole maps, whole passes of the whole batch, and all the way back.

Both branches run with gradients to the denoiser's last layer; text columns are cut out of whole
maps. What the engine gives has to equal this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper, wraps
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.descent import Objective
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.gradients import Descent
from regaze.hooks.diffusion.literal import Manner, by_name, repeatable
from regaze.hooks.diffusion.literal_maps import bias_of, kernels
from regaze.hooks.diffusion.sites import TEXT, Layout, Site, choose, find_sites, read_layout
from regaze.hooks.diffusion.text import read_text
from regaze.hooks.diffusion.works import Run


@dataclass(frozen=True)
class LatentForm:
    """A method that moves latents down the gradient of a loss on text maps.

    Attributes:
        layers: The attention modules whose maps the loss needs, by path or number.
        begin: Makes what a run minimises, its loss written place by place.
    """

    layers: Sequence[str | int]
    begin: Callable[[Run], Objective]


@contextmanager
def recorded(denoiser: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The whole attention maps "B H Q K" of some modules, in the pass that runs inside."""
    found: dict[str, Tensor] = {}

    def literal(name: str) -> Callable[..., Tensor]:
        def kernel(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            scale: float | None = None,
            **_: Any,
        ) -> Tensor:
            group = query.shape[1] // key.shape[1]
            k, v = (x.float().repeat_interleave(group, 1) for x in (key, value))
            logits = query.float() @ k.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
            found[name] = (logits + bias_of(attn_mask, logits)).softmax(-1)
            return (found[name] @ v).to(query.dtype)

        return kernel

    with kernels(denoiser, names, literal):
        yield found


@contextmanager
def moved_literally(pipeline: Any, running: Manner, form: LatentForm) -> Iterator[None]:
    """Move a pipeline's latents before its steps, in the pipeline that is called inside.

    Args:
        pipeline: A diffusers pipeline with nothing attached.
        running: Manner in which it will be called.
        form: The method's literal form.
    """
    move = _Move(pipeline, running, form)
    denoiser, scheduler = move.denoiser, pipeline.scheduler
    step, scale = scheduler.step, getattr(scheduler, "scale_model_input", None)

    @wraps(step)
    def stepped(prediction: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(prediction, t, move.taken(sample), *args, **kwargs)

    denoiser.forward, scheduler.step = move.forward, _InPlace(scheduler, stepped)
    if scale is not None:

        @wraps(scale)
        def scaled(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            move.unscaled = sample
            return scale(sample, *args, **kwargs)

        scheduler.scale_model_input = _InPlace(scheduler, scaled)
    try:
        yield
    finally:
        del denoiser.forward, scheduler.step
        vars(scheduler).pop("scale_model_input", None)


class _InPlace:
    """A function in the place of a scheduler's method, which a copy of the scheduler has back.

    Pipelines that make sound beside a picture step it with a copy.
    """

    def __init__(self, scheduler: Any, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self._scheduler, self._function = scheduler, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        kind = type(self._scheduler)
        return getattr(kind, self._function.__name__).__get__(memo[id(self._scheduler)], kind)


class _Move:
    """The denoiser's calls during one run of a pipeline."""

    def __init__(self, pipeline: Any, running: Manner, form: LatentForm) -> None:
        self.pipeline, self.running, self.form = pipeline, running, form
        self.denoiser = getattr(pipeline, running.denoiser)
        self.stock = repeatable(self.denoiser.forward)
        self.scale = getattr(pipeline.scheduler, "scale_model_input", None)
        self.sites = choose(find_sites(self.denoiser), form.layers, TEXT)
        self.objective: Objective | None = None
        self.step = -1
        self.unscaled: Tensor | None = None
        self.new: Tensor | None = None
        self.second = False

    def taken(self, sample: Tensor) -> Tensor:
        """The sample that the scheduler gets."""
        new, self.new = self.new, None
        if new is not None and new.shape != sample.shape:
            raise NotImplementedError(
                "the denoiser is called with more than the latents, which isn't written out here"
            )
        return sample if new is None else new.to(sample.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's call, with moved latents."""
        call = by_name(self.denoiser, args, kwargs)
        key = family_of(self.denoiser).sample
        if not isinstance(call[key], Tensor):
            raise NotImplementedError("a list of latents isn't written out here")
        if self.second:  # The unconditional call, which follows the conditional one.
            self.second = False
            return self.stock(**(call if self.new is None else self._with(call, key, self.new)))
        self.second = self.running.guided and self.running.calls
        self.step += 1
        sample, unscaled = call[key], self.unscaled
        # What a pipeline scales are its latents; without a scale they come as they are.
        z = sample if unscaled is None or len(unscaled) != len(sample) else unscaled
        z = self.running.cond(z).detach().float()
        plan = self._objective(call, len(z)).plan(self.step)
        # A second-order scheduler's correction starts from latents that it kept.
        again = getattr(self.pipeline.scheduler, "state_in_first_order", True) is False
        if plan is None or again:
            return self.stock(*args, **kwargs)
        self.new = self._descend(z, plan, lambda at: self._measure(call, key, at))
        with recorded(self.denoiser, [site.name for site in self.sites]) as found:
            output = self.stock(**self._with(call, key, self.new))
        objective = self._objective(call, len(z))
        if objective.watches:
            objective.watch(self._maps(found, read_layout(self.denoiser, call)).detach())
        return output

    def _objective(self, call: dict[str, Any], samples: int) -> Objective:
        if self.objective is None:
            words = read_layout(self.denoiser, call).n_words
            steps = len(self.pipeline.scheduler.timesteps)
            steps = getattr(self.pipeline, "num_timesteps", None) or steps
            text = read_text(self.pipeline, samples, words)
            self.objective = self.form.begin(Run(samples, steps, text))
        return self.objective

    @staticmethod
    def _descend(
        z: Tensor, plan: Descent, measure: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Move each sample until its loss is low enough, then all of them once more."""
        loss, gradient = measure(z)
        still = (loss > plan.target).tolist()
        for _ in range(plan.limit):
            if not any(still):
                break
            moved = z - plan.size * gradient
            z = torch.stack([b if s else a for a, b, s in zip(z, moved, still, strict=True)])
            # The code looks at the loss before a move to decide on the next one.
            still = [s and bool(one > plan.target) for s, one in zip(still, loss, strict=True)]
            loss, gradient = measure(z)
        return z - plan.size * gradient if plan.update else z

    def _measure(self, call: dict[str, Any], key: str, z: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's loss, and its gradient, by a whole pass and back."""
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            with recorded(self.denoiser, [site.name for site in self.sites]) as found:
                self.stock(**self._with(call, key, leaf))
            maps = self._maps(found, read_layout(self.denoiser, call))
            loss = self._objective(call, len(z)).loss(maps)
            if not loss.requires_grad:
                return loss, torch.zeros_like(leaf)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def _with(self, call: dict[str, Any], key: str, z: Tensor) -> dict[str, Any]:
        """The call at other latents, in all its rows; what follows them in its channels stays."""
        sample: Tensor = call[key]
        if self.scale is not None and self.unscaled is not None:
            z = self.scale(z, self.pipeline.scheduler.timesteps[self.step])
        z = z.to(sample.dtype).repeat(len(sample) // len(z), *[1] * (z.ndim - 1))
        return {**call, key: torch.cat([z, sample[:, z.shape[1] :]], 1)}

    def _maps(self, found: dict[str, Tensor], layout: Layout) -> Tensor:
        """The conditional rows' mean maps over layers and heads, "B F R C T"."""
        if layout.segments:
            raise NotImplementedError("attention part by part isn't written out here")
        every: list[Tensor] = []
        for site in self.sites:
            every += self.running.cond(_text_columns(site, found[site.name], layout)).unbind(1)
        mean = torch.stack(every).mean(0)
        grid = layout.grid(self.sites[0], mean.shape[1])
        if grid is None:
            raise NotImplementedError(f"the grid of {mean.shape[1]} image tokens isn't known")
        return mean.reshape(self.running.samples, -1, *grid[-2:], mean.shape[-1])


def _text_columns(site: Site, whole: Tensor, layout: Layout) -> Tensor:
    if site.kind == "cross":
        return whole
    tokens = whole.shape[-1]
    return whole[:, :, layout.image(site.order, tokens), layout.text(site.order, tokens)]
