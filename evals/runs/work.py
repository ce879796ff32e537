"""The interface of a kind of run to `regaze.evals.runs.driver`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.records import Key, Record
from regaze.evals.task import Item, Task
from regaze.interventions.base import Intervention


@dataclass(frozen=True)
class Plan:
    """A condition, resolved for what it is attached to.

    Attributes:
        condition: The condition.
        specs: The condition's interventions with every field filled in.
        folder: The folder of its answers.
        config: The configuration that its answers depend on.
    """

    condition: Condition
    specs: tuple[Intervention, ...]
    folder: Path
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The condition's label."""
        return self.condition.label


@dataclass(frozen=True)
class Done:
    """The outcome of a batch.

    Attributes:
        records: Answers and errors.
        cost: The batch's cost.
        size: Most items that are done together now.
        firing: The interventions' firing since the condition began; None without any.
    """

    records: Sequence[Record]
    cost: Cost
    size: int
    firing: Mapping[str, Any] | None


Do = Callable[[int, Sequence[Item], Collection[Key]], Done]
"""Does a batch with a seed; only the outcomes of the keys given are wanted."""


class Work(Protocol):
    """One kind of run.

    Attributes:
        task: The task, which knows how it is scored.
        items: The task's items that are done, in order.
        limit: The limit on items that chose them; None for all.
        seeds: Sampling seeds; every item is done once with each.
        name: The model's name, for reports.
        device: The device that it runs on.
    """

    @property
    def task(self) -> Task: ...  # noqa: D102
    @property
    def items(self) -> Sequence[Item]: ...  # noqa: D102
    @property
    def limit(self) -> int | None: ...  # noqa: D102
    @property
    def seeds(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102

    def settings(self) -> Mapping[str, Any]:
        """The settings that the answers of all conditions depend on, JSON-able."""

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, in their order.

        Raises:
            ValueError: It doesn't fit.
        """

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """Further settings of a condition, beside its interventions."""

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        """Further entries of a condition's manifest."""

    def batches(self) -> Sequence[Sequence[Item]]:
        """The items in batches, the same whatever is done already."""

    def doing(self, plan: Plan) -> AbstractContextManager[Do]:
        """A context that gives the function which does a condition's batches."""

    def stands(self, plan: Plan, record: Record) -> bool:
        """True if a stored record needs no other try."""
