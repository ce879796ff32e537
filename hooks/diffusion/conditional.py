"""The conditional rows of a denoiser's batch.

A pipeline runs classifier-free guidance as two halves of one batch, or as a call per branch; which
of both, its class says (`regaze.hooks.diffusion.conventions`), and whether guidance is on, it says
itself while it runs. What is read is checked against what the call holds; anything else raises, and
so does a user's word that the call contradicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.conventions import Convention, UntoldError, convention_of
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.outside import SAY, Outside, outside_rows
from regaze.hooks.diffusion.rows import Rows, halves, is_halved, same, starts_of
from regaze.hooks.diffusion.running import Running


def find_rows(
    family: Family,
    call: Mapping[str, Any],
    running: Running | None,
    attached: Any,
    given: slice | None,
    outside: Outside,
) -> Rows:
    """Find the rows of each branch in a call.

    Args:
        family: The denoiser's.
        call: The call's arguments by name.
        running: The pipeline that calls, or None.
        attached: The pipeline that interventions were attached to; None for a bare denoiser.
        given: The user's word on which rows are conditional.
        outside: Record that this thread keeps of calls that no pipeline makes.

    Raises:
        ValueError: It can't be told, or the user's word contradicts the call.
    """
    if given is not None:
        return _as_told(given, family, call, running)
    if running is not None:
        return _of_pipeline(family, call, running)
    return outside_rows(family, call, attached, outside)


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
    if running.through:
        raise UntoldError(
            f"{running.through} calls the denoiser while {type(pipeline).__name__} runs, and which "
            f"of these {batch} rows are conditional isn't known; {SAY}"
        )
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
    if not whole or not is_halved(_own_channels(call[family.sample], latents)):
        raise UntoldError(
            f"can't tell which of {batch} rows are conditional: {type(pipeline).__name__} doesn't "
            "call its denoiser with both branches as halves of the same latents here; switch off "
            f"what adds branches, or {SAY}"
        )
    return halves(batch, convention.cond)


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
    """True if a call that holds one branch is the conditional one.

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
            f"{convention.texts[0]} nor {convention.texts[1]}, or both; {SAY}"
        )
    return which == 0


def _is_named(pipeline: Any, said: Any) -> bool:
    """True if the branch that a guider names is the conditional one.

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


def _which(text: Any, texts: Sequence[Any]) -> int | None:
    """The index of the text that a call was given, of two; None if neither or both match."""
    found = [n for n, one in enumerate(texts) if one is not None and one is text]
    if not found and isinstance(text, Tensor):
        found = [n for n, one in enumerate(texts) if one is not None and same(text, one)]
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
    starts = starts_of(sample) if told.branches > 2 else []
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
