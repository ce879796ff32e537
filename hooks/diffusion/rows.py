"""The rows of a denoiser's call: what they are, and how to cut some out of what it is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.families import Family


@dataclass(frozen=True)
class Rows:
    """The rows of one denoiser call, by branch of guidance.

    Attributes:
        batch: Number of rows.
        cond: The conditional ones, or None if the call has none.
        uncond: The unconditional ones, or None if the call has none.
        split: True if the other branch comes in a call of its own.
        told: Note for reports on how they are known; empty if the running pipeline says it.
    """

    batch: int
    cond: slice | None
    uncond: slice | None
    split: bool = False
    told: str = ""

    @property
    def branches(self) -> int:
        """The number of branches in the call's batch, one after the other."""
        rows = self.cond or self.uncond or slice(0, self.batch)
        return self.batch // int(rows.stop - rows.start)

    @property
    def samples(self) -> int:
        """The number of samples in the call's main branch."""
        return self.batch // self.branches


def halves(batch: int, cond: str) -> Rows:
    """The rows of a batch of two branches, of which the conditional one comes first or last."""
    first, last = slice(0, batch // 2), slice(batch // 2, batch)
    return Rows(batch, first, last) if cond == "first" else Rows(batch, last, first)


def is_halved(sample: Any) -> bool:
    """True if the halves of a batch are equal."""
    half, rest = divmod(len(sample), 2)
    if rest or not half:
        return False
    if isinstance(sample, Tensor):
        return torch.equal(sample[:half], sample[half:])
    return all(map(torch.equal, sample[:half], sample[half:]))


def starts_of(sample: Any) -> list[float]:
    """The first number of each row, of which a pipeline's own latents come first."""
    found: list[float] = torch.stack([row.reshape(-1)[0] for row in sample]).tolist()
    return found


def same(one: Any, other: Any) -> bool:
    """True if two arguments hold the same tensors; what holds none isn't compared."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return True


def call_by_name(denoiser: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A denoiser call's arguments by name."""
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
    bound.arguments.pop("self")
    rest = bound.arguments.pop("kwargs", {})
    return {**bound.arguments, **rest}


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
        multiples: True if a tensor of n times as many rows holds n (frames) for each.
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
            k: v if k in _OF_NO_ROW else take_rows(v, rows, batch, multiples=multiples, made=made)
            for k, v in value.items()
        }
    return value


_OF_NO_ROW = ("ip_adapter_masks",)
"""Arguments of attention that don't run over the batch, whatever their first size happens to be."""

_SEVERAL = ("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs")
"""Arguments that may hold several rows for each of the batch: an IP-Adapter's pictures."""


def call_of_rows(
    call: Mapping[str, Any], rows: slice, batch: int, family: Family
) -> dict[str, Any]:
    """A denoiser call's arguments for some of its rows."""

    def cut(name: str, value: Any) -> Any:
        if rows == slice(0, batch) or name in family.per_token:
            return value
        if name in family.lists and isinstance(value, (list, tuple)) and len(value) == batch:
            return value[rows]
        several = name in family.per_frame or name in _SEVERAL
        return take_rows(value, rows, batch, multiples=several)

    return {name: cut(name, value) for name, value in call.items()}


def join_rows(
    call: Mapping[str, Any], more: Mapping[str, Any], batch: int, family: Family
) -> dict[str, Any]:
    """A denoiser call's arguments with another call's rows behind its own.

    Args:
        call: The arguments of a call of ``batch`` rows.
        more: The same arguments for other rows.
        batch: Number of rows of the first call.
        family: The denoiser's family.
    """

    def joined(one: Any, other: Any, several: bool) -> Any:
        if isinstance(one, Tensor):
            each, rest = divmod(len(one) if one.ndim else 0, batch)
            whole = rest == 0 and (each == 1 or (each > 1 and several))
            return torch.cat([one, other]) if whole else one
        if isinstance(one, (list, tuple)):
            return type(one)(joined(a, b, several) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict):
            return {
                n: x if n in _OF_NO_ROW else joined(x, other[n], several) for n, x in one.items()
            }
        return one

    return {
        name: value if name in family.per_token else joined(value, more[name], name in _SEVERAL)
        for name, value in call.items()
    }
