"""The question stage: methods that change what is asked, before the model answers.

An intervention whose ``stage`` is "question" isn't attached. For each condition the run makes its
`Preparer`, hands it every batch of questions about images, and asks what comes back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from transformers import PreTrainedModel

from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.prompts import Question
from regaze.evals.runs.cost import Cost
from regaze.hooks.attach import attach
from regaze.hooks.host import find_host
from regaze.hooks.report import InterventionReport
from regaze.interventions.base import Intervention


@dataclass(frozen=True)
class Prepared:
    """The question asked in another one's place.

    Attributes:
        question: The question to ask.
        extra: JSON-able facts about how it was made, for the answer's record.
    """

    question: Question
    extra: Mapping[str, Any] = field(default_factory=dict)


class Preparer(Protocol):
    """A question-stage method at work in one condition of a run.

    Attributes:
        cost: The cost of preparing since it was last set.
    """

    cost: Cost

    def prepare(self, questions: Sequence[Question]) -> list[Prepared | Refused]:
        """Answer each question of a batch with the one to ask, or with why it can't be asked."""

    def report(self) -> InterventionReport:
        """Say what it did since it was made."""


MakePreparer = Callable[[Answerer, Any, bool], Preparer]
"""Makes a preparer from an answerer, a resolved spec, and whether prefixes may be shared."""

_T = TypeVar("_T", bound=MakePreparer)
_PREPARERS: dict[str, MakePreparer] = {}
_BUILT_IN = {name: "regaze.evals.asking.carve" for name in ("carve", "vicrop")}


def prepares(name: str) -> Callable[[_T], _T]:
    """Register what makes the preparer of the method with this name."""

    def register(make: _T) -> _T:
        _PREPARERS[name] = make
        return make

    return register


def preparer(spec: Intervention, answerer: Answerer, share: bool) -> Preparer:
    """The preparer of a question-stage method.

    Args:
        spec: The method's resolved settings.
        answerer: The model that is asked.
        share: True if questions about one image may share its prefix.

    Raises:
        ValueError: Nobody registered one for this method.
    """
    if spec.name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[spec.name])
    if spec.name not in _PREPARERS:
        raise ValueError(
            f"{spec.name} acts on questions, but nothing is registered that prepares them: "
            f"decorate a function or class with regaze.evals.asking.preparing.prepares"
            f"({spec.name!r})"
        )
    return _PREPARERS[spec.name](answerer, spec, share)


def resolve(
    specs: Sequence[Intervention], model: PreTrainedModel, processor: Any
) -> tuple[Intervention, ...]:
    """Interventions with every field filled in for a model, in their order.

    Raises:
        ValueError: One can't act on it, or two exclude each other.
    """
    attached, asking = split(specs)
    with attach(model, *attached, processor=processor) as run:
        found = [cast(Intervention, spec) for spec in run.specs]
    if asking:
        found.insert(specs.index(asking), asking.resolve(find_host(model, processor)))
    return tuple(found)


def split(
    specs: Sequence[Intervention],
) -> tuple[tuple[Intervention, ...], Intervention | None]:
    """The interventions to attach to the model, and the one that changes its questions.

    Raises:
        ValueError: There are several of the latter.
    """
    attached = tuple(spec for spec in specs if spec.stage == "attention")
    asking = [spec for spec in specs if spec.stage == "question"]
    if len(asking) > 1:
        named = " and ".join(spec.name for spec in asking)
        raise ValueError(f"a condition can change its questions once, and this one names {named}")
    return attached, asking[0] if asking else None
