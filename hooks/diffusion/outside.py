"""The rows of a denoiser's call that no pipeline makes: those of a loop of one's own.

Equal latents with different text are branches of guidance, in one batch or in a call each. In which
order they lie only who wrote the loop knows, so they are refused unless that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.rows import Rows, call_of_rows, is_halved, same, starts_of

SAY = "say which rows are: attach(..., cond_rows=slice(start, stop))"


@dataclass
class Outside:
    """The call before, where no pipeline runs: another branch may follow in a call of its own."""

    call: Mapping[str, Any] | None = None


def outside_rows(family: Family, call: Mapping[str, Any], attached: Any, outside: Outside) -> Rows:
    """Find the rows of each branch in such a call.

    Args:
        family: The denoiser's.
        call: The call's arguments by name.
        attached: The pipeline that interventions were attached to; None for a bare denoiser.
        outside: What this thread keeps of such calls.

    Raises:
        ValueError: It can't be told.
    """
    batch = len(call[family.sample])
    if attached is None:
        if any(_guides(family, call, rows) for rows in _alike(call[family.sample])):
            raise ValueError(
                "this denoiser was called with equal latents in rows with different text, as for "
                f"classifier-free guidance, and which are conditional isn't known; {SAY}, or "
                "cond_rows=slice(None) if all of them are"
            )
        before, outside.call = outside.call, _kept(family, call)
        if before is not None and _follows(family, before, call):
            outside.call = None
            raise ValueError(
                "this denoiser was called with the same latents at the same time and other text "
                "than in the call before, as for classifier-free guidance in a call for each "
                "branch, and which of them is conditional isn't known: run both in one batch and "
                f"{SAY}, or cond_rows=slice(None) if all rows of all calls are"
            )
        return Rows(batch, slice(0, batch), None)
    raise ValueError(
        f"the denoiser of this {type(attached).__name__} was called by something else than a "
        f"pipeline of its own, so which of {batch} rows are conditional isn't known; "
        f"{_ways(family, call)}"
    )


def _ways(family: Family, call: Mapping[str, Any]) -> str:
    """The words that say which rows of a call are conditional, one of which holds."""
    batch = len(call[family.sample])
    half = batch // 2
    if not is_halved(call[family.sample]) or not _guides(family, call, (0, half), half):
        return f"{SAY}, with slice(None) if all of them are"
    return (
        f"say which half is: attach(..., cond_rows=slice({half}, {batch})) for the last, as in "
        f"torch.cat([negative, prompt]), or slice(0, {half}) for the first"
    )


def _alike(sample: Any) -> Iterator[tuple[int, int]]:
    """Rows that are equal: the first of its kind, and another."""
    first: dict[float, list[int]] = {}
    for row, start in enumerate(starts_of(sample)):
        alike = first.setdefault(start, [])
        found = [other for other in alike if torch.equal(sample[other], sample[row])]
        if found:
            yield found[0], row
        else:
            alike.append(row)


def _guides(
    family: Family, call: Mapping[str, Any], starts: tuple[int, int], count: int = 1
) -> bool:
    """True if what a call is given beside the latents differs between some rows."""
    batch = len(call[family.sample])
    one, other = (
        call_of_rows(call, slice(start, start + count), batch, family) for start in starts
    )
    return _differ(family, one, other, "timestep")


def _kept(family: Family, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that branches of one step share, and those in which they differ."""
    names = (family.sample, "timestep", family.text, "class_labels")
    return {name: call[name] for name in names if name in call}


def _follows(family: Family, before: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """True if a call is the call before with another text."""
    now = _kept(family, call)
    if now.keys() != before.keys():
        return False
    shared = (name for name in (family.sample, "timestep") if name in now)
    return all(same(before[n], now[n]) for n in shared) and _differ(family, before, now)


def _differ(
    family: Family, one: Mapping[str, Any], other: Mapping[str, Any], *besides: str
) -> bool:
    return any(
        not same(one[name], other[name]) for name in one if name not in (family.sample, *besides)
    )
