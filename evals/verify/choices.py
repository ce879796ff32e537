"""Methods that choose heads, in 16 bits: is a difference the choice's, or an error?

Where two heads react to the image almost alike, rounding decides which one is scaled, and every
later layer follows. So an attached run and the literal form, or a prompt in a batch and alone, may
scale other heads and lie far apart though both are right. Given the same heads, they must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.evals.verify.certificate import Line
from regaze.evals.verify.rounding import HALVES
from regaze.evals.verify.subject import Outputs, Subject, Which
from regaze.hooks.literal import HeadForm
from regaze.interventions import Intervention

Factors = Mapping[int, Tensor]
"""By layer, "B H"."""


@dataclass(frozen=True)
class Chosen:
    """A run of a method that chooses heads.

    Attributes:
        outputs: Outputs of the model.
        factors: The factors that were in force.
        own: The factors that the method chose, layer by layer, with the earlier ones in force.
    """

    outputs: Sequence[Outputs]
    factors: Factors
    own: Factors

    def others(self, other: Factors) -> int:
        """The number of heads with other factors than the method itself chose here."""
        return sum(int((self.own[layer] != other[layer]).sum()) for layer in other)


def chooses(specs: Sequence[Intervention]) -> bool:
    """True if this is one method alone that scales heads which it chooses by the image."""
    return len(specs) == 1 and isinstance(specs[0].literal(), HeadForm)


def held_again(
    subject: Subject,
    apart: Callable[..., float],
    specs: Sequence[Intervention],
    line: Line,
) -> Line:
    """A line that failed in 16 bits, held once more between runs with the same heads.

    They are scaled by up to a factor, and so is the rounding of their outputs.

    Args:
        subject: The model, with nothing attached.
        apart: Measures the distance between two outputs, in all parts or in one.
        specs: The methods, resolved.
        line: About the literal form or the batch.

    Returns:
        The line as it is if it isn't about a choice of heads; else with what was found, skipped
        where the choice was all that differed.
    """
    if (
        line.verdict != "failed"
        or line.difference is None
        or subject.dtype not in HALVES
        or not chooses(specs)
    ):
        return line
    spec = specs[0]
    one = attached(subject, spec, 0)
    if line.promise == "batch":
        alone = (one, attached(subject, spec, 1))
        given: Factors = {k: torch.cat([part.factors[k] for part in alone]) for k in one.factors}
        same = attached(subject, spec, "both", given)
        left = max(apart(same.outputs[i], alone[i].outputs[0]) for i in (0, 1))
        others = attached(subject, spec, "both").others(given)
    else:
        given = one.factors
        same = literally(subject, spec, given)
        left = apart(same.outputs[0], one.outputs[0], line.promise)
        others = literally(subject, spec).others(given)
    allowed = subject.tolerance * max(1.0, *(float(each.abs().max()) for each in given.values()))
    if not others or not left <= allowed:
        more = f"with the same heads by {left:.1e}, so it isn't the choice of heads alone"
        return replace(line, detail=f"{line.detail}; {more}")
    detail = (
        f"differs by {line.difference:.1e}, because rounding chose {others} of "
        f"{sum(each.numel() for each in given.values())} heads otherwise; with the same heads by "
        f"{left:.1e} ({allowed:.0e} allowed): this dtype doesn't settle which heads are scaled, so "
        "measure in float32"
    )
    return replace(line, verdict="skipped", detail=detail)


def attached(
    subject: Subject, spec: Intervention, which: Which, given: Factors | None = None
) -> Chosen:
    """Run the attached model, with the heads that the method chooses or with given ones."""
    own: dict[int, Tensor] = {}
    used: dict[int, Tensor] = {}
    with subject.attach([_noting(spec, own, used, given)]):
        return Chosen(subject.run(which), used, own)


def literally(subject: Subject, spec: Intervention, given: Factors | None = None) -> Chosen:
    """Run the literal form on the first input, with the heads that it chooses or given ones."""
    form: Any = spec.literal()
    own: dict[int, Tensor] = {}
    used: dict[int, Tensor] = {}
    layers = iter(sorted(form.layers))

    def factors(seen: Tensor, blind: Tensor) -> Tensor:
        layer = next(layers)
        own[layer] = form.factors(seen, blind)[None]
        used[layer] = own[layer] if given is None else given[layer].cpu()
        return used[layer][0]

    with subject.literally([replace(form, factors=factors)]):
        return Chosen(subject.run(0), used, own)


def _noting(
    spec: Intervention, own: dict[int, Tensor], used: dict[int, Tensor], given: Factors | None
) -> Intervention:
    """The spec, whose work notes what it chooses and takes what it is given instead."""
    kind: Any = type(spec)

    def bind(self: Any, host: Any) -> Any:
        work = kind.bind(self, host)
        plain: Any = type(work)

        def scale_heads(
            at: Any, layer: int, out: Tensor, null: Tensor | None, pass_: Any
        ) -> Tensor | None:
            found: Tensor | None = plain.scale_heads(at, layer, out, null, pass_)
            if null is None or found is None:
                return found  # A decode step: what the prompt left.
            own[layer] = found.cpu()
            if given is not None:
                at.factors[layer] = found = given[layer].to(found)
            used[layer] = found.cpu()
            return found

        work.__class__ = type(plain.__name__, (plain,), {"scale_heads": scale_heads})
        return work

    noting = replace(spec)
    object.__setattr__(noting, "__class__", type(kind.__name__, (kind,), {"bind": bind}))
    return noting
