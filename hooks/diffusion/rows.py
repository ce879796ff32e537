"""Which rows of a denoiser's batch are conditional, and how to cut rows out of what it is given.

A pipeline runs classifier-free guidance as two halves of one batch, or as a call per branch; which
of both, its class says (`regaze.hooks.diffusion.families`), and whether guidance is on, it says
itself while it runs. What is read is checked against what the call holds; anything else raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.conventions import Convention, convention_of
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.running import Running

_SAY = "say which rows are: attach(..., cond_rows=slice(start, stop))"


@dataclass(frozen=True)
class Rows:
    """What the rows of one denoiser call are.

    Attributes:
        batch: Number of rows.
        cond: The conditional ones, or None if the call has none.
        uncond: The unconditional ones, or None if the call has none.
        split: Whether the other branch comes in a call of its own.
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

    @property
    def samples(self) -> int:
        """How many samples the call's main branch holds."""
        return self.batch // self.branches


def find_rows(
    family: Family,
    call: Mapping[str, Any],
    running: Running | None,
    attached: Any,
    given: slice | None,
) -> Rows:
    """What the rows of a call are.

    Args:
        family: The denoiser's.
        call: The call's arguments by name.
        running: The pipeline that calls, or None.
        attached: The pipeline that interventions were attached to; None for a bare denoiser.
        given: The user's word on which rows are conditional.

    Raises:
        ValueError: It can't be told.
    """
    batch = len(call[family.sample])
    if given is not None:
        return _as_told(given, batch)
    if running is None:
        return _outside(family, call, attached, batch)
    pipeline, variables = running.pipeline, running.variables
    convention = convention_of(pipeline)
    every = slice(0, batch)
    aside = [name for name in convention.aside if call.get(name)]
    if aside:
        raise ValueError(
            f"{type(pipeline).__name__} calls its denoiser with {', '.join(aside)} for guidance of "
            "another kind, whose call is neither branch; switch that off"
        )
    if not convention.is_guided(pipeline, variables):
        return Rows(batch, every, None)
    if convention.branches == "calls":
        cond = _is_cond(convention, family, call, running)
        return Rows(batch, every if cond else None, None if cond else every, split=True)
    latents = variables.get("latents")
    whole = not isinstance(latents, Tensor) or batch == 2 * len(latents)
    if not whole or not _halved(_own_channels(call[family.sample], latents)):
        raise ValueError(
            f"can't tell which of {batch} rows are conditional: {type(pipeline).__name__} doesn't "
            "call its denoiser with both branches as halves of the same latents here; switch off "
            f"what adds branches, or {_SAY}"
        )
    return _half(batch, convention.cond)


def _own_channels(sample: Any, latents: Any) -> Any:
    """A sample without the channels that others have beside the latents (a given frame's)."""
    if not isinstance(sample, Tensor) or not isinstance(latents, Tensor):
        return sample
    if sample.ndim != latents.ndim:
        return sample
    wider = [d for d in range(1, sample.ndim) if sample.shape[d] > latents.shape[d]]
    return sample.narrow(wider[0], 0, latents.shape[wider[0]]) if len(wider) == 1 else sample


def _is_cond(
    convention: Convention, family: Family, call: Mapping[str, Any], running: Running
) -> bool:
    """Whether a call that holds one branch is the conditional one.

    Raises:
        ValueError: It can't be told.
    """
    name, variables = type(running.pipeline).__name__, running.variables
    if convention.named:
        said = variables.get(convention.named)
        if said in ("pred_cond", "pred_uncond"):
            return bool(said == "pred_cond")
        raise ValueError(f"{name} calls its denoiser for {said}, which is neither branch; {_SAY}")
    texts = [variables.get(one) for one in convention.texts]
    which = _which(call.get(family.text), texts)
    if which is None:
        raise ValueError(
            f"can't tell whether this call of {name} is the conditional one: its text is neither "
            f"{convention.texts[0]} nor {convention.texts[1]}, or both; {_SAY}"
        )
    return which == 0


def _as_told(given: slice, batch: int) -> Rows:
    start, stop, _ = given.indices(batch)
    if start >= stop or batch % (stop - start):
        raise ValueError(
            f"cond_rows={given} are {max(0, stop - start)} of {batch} rows; the conditional "
            "rows must be an equal share of the batch"
        )
    rest = slice(0, start) if start else slice(stop, batch)
    halves = 2 * (stop - start) == batch and start in (0, batch // 2)
    return Rows(batch, slice(start, stop), rest if halves else None)


def _outside(family: Family, call: Mapping[str, Any], attached: Any, batch: int) -> Rows:
    """The rows of a call that no pipeline makes."""
    branches = _halved(call[family.sample]) and _differs(family, call, batch)
    if attached is None:
        if not branches:
            return Rows(batch, slice(0, batch), None)
        raise ValueError(
            "this denoiser was called with two equal halves of latents and different text, as for "
            f"classifier-free guidance, and which half is conditional isn't known; {_SAY}, or "
            "cond_rows=slice(None) if all of them are"
        )
    if branches:
        convention = convention_of(attached)
        if convention.branches == "batch":
            return _half(batch, convention.cond)
    raise ValueError(
        f"the denoiser of this {type(attached).__name__} was called by something else than a "
        f"pipeline of its own, so which of {batch} rows are conditional isn't known; {_SAY}, with "
        "slice(None) if all of them are"
    )


def _half(batch: int, cond: str) -> Rows:
    first, last = slice(0, batch // 2), slice(batch // 2, batch)
    return Rows(batch, first, last) if cond == "first" else Rows(batch, last, first)


def _halved(sample: Any) -> bool:
    """Whether a batch is twice the same."""
    half, rest = divmod(len(sample), 2)
    if rest or not half:
        return False
    return all(map(torch.equal, sample[:half], sample[half:]))


def _differs(family: Family, call: Mapping[str, Any], batch: int) -> bool:
    """Whether what a call is given beside the latents differs between both halves."""
    half = batch // 2
    one, other = (
        call_of_rows(call, rows, batch, family) for rows in (slice(0, half), slice(half, batch))
    )
    return any(
        not _equal(one[name], other[name])
        for name in call
        if name not in (family.sample, "timestep")
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return True  # No tensors: not cut by rows.


def _which(text: Any, texts: Sequence[Any]) -> int | None:
    """Which of two texts a call was given; None if neither or either."""
    found = [n for n, one in enumerate(texts) if one is not None and one is text]
    if not found and isinstance(text, Tensor):
        found = [n for n, one in enumerate(texts) if one is not None and _equal(text, one)]
    return found[0] if len(found) == 1 else None


def call_by_name(denoiser: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A denoiser call's arguments by name."""
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
    bound.arguments.pop("self")
    rest = bound.arguments.pop("kwargs", {})
    return {**bound.arguments, **rest}


# -- cutting rows out --------------------------------------------------------------------------


def take_rows(
    value: Any,
    rows: slice,
    batch: int,
    *,
    multiples: bool = False,
    made: Callable[[Tensor], Tensor] = lambda x: x,
) -> Any:
    """The rows of every tensor in nested containers that runs over the batch; others as they are.

    Args:
        value: A tensor, container or anything else.
        rows: Rows wanted.
        batch: Rows in all.
        multiples: Whether a tensor of n times as many rows holds n (frames) for each.
        made: Applied to every tensor, cut or not.
    """
    if isinstance(value, Tensor):
        each, rest = divmod(value.shape[0] if value.ndim else 0, batch)
        if rows == slice(0, batch) or rest or each < 1 or (each > 1 and not multiples):
            return made(value)
        return made(value[rows.start * each : rows.stop * each])
    if isinstance(value, (list, tuple)):
        parts = [take_rows(v, rows, batch, multiples=multiples, made=made) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {
            k: take_rows(v, rows, batch, multiples=multiples, made=made) for k, v in value.items()
        }
    return value


def call_of_rows(
    call: Mapping[str, Any], rows: slice, batch: int, family: Family
) -> dict[str, Any]:
    """A denoiser call's arguments for some of its rows."""

    def cut(name: str, value: Any) -> Any:
        if rows == slice(0, batch) or name in family.per_token:
            return value
        if name in family.lists and isinstance(value, (list, tuple)) and len(value) == batch:
            return value[rows]
        return take_rows(value, rows, batch, multiples=name in family.per_frame)

    return {name: cut(name, value) for name, value in call.items()}


def join_rows(
    call: Mapping[str, Any], more: Mapping[str, Any], batch: int, family: Family
) -> dict[str, Any]:
    """A denoiser call's arguments with another call's rows behind its own.

    Args:
        call: Of ``batch`` rows.
        more: The same arguments for other rows.
        batch: Rows of the first.
        family: The denoiser's.
    """

    def joined(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return torch.cat([one, other]) if one.ndim and len(one) == batch else one
        if isinstance(one, (list, tuple)):
            return type(one)(map(joined, one, other))
        if isinstance(one, dict):
            return {name: joined(one[name], other[name]) for name in one}
        return one

    return {n: v if n in family.per_token else joined(v, more[n]) for n, v in call.items()}


def copy_containers(value: Any) -> Any:
    """Copies of nested lists and dicts, which some denoisers empty while they run."""
    if isinstance(value, list):
        return [copy_containers(v) for v in value]
    if isinstance(value, dict):
        return {k: copy_containers(v) for k, v in value.items()}
    return value
