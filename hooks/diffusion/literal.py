"""A denoiser on explicit attention maps: slow, literal, independent of the engine.

Maps are built, N x N, edited as a method's formula reads and multiplied with the values; a branch
that is perturbed is a whole second pass of the whole batch. The engine has to give the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.diffusion.sites import Layout, Site, choose, find_sites, read_layout


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
        image: Where the image's tokens are.
        grid: Frames, rows and columns of the image's tokens.
        split: How the batch divides: branches (and whole clips), frames, images per prompt.
    """

    site: Site
    query: Tensor
    key: Tensor
    logits: Tensor
    bias: Tensor
    weights: Tensor
    scale: float
    image: slice
    grid: tuple[int, int, int]
    split: tuple[int, int, int]

    @property
    def identity(self) -> Tensor:
        """The map of tokens that see nothing but themselves, "N N"."""
        return torch.eye(self.weights.shape[-1]).to(self.weights)


@dataclass(frozen=True)
class GuidanceForm:
    """A method that guides away from a branch with edited maps.

    Attributes:
        layers: The attention modules whose maps are edited, by path or number ("L18").
        edit: From a call's `Map` to edited weights "B H N N".
        weight: ``weight(t, guided)``: factor of (branch - perturbed) at a timestep, with and
            without classifier-free guidance.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        branch: Which branch is perturbed; "uncond" is the conditional one without guidance.
    """

    layers: Sequence[str | int]
    edit: Callable[[Map], Tensor]
    weight: Callable[[float, bool], float]
    start: float = 0.0
    stop: float = 1.0
    branch: Literal["cond", "uncond"] = "cond"


@dataclass(frozen=True)
class AttendForm:
    """A method that edits maps in the pipeline's own branches.

    Attributes:
        layers: The attention modules, by path or number.
        edit: From a call's `Map` to edited weights "B H N N".
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        frames: Frames of the clip that the batch holds, one after the other.
    """

    layers: Sequence[str | int]
    edit: Callable[[Map], Tensor]
    start: float = 0.0
    stop: float = 1.0
    frames: int = 1


@dataclass(frozen=True)
class Manner:
    """How a pipeline is run, known before it runs.

    Attributes:
        denoiser: Name of the part that is edited.
        guided: Whether classifier-free guidance is on.
        calls: Whether its branches come in a call each, the conditional one first, instead of as
            halves of one batch.
        cond_last: Whether the conditional half is the second one.
        samples: Samples of one branch: prompts times images, frames of a clip included.
        images: Images per prompt.
        frames: Frames that an attention call's batch holds of each sample.
    """

    denoiser: str
    guided: bool
    calls: bool = False
    cond_last: bool = True
    samples: int = 1
    images: int = 1
    frames: int = 1

    def cond(self, rows: Tensor) -> Tensor:
        """The conditional rows of a call that holds them."""
        return self._half(rows, self.cond_last) if self.guided and not self.calls else rows

    def uncond(self, rows: Tensor) -> Tensor:
        """The other rows; the conditional ones if there are no others."""
        return self._half(rows, not self.cond_last) if self.guided and not self.calls else rows

    @staticmethod
    def _half(rows: Tensor, second: bool) -> Tensor:
        return rows.chunk(2)[1 if second else 0]


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
    """Give some attention modules another kernel than torch's.

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
        def noted(*args: Any, **kwargs: Any) -> Tensor:
            came.add(name)
            return other(*args, **kwargs)

        def hook(module: Any, args: Any) -> None:
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
) -> Iterator[None]:
    """Edit the maps of some attention modules in the passes inside.

    Args:
        denoiser: The model.
        layers: The modules, by path or number.
        edit: From a call's `Map` to edited weights.
        layout: How the passes' tokens are laid out.
        split: See `Map.split`.
    """
    sites = {site.name: site for site in choose(find_sites(denoiser), layers)}
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
            if query.shape[-2] != key.shape[-2]:  # An IP-Adapter's, whose keys are its own.
                return stock(query, key, value, attn_mask=attn_mask, scale=scale)
            square.add(name)
            group = query.shape[1] // key.shape[1]
            q, k, v = query.float(), *(x.float().repeat_interleave(group, 1) for x in (key, value))
            factor = scale or query.shape[-1] ** -0.5
            logits = q @ k.transpose(-1, -2) * factor
            bias = bias_of(attn_mask, logits)
            weights = (logits + bias).softmax(-1).nan_to_num(0)
            image = layout.image(sites[name].order, logits.shape[-1])
            sides = (1, 1, 1, *(layout.grid(image.stop - image.start) or ()))[-3:]
            grid = sides[0], sides[1], sides[2]
            about = Map(
                sites[name], q, k, logits, bias, weights, factor, image, grid, split
            )  # fmt: skip
            return (edit(about) @ v).to(query.dtype)

        return kernel

    with kernels(denoiser, list(sites), literal):
        yield
    if others := [name for name in sites if name not in square]:
        raise NotImplementedError(
            f"{others[0]} has fewer rows than columns in its maps, which isn't written out here"
        )


@contextmanager
def literally(
    pipeline: Any, running: Manner, forms: Sequence[GuidanceForm | AttendForm]
) -> Iterator[None]:
    """Run methods literally in the pipeline that is called inside.

    Guidance leads away from what the denoiser predicts with the `AttendForm`s' edits.

    Args:
        pipeline: A diffusers pipeline with nothing attached.
        running: How it will be called.
        forms: The methods' literal forms.

    Raises:
        NotImplementedError: A form can't be run in this way of guidance.
    """
    denoiser = getattr(pipeline, running.denoiser)
    state = _State()
    if running.calls and running.guided and any(f.branch == "uncond" for f in _guiding(forms)):
        raise NotImplementedError(
            "the unconditional branch comes in a call of its own, after the conditional one, whose "
            "prediction the literal form would have to change"
        )
    stock = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            layout = read_layout(denoiser, by_name(denoiser, args, kwargs))
            share, t = state.share(pipeline, cond=not state.waiting)
            for form in forms:
                if isinstance(form, AttendForm) and form.start <= share < form.stop:
                    split = _split(running, form.frames)
                    stack.enter_context(edited(denoiser, form.layers, form.edit, layout, split))
            output = stock(*args, **kwargs)
            plain = output[0]
            if state.waiting:  # The unconditional call, which follows the conditional one.
                return _again(output, plain + state.waiting.pop())
            delta = torch.zeros_like(plain)
            for form in _guiding(forms):
                if not form.start <= share < form.stop:
                    continue
                with edited(denoiser, form.layers, form.edit, layout):
                    perturbed = stock(*args, **kwargs)[0]
                pick = running.cond if form.branch == "cond" else running.uncond
                difference = pick(plain) - pick(perturbed)
                repeats = len(plain) // len(difference)
                difference = difference.repeat(repeats, *[1] * (plain.ndim - 1))
                delta = delta + form.weight(t, running.guided) * difference
        if running.guided and running.calls:
            state.waiting.append(delta)
        return _again(output, plain + delta)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


class _State:
    """Where in its steps a pipeline is."""

    def __init__(self) -> None:
        self.waiting: list[Tensor] = []
        self.step = -1

    def share(self, pipeline: Any, cond: bool) -> tuple[float, float]:
        """Share of the sampling steps that lie behind, and this step's timestep."""
        self.step += cond
        times = pipeline.scheduler.timesteps
        # Pipelines that begin in the middle (from an image) run the last ones.
        count = getattr(pipeline, "num_timesteps", None) or len(times)
        return self.step / count, float(times[len(times) - count + self.step])


def _guiding(forms: Sequence[GuidanceForm | AttendForm]) -> list[GuidanceForm]:
    return [form for form in forms if isinstance(form, GuidanceForm)]


def _split(running: Manner, frames: int) -> tuple[int, int, int]:
    if running.frames > 1:  # A video model's own frames, inside each row of its batch.
        branches = 2 if running.guided and not running.calls else 1
        return branches * running.samples, running.frames, 1
    branches = 2 if running.guided and not running.calls else 1
    return branches, frames, running.images


def by_name(denoiser: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a denoiser's call by name."""
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _again(output: Any, first: Tensor) -> Any:
    return (first,) if isinstance(output, tuple) else type(output)(first)
