"""A denoiser on explicit attention maps: slow, literal, independent of the engine.

Maps are built, N x N, edited as a method's formula reads and multiplied with the values; a branch
that is perturbed is a whole second pass of the whole batch. The engine has to give the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regaze.hooks.diffusion.containers import copy_containers
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.literal_maps import Map, edited
from regaze.hooks.diffusion.predictions import each, prediction_of, tiled, with_prediction
from regaze.hooks.diffusion.sites import choose, find_sites, read_layout


@dataclass(frozen=True)
class GuidanceForm:
    """A method that guides away from a branch with edited maps.

    Attributes:
        layers: The attention modules whose maps are edited, by path or number ("L18").
        edit: From a call's `Map` to edited weights "B H N N"; None leaves out the blocks that these
            modules are in.
        weight: ``weight(t, guided)``: factor of (branch - perturbed) at a timestep, with and
            without classifier-free guidance.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        branch: Branch that is perturbed; "uncond" is the conditional one without guidance.
        strict: True if the step at ``start`` doesn't act.
        around: Further context that the second pass runs in: ``around(denoiser, t)``.
    """

    layers: Sequence[str | int]
    edit: Callable[[Map], Tensor] | None
    weight: Callable[[float, bool], float]
    start: float = 0.0
    stop: float = 1.0
    branch: Literal["cond", "uncond"] = "cond"
    strict: bool = False
    around: Callable[[Any, float], AbstractContextManager[None]] = lambda denoiser, t: nullcontext()


@dataclass(frozen=True)
class AttendForm:
    """A method that edits maps in the pipeline's own branches.

    Attributes:
        layers: The attention modules, by path or number.
        edit: From a call's `Map` to edited weights "B H N N".
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        frames: Frames of the clip that the batch holds, one after the other.
        factor: From a call's `Map` to what the module's output is multiplied by, "B"; None: by 1.
        cond_only: True if only conditional rows are edited.
        values: From a call's `Map` to the values that weights are multiplied with; None: its own.
    """

    layers: Sequence[str | int]
    edit: Callable[[Map], Tensor]
    start: float = 0.0
    stop: float = 1.0
    frames: int = 1
    factor: Callable[[Map], Tensor] | None = None
    cond_only: bool = False
    values: Callable[[Map], Tensor] | None = None


@dataclass(frozen=True)
class WholeForm:
    """A method that is written out as a whole: how a pipeline runs with it.

    Attributes:
        within: ``within(pipeline, running)``: a context in which the pipeline, called as `Manner`
            says, runs the method literally.
    """

    within: Callable[[Any, Manner], AbstractContextManager[None]]


@dataclass(frozen=True)
class Manner:
    """The way in which a pipeline is run, known before it runs.

    Attributes:
        denoiser: Name of the part that is edited.
        guided: True if classifier-free guidance is on.
        calls: True if its branches come in a call each, the conditional one first, instead of as
            halves of one batch.
        cond_last: True if the conditional half is the second one.
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

    @property
    def both(self) -> bool:
        """True if a call holds both branches."""
        return self.guided and not self.calls

    def cond(self, rows: Any) -> Any:
        """The conditional rows of a call that holds them: a tensor, or a list of one for each."""
        return self._half(rows, self.cond_last) if self.both else rows

    def uncond(self, rows: Any) -> Any:
        """The other rows; the conditional ones if there are no others."""
        return self._half(rows, not self.cond_last) if self.both else rows

    @staticmethod
    def _half(rows: Any, second: bool) -> Any:
        half = len(rows) // 2
        return rows[half:] if second else rows[:half]


@contextmanager
def literally(
    pipeline: Any, running: Manner, forms: Sequence[GuidanceForm | AttendForm]
) -> Iterator[None]:
    """Run methods literally in the pipeline that is called inside.

    Guidance leads away from what the denoiser predicts with the `AttendForm`s' edits.

    Args:
        pipeline: A diffusers pipeline with nothing attached.
        running: Manner in which it will be called.
        forms: The methods' literal forms.

    Raises:
        NotImplementedError: A form can't be run in this way of guidance.
    """
    denoiser = getattr(pipeline, running.denoiser)
    state = Steps()
    if running.calls and running.guided and any(f.branch == "uncond" for f in _guiding(forms)):
        raise NotImplementedError(
            "the unconditional branch comes in a call of its own, after the conditional one, whose "
            "prediction the literal form would have to change"
        )
    stock = repeatable(denoiser.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            given = by_name(denoiser, args, kwargs)
            layout = read_layout(denoiser, given)
            share, t = state.share(pipeline, given.get("timestep"), cond=not state.waiting)
            for form in forms:
                if isinstance(form, AttendForm) and form.start <= share < form.stop:
                    if form.cond_only and state.waiting:
                        continue
                    split, edit = _split(running, form.frames), form.edit
                    if form.cond_only and running.both:
                        edit = partial(_half_edited, form.edit, running.cond_last)
                    branches = (2, int(running.cond_last)) if running.both else (1, 0)
                    stack.enter_context(
                        edited(
                            denoiser, form.layers, edit, layout, split, branches, form.factor,
                            form.values, state.at,
                        )
                    )  # fmt: skip
            output = stock(*args, **kwargs)
            plain = prediction_of(output)
            if state.waiting:  # The unconditional call, which follows the conditional one.
                return with_prediction(output, each(torch.add, plain, state.waiting.pop()))
            delta = each(torch.zeros_like, plain)
            for form in _guiding(forms):
                if not form.start <= share < form.stop or form.strict and share == form.start:
                    continue
                with ExitStack() as second:
                    if form.edit is None:
                        second.enter_context(_left_out(denoiser, form.layers))
                    else:
                        second.enter_context(edited(denoiser, form.layers, form.edit, layout))
                        second.enter_context(form.around(denoiser, t))
                    perturbed = prediction_of(stock(*args, **kwargs))
                pick = running.cond if form.branch == "cond" else running.uncond
                difference = tiled(each(torch.sub, pick(plain), pick(perturbed)), plain)
                weight = form.weight(t, running.guided)
                delta = each(partial(torch.add, alpha=weight), delta, difference)
        if running.guided and running.calls:
            state.waiting.append(delta)
        return with_prediction(output, each(torch.add, plain, delta))

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


def _half_edited(edit: Callable[[Map], Tensor], second: bool, m: Map) -> Tensor:
    """A map of which the conditional half is edited."""
    halves, own = [*edit(m).chunk(2)], m.weights.chunk(2)
    return torch.cat([own[0], halves[1]] if second else [halves[0], own[1]])


class Steps:
    """A pipeline's place in its steps, counted from its denoiser's calls."""

    def __init__(self) -> None:
        self.waiting: list[Tensor] = []
        self.step = -1
        self.at = (0, 1)

    def share(self, pipeline: Any, given: object, cond: bool) -> tuple[float, float]:
        """Share of the sampling steps that lie behind, and this step's timestep.

        Args:
            pipeline: The pipeline.
            given: The timestep that the denoiser is given; some models take it in other units.
            cond: True in the first call of a step.
        """
        self.step += cond
        times = pipeline.scheduler.timesteps.tolist()
        count = getattr(pipeline, "num_timesteps", None) or len(times)
        self.at = (self.step, count)
        # A pipeline that begins in the middle (from an image) runs the last timesteps.
        t = float(times[len(times) - count + self.step])
        if isinstance(given, Tensor) and given.ndim == 0 and float(given) in times:
            t = float(given)  # One that ends early (denoising_end) runs the first.
        return self.step / count, t


def _guiding(forms: Sequence[GuidanceForm | AttendForm]) -> list[GuidanceForm]:
    return [form for form in forms if isinstance(form, GuidanceForm)]


@contextmanager
def _left_out(denoiser: Any, layers: Sequence[str | int]) -> Iterator[None]:
    """Put modules that hand their streams on in the place of blocks."""
    returns = family_of(denoiser).returns
    with ExitStack() as stack:
        for path in {site.block for site in choose(find_sites(denoiser), layers)}:
            names, _, index = path.rpartition(".")
            holder, block = denoiser.get_submodule(names), denoiser.get_submodule(path)
            stack.callback(holder.__setitem__, int(index), block)
            holder[int(index)] = _Through(block, returns)
        yield


class _Through(nn.Module):
    """Returns what it is given."""

    def __init__(self, block: nn.Module, returns: Sequence[str]) -> None:
        super().__init__()
        self._names, self._returns = list(inspect.signature(block.forward).parameters), returns
        # SD3 asks for it before it adds a ControlNet's.
        self.context_pre_only = getattr(block, "context_pre_only", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        streams = tuple(given[name] for name in self._returns)
        return streams if len(streams) > 1 else streams[0]


def _split(running: Manner, frames: int) -> tuple[int, int, int]:
    if running.frames > 1:  # A video model's own frames, inside each row of its batch.
        branches = 2 if running.guided and not running.calls else 1
        return branches * running.samples, running.frames, 1
    branches = 2 if running.guided and not running.calls else 1
    return branches, frames, running.images


def repeatable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A denoiser's forward that leaves what it is given as it is: some empty lists meanwhile."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*copy_containers([*args]), **copy_containers(kwargs))

    return run


def by_name(denoiser: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a denoiser's call by name."""
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}
