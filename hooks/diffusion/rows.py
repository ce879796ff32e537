"""Which rows of a denoiser's batch are conditional, which step it is, and how to cut rows out.

Pipelines run classifier-free guidance in one of two ways: one call with the batch
``[unconditional, conditional]``, or a call per branch, the conditional one first. Which it is, is
read off the pipeline while it runs: from its property ``do_classifier_free_guidance``, and from
the variables of its ``__call__``, where some pipelines keep it and all keep their prompts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

# Arguments that run over tokens, whatever their first size happens to be.
_PER_TOKEN = ("img_ids", "txt_ids", "image_rotary_emb")
# Arguments that may hold all frames of a sample one after the other (AnimateDiff).
_PER_FRAME = (
    "encoder_hidden_states",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
)


@dataclass(frozen=True)
class Rows:
    """What the rows of one denoiser call are.

    Attributes:
        batch: Number of rows.
        cond: The conditional ones, or None if the call has none.
        uncond: The unconditional ones, or None if the call has none.
        split: Whether the other branch comes in a call of its own, and the conditional one first.
    """

    batch: int
    cond: slice | None
    uncond: slice | None
    split: bool = False

    @property
    def branches(self) -> int:
        """How many branches the call's batch holds, one after the other."""
        rows = self.cond or self.uncond or slice(0, self.batch)
        return self.batch // int(rows.stop - rows.start)


def find_rows(pipeline: Any, call: Mapping[str, Any], given: slice | None) -> Rows:
    """What the rows of a call are.

    Args:
        pipeline: The pipeline that is running, or None for a bare denoiser.
        call: The call's arguments by name.
        given: The user's word on which rows are conditional.

    Raises:
        ValueError: It can't be told.
    """
    sample = sample_of(call)
    batch = int(sample.shape[0])
    every = slice(0, batch)
    if given is not None:
        start, stop, _ = given.indices(batch)
        if start >= stop or batch % (stop - start):
            raise ValueError(
                f"cond_rows={given} are {max(0, stop - start)} of {batch} rows; the conditional "
                "rows must be an equal share of the batch"
            )
        rest = slice(0, start) if start else slice(stop, batch)
        halves = 2 * (stop - start) == batch and start in (0, batch // 2)
        return Rows(batch, slice(start, stop), rest if halves else None)
    variables = variables_of(pipeline)
    if not variables:
        return Rows(batch, every, None)
    text, negative = call.get("encoder_hidden_states"), variables.get("negative_prompt_embeds")
    says = [getattr(pipeline, "do_classifier_free_guidance", None)]
    says += [variables.get(name) for name in ("do_classifier_free_guidance", "do_true_cfg")]
    # Without a negative prompt there is no second branch: a distilled model, for one.
    guided = next((word for word in says if word is not None), None if negative is None else True)
    if not guided:
        return Rows(batch, every, None)
    if isinstance(text, Tensor) and isinstance(negative, Tensor) and len(text) == len(negative):
        if text is negative:
            return Rows(batch, None, every, split=True)
        if text is variables.get("prompt_embeds"):
            return Rows(batch, every, None, split=True)
    half = batch // 2
    if batch % 2 or not torch.equal(sample[:half], sample[half:]):
        raise ValueError(
            f"can't tell which of {batch} rows are conditional: {type(pipeline).__name__} doesn't "
            "run guidance as [unconditional, conditional] halves of the same latents, nor one "
            "prompt at a time; attach to the plain pipeline of this model, or pass cond_rows"
        )
    return Rows(batch, slice(half, batch), slice(0, half))


def variables_of(pipeline: Any) -> Mapping[str, Any]:
    """The variables of the pipeline's ``__call__``, if it is running."""
    frame: FrameType | None = None if pipeline is None else sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipeline:
            return frame.f_locals
        frame = frame.f_back
    return {}


def call_by_name(denoiser: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A denoiser call's arguments by name."""
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
    bound.arguments.pop("self")
    rest = bound.arguments.pop("kwargs", {})
    return {**bound.arguments, **rest}


def sample_of(call: Mapping[str, Any]) -> Tensor:
    """The latents of a denoiser call."""
    found: Tensor = call["sample"] if "sample" in call else call["hidden_states"]
    return found


# -- cutting rows out --------------------------------------------------------------------------


def take_rows(value: Any, rows: slice, batch: int, *, multiples: bool = False) -> Any:
    """The rows of every tensor in nested containers that runs over the batch; others as they are.

    Args:
        value: A tensor, container or anything else.
        rows: Rows wanted.
        batch: Rows in all.
        multiples: Whether a tensor of n times as many rows holds n (frames) for each.
    """
    if rows == slice(0, batch):
        return value
    if isinstance(value, Tensor):
        each, rest = divmod(value.shape[0] if value.ndim else 0, batch)
        if rest or each < 1 or (each > 1 and not multiples):
            return value
        return value[rows.start * each : rows.stop * each]
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(v, rows, batch, multiples=multiples) for v in value)
    if isinstance(value, dict):
        return {k: take_rows(v, rows, batch, multiples=multiples) for k, v in value.items()}
    return value


def call_of_rows(call: Mapping[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    """A denoiser call's arguments for some of its rows."""
    return {
        name: value
        if name in _PER_TOKEN
        else take_rows(value, rows, batch, multiples=name in _PER_FRAME)
        for name, value in call.items()
    }


def copy_containers(value: Any) -> Any:
    """Copies of nested lists and dicts, which some denoisers empty while they run."""
    if isinstance(value, list):
        return [copy_containers(v) for v in value]
    if isinstance(value, dict):
        return {k: copy_containers(v) for k, v in value.items()}
    return value


# -- time --------------------------------------------------------------------------------------


def timestep_of(call: Mapping[str, Any], pipeline: Any) -> float:
    """The timestep of a call as the scheduler counts it; pipelines may hand on a share of it."""
    t = variables_of(pipeline).get("t", call.get("timestep"))
    return float(t.reshape(-1).amax()) if isinstance(t, Tensor) else float(t)


def progress_of(pipeline: Any) -> float:
    """Share of the sampling steps that lie behind, in [0, 1).

    Raises:
        ValueError: A bare denoiser has no steps, or this pipeline doesn't count them as others do.
    """
    variables = variables_of(pipeline)
    index, steps = variables.get("i"), variables.get("timesteps")
    if not isinstance(index, int) or steps is None:
        who = "a bare denoiser" if pipeline is None else type(pipeline).__name__
        raise ValueError(
            "start and stop are shares of the sampling steps, which only a running pipeline knows, "
            f"and {who} doesn't tell; attach to a stock pipeline, or leave start and stop out"
        )
    return index / len(steps)
