"""The rows of a denoiser's call that no pipeline makes: those of a loop of one's own.

Equal latents with different text are branches of guidance, in one batch or in a call each. In which
order they lie only who wrote the loop knows. A loop on the denoiser of a pipeline that was attached
to is taken to have that pipeline's order, which the next call has to confirm: what it is given was
made of both predictions, by a scheduler, and the conditional one counts more. With z the latents,
a and b what the first and the last half got, and least squares over all numbers,

    z' = p z + q a + r b,   |r| > |q| if the last half is conditional

by more than the errors of q and r. Whatever can't be told so is refused unless it is said, at the
latest when what acted comes off: by then a single step has given what nothing confirms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.conventions import convention_of
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.rows import Rows, call_of_rows, halves, is_halved, same, starts_of

SAY = "say which rows are: attach(..., cond_rows=slice(start, stop))"


@dataclass
class Outside:
    """The call before, where no pipeline runs.

    Attributes:
        call: Call of a bare denoiser, where another branch may follow in a call of its own.
        guess: Call of a pipeline's denoiser, whose order is still to be confirmed.
        sure: The text of calls whose order was confirmed.
    """

    call: Mapping[str, Any] | None = None
    guess: Guess | None = None
    sure: Any = None

    def supposes(self, family: Family, call: Mapping[str, Any], cond: str) -> bool:
        """True if a call may be taken to have an order: nothing before it speaks against that.

        Args:
            family: The denoiser's.
            call: The call's arguments by name, of two halves.
            cond: The half that would be conditional.
        """
        text, sample = call.get(family.text), call[family.sample]
        latents = sample[: len(sample) // 2]
        before, self.guess = self.guess, None
        if self.sure is not None and same(self.sure, text):
            return True
        if before is None:
            self.sure, self.guess = None, Guess(latents, text, cond)
            return True
        self.sure = text if before.confirmed(latents, text) else None
        return self.sure is not None

    def saw(self, prediction: Any, acted: Sequence[Any]) -> None:
        """Keep what a call whose order is to be confirmed returned, and what acted in it."""
        if self.guess is not None:
            self.guess.prediction, self.guess.acted = prediction, tuple(acted)


@dataclass
class Guess:
    """A call whose order is to be confirmed by the next one.

    Attributes:
        latents: Sample of the call, of one half.
        text: Text of the call, of both halves.
        cond: The half that is taken to be conditional.
        prediction: Prediction that the call returned; None before.
        acted: The works that acted in the call.
    """

    latents: Any
    text: Any
    cond: str
    prediction: Any = None
    acted: tuple[Any, ...] = ()

    @property
    def doubt(self) -> str:
        """The words for a call that nothing has confirmed."""
        half = len(self.latents)
        last, first = f"cond_rows=slice({half}, {2 * half})", f"cond_rows=slice(0, {half})"
        said, other = (last, first) if self.cond == "last" else (first, last)
        return (
            f"a loop outside of the pipeline ended after one guided step, whose {self.cond} half "
            "was taken to be conditional, as the pipeline has it; a second step would have "
            f"confirmed it, so say it: attach(..., {said}), or {other} if it's the other half, "
            "with which the result would be another"
        )

    def confirmed(self, latents: Any, text: Any) -> bool:
        """True if the latents that follow were made with this order.

        Args:
            latents: The next call's sample, of one half.
            text: The next call's text.
        """
        made = self.prediction
        if not isinstance(made, Tensor) or not isinstance(latents, Tensor):
            return False
        if not same(self.text, text) or len(made) != 2 * len(latents):
            return False
        channels = made.shape[1]  # Inpainting has more beside the latents.
        parts = [self.latents[:, :channels], *made.chunk(2), latents[:, :channels]]
        if len({part.shape for part in parts}) > 1:
            return False
        *columns, after = (part.detach().double().flatten().cpu() for part in parts)
        basis = torch.stack(columns, 1)
        weights = torch.linalg.lstsq(basis, after[:, None]).solution[:, 0]
        spread = (after - basis @ weights).square().sum() / max(1, len(after) - 3)
        errors = (torch.linalg.pinv(basis.T @ basis).diagonal() * spread).sqrt()
        ahead = weights[2].abs() - weights[1].abs()
        surely = ahead if self.cond == "last" else -ahead
        return bool(surely > 5 * (errors[1] + errors[2]))


def outside_rows(family: Family, call: Mapping[str, Any], attached: Any, outside: Outside) -> Rows:
    """Find the rows of each branch in such a call.

    Args:
        family: The denoiser's.
        call: The call's arguments by name.
        attached: The pipeline that interventions were attached to; None for a bare denoiser.
        outside: Record that this thread keeps of such calls.

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
    if is_halved(call[family.sample]) and _guides(family, call, (0, batch // 2), batch // 2):
        convention = convention_of(attached)
        if convention.branches == "batch" and outside.supposes(family, call, convention.cond):
            told = f"{convention.cond} half conditional, as in {type(attached).__name__}"
            return replace(halves(batch, convention.cond), told=told)
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
