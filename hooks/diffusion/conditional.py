"""Which rows of a denoiser's batch are conditional.

A pipeline runs classifier-free guidance as two halves of one batch, or as a call per branch; which
of both, its class says (`regaze.hooks.diffusion.conventions`), and whether guidance is on, it says
itself while it runs. What is read is checked against what the call holds; anything else raises, and
so does a user's word that the call contradicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.conventions import Convention, UntoldError, convention_of
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.rows import Rows, call_of_rows
from regaze.hooks.diffusion.running import Running

_SAY = "say which rows are: attach(..., cond_rows=slice(start, stop))"


@dataclass
class Outside:
    """The call before, where no pipeline runs: another branch may follow in a call of its own."""

    call: Mapping[str, Any] | None = None


def find_rows(
    family: Family,
    call: Mapping[str, Any],
    running: Running | None,
    attached: Any,
    given: slice | None,
    outside: Outside,
) -> Rows:
    """What the rows of a call are.

    Args:
        family: The denoiser's.
        call: The call's arguments by name.
        running: The pipeline that calls, or None.
        attached: The pipeline that interventions were attached to; None for a bare denoiser.
        given: The user's word on which rows are conditional.
        outside: What this thread keeps of calls that no pipeline makes.

    Raises:
        ValueError: It can't be told, or the user's word contradicts the call.
    """
    if given is not None:
        return _as_told(given, family, call, running)
    if running is not None:
        return _of_pipeline(family, call, running)
    return _outside(family, call, attached, outside)


# -- of a pipeline that runs -------------------------------------------------------------------


def _of_pipeline(family: Family, call: Mapping[str, Any], running: Running) -> Rows:
    batch = len(call[family.sample])
    pipeline, variables = running.pipeline, running.variables
    every = slice(0, batch)
    if running.guider is not None:
        said, count = running.guider
        cond = _is_named(pipeline, said)
        return Rows(batch, every if cond else None, None if cond else every, split=count > 1)
    convention = convention_of(pipeline)
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
        raise UntoldError(
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
        return _is_named(running.pipeline, variables.get(convention.named))
    texts = [variables.get(one) for one in convention.texts]
    which = _which(call.get(family.text), texts)
    if which is None:
        raise UntoldError(
            f"can't tell whether this call of {name} is the conditional one: its text is neither "
            f"{convention.texts[0]} nor {convention.texts[1]}, or both; {_SAY}"
        )
    return which == 0


def _is_named(pipeline: Any, said: Any) -> bool:
    """Whether the branch that a guider names is the conditional one.

    Raises:
        ValueError: It's neither that nor the unconditional one.
    """
    if said in ("pred_cond", "pred_uncond"):
        return bool(said == "pred_cond")
    raise ValueError(
        f"{type(pipeline).__name__} calls its denoiser for {said}, which is neither the "
        "conditional nor the unconditional branch, but another guidance's: leave that to the "
        "guider, or to what is attached, with ClassifierFreeGuidance as the guider"
    )


def _half(batch: int, cond: str) -> Rows:
    first, last = slice(0, batch // 2), slice(batch // 2, batch)
    return Rows(batch, first, last) if cond == "first" else Rows(batch, last, first)


def _halved(sample: Any) -> bool:
    """Whether a batch is twice the same."""
    half, rest = divmod(len(sample), 2)
    if rest or not half:
        return False
    if isinstance(sample, Tensor):
        return torch.equal(sample[:half], sample[half:])
    return all(map(torch.equal, sample[:half], sample[half:]))


def _which(text: Any, texts: Sequence[Any]) -> int | None:
    """Which of two texts a call was given; None if neither or either."""
    found = [n for n, one in enumerate(texts) if one is not None and one is text]
    if not found and isinstance(text, Tensor):
        found = [n for n, one in enumerate(texts) if one is not None and _equal(text, one)]
    return found[0] if len(found) == 1 else None


# -- as the user says --------------------------------------------------------------------------


def refuse_steps(given: slice | None) -> None:
    """Check that conditional rows are a piece of the batch.

    Raises:
        ValueError: They aren't in one piece.
    """
    if given is not None and given.step not in (None, 1):
        raise ValueError(
            f"cond_rows={given} takes every {given.step}th row, and branches must lie one after "
            "the other in the batch, each in one piece"
        )


def _as_told(
    given: slice, family: Family, call: Mapping[str, Any], running: Running | None
) -> Rows:
    sample = call[family.sample]
    batch = len(sample)
    start, stop, _ = given.indices(batch)
    if start >= stop or batch % (stop - start):
        raise ValueError(
            f"cond_rows={given} are {max(0, stop - start)} of {batch} rows; the conditional "
            "rows must be an equal share of the batch"
        )
    rest = slice(0, start) if start else slice(stop, batch)
    halves = 2 * (stop - start) == batch and start in (0, batch // 2)
    told = Rows(batch, slice(start, stop), rest if halves else None)
    if running is not None:
        try:
            known = _of_pipeline(family, call, running)
        except UntoldError:
            pass  # That's what the user's word is for.
        else:
            if (known.cond, known.split) != (told.cond, False):
                raise ValueError(
                    f"cond_rows={given} contradicts what {type(running.pipeline).__name__} does: "
                    f"{_named(known)}; leave cond_rows out"
                )
            return known
    # Said for one prompt, and then called with two: a row of the other branch would count.
    starts = _starts(sample) if told.branches > 2 else []
    if starts != starts[: told.samples] * told.branches:
        raise ValueError(
            f"cond_rows={given} are {stop - start} of {batch} rows, so that the others would be "
            "further branches of the same latents, which they aren't; say what holds for this "
            "batch"
        )
    return told


def _named(rows: Rows) -> str:
    if rows.split:
        return "it runs each branch in a call of its own"
    if rows.cond == slice(0, rows.batch):
        return f"all {rows.batch} rows of this call are conditional"
    kept = rows.cond or slice(0, 0)
    return f"of the {rows.batch} rows of this call {kept.start} to {kept.stop - 1} are conditional"


# -- outside of a pipeline ---------------------------------------------------------------------


def _outside(family: Family, call: Mapping[str, Any], attached: Any, outside: Outside) -> Rows:
    """The rows of a call that no pipeline makes."""
    batch = len(call[family.sample])
    if attached is None:
        if any(_guides(family, call, rows) for rows in _alike(call[family.sample])):
            raise ValueError(
                "this denoiser was called with equal latents in rows with different text, as for "
                f"classifier-free guidance, and which are conditional isn't known; {_SAY}, or "
                "cond_rows=slice(None) if all of them are"
            )
        before, outside.call = outside.call, _kept(family, call)
        if before is not None and _follows(family, before, call):
            outside.call = None
            raise ValueError(
                "this denoiser was called with the same latents at the same time and other text "
                "than in the call before, as for classifier-free guidance in a call for each "
                "branch, and which of them is conditional isn't known: run both in one batch and "
                f"{_SAY}, or cond_rows=slice(None) if all rows of all calls are"
            )
        return Rows(batch, slice(0, batch), None)
    if _halved(call[family.sample]) and _guides(family, call, (0, batch // 2), batch // 2):
        convention = convention_of(attached)
        if convention.branches == "batch":
            told = f"{convention.cond} half conditional, as in {type(attached).__name__}"
            return replace(_half(batch, convention.cond), told=told)
    raise ValueError(
        f"the denoiser of this {type(attached).__name__} was called by something else than a "
        f"pipeline of its own, so which of {batch} rows are conditional isn't known; {_SAY}, with "
        "slice(None) if all of them are"
    )


def _starts(sample: Any) -> list[float]:
    """The first number of each row, of which a pipeline's own latents come first."""
    found: list[float] = torch.stack([row.reshape(-1)[0] for row in sample]).tolist()
    return found


def _alike(sample: Any) -> Iterator[tuple[int, int]]:
    """Rows that are equal: the first of its kind, and another."""
    first: dict[float, list[int]] = {}
    for row, start in enumerate(_starts(sample)):
        same = first.setdefault(start, [])
        found = [other for other in same if torch.equal(sample[other], sample[row])]
        if found:
            yield found[0], row
        else:
            same.append(row)


def _guides(
    family: Family, call: Mapping[str, Any], starts: tuple[int, int], count: int = 1
) -> bool:
    """Whether what a call is given beside the latents differs between some rows."""
    batch = len(call[family.sample])
    one, other = (
        call_of_rows(call, slice(start, start + count), batch, family) for start in starts
    )
    return _differ(family, one, other, "timestep")


def _kept(family: Family, call: Mapping[str, Any]) -> dict[str, Any]:
    """What branches of one step have in common, and what they differ in."""
    names = (family.sample, "timestep", family.text, "class_labels")
    return {name: call[name] for name in names if name in call}


def _follows(family: Family, before: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Whether a call is the call before with another text."""
    now = _kept(family, call)
    if now.keys() != before.keys():
        return False
    same = (_equal(before[name], now[name]) for name in (family.sample, "timestep") if name in now)
    return all(same) and _differ(family, before, now)


def _differ(
    family: Family, one: Mapping[str, Any], other: Mapping[str, Any], *besides: str
) -> bool:
    return any(
        not _equal(one[name], other[name]) for name in one if name not in (family.sample, *besides)
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return True  # No tensors: not cut by rows.
