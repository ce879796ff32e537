"""Questions to a model, as work for `regaze.evals.runs.driver`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from regaze.evals.asking import batching
from regaze.evals.asking.asker import Asker
from regaze.evals.asking.batching import AdaptiveBatches, BatchSize
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import preparer, resolve, split
from regaze.evals.asking.settings import settings
from regaze.evals.runs.conditions import Condition, other_images
from regaze.evals.runs.records import Record
from regaze.evals.runs.work import Do, Plan
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.attach import attach
from regaze.interventions.base import Intervention


class Asking:
    """Questions to a model, as work for `regaze.evals.runs.driver`.

    Args:
        task: The task to ask.
        items: The task's items that are asked.
        limit: The limit on items that chose them; None for all.
        answerer: The model.
        batch_size: Items per batch, see `regaze.evals.asking.batching`.
        identity: Facts that tell the model from others.
        apart: Why no questions share an image's prefix on this model; None if they can.
    """

    def __init__(
        self,
        task: QuestionTask,
        items: Sequence[Item],
        limit: int | None,
        answerer: Answerer,
        batch_size: BatchSize,
        identity: Mapping[str, Any],
        apart: str | None,
    ) -> None:
        self.task, self.items, self.limit = task, items, limit
        self.answerer, self.identity, self.apart = answerer, identity, apart
        self.seeds = answerer.decoding.seeds
        self.name = str(identity.get("name", type(answerer.model).__name__))
        self.device = str(answerer.model.device)
        self._batch_size = batch_size
        # What fits into memory under one condition is a good guess for the next.
        self.sizes = AdaptiveBatches(batch_size)

    def settings(self) -> Mapping[str, Any]:
        """The settings that the answers of all conditions depend on."""
        return {
            **settings(self.task, self.items, self.answerer, self.identity, self._batch_size),
            "sharing": {"prefix": self.apart is None, "why": self.apart},
        }

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, in their order."""
        self.shown(condition)
        return resolve(condition.specs, self.answerer.model, self.answerer.processor)

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """The kind of image shown, see `Condition`."""
        return {"image": condition.image}

    def shown(self, condition: Condition) -> Mapping[str, str]:
        """The images shown in place of the items' own."""
        shown = {item.image: item.image for item in self.items if item.image is not None}
        return other_images(shown) if condition.image == "wrong" else shown

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        """The profile by which answers are read, and whether an image is read once."""
        apart = why_apart(plan.specs, self.apart)
        shares = {"shares_prefix": apart is None, "apart": apart}
        return {"profile": self.task.profile, **shares}

    def batches(self) -> Sequence[Sequence[Item]]:
        """The items in batches; questions about one image stay together."""
        return batching.plan(self.items, self._batch_size)

    def stands(self, plan: Plan, record: Record) -> bool:
        """True of an answer; an error gets another try."""
        return record.ok

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Attach a condition's interventions and give what asks its batches."""
        specs, asking = split(plan.specs)
        share = why_read_apart(plan.specs, self.apart) is None
        prepares = preparer(asking, self.answerer, share) if asking else None
        model, processor = self.answerer.model, self.answerer.processor
        with (
            attach(model, *specs, processor=processor) as attached,
            self.answerer.meter.running(),
        ):
            shown = self.shown(plan.condition)
            yield Asker(
                self.task, self.answerer, self.sizes, plan, shown, share, attached, prepares
            )


def why_read_apart(specs: Sequence[Intervention], why: str | None) -> str | None:
    """The reason why questions about one and the same image are asked apart.

    Args:
        specs: A condition's interventions.
        why: Why they always are on this model, if so.
    """
    names = [spec.name for spec in split(specs)[0] if not spec.shares_prefix]
    edits = f"{' and '.join(names)} {'need' if names[1:] else 'needs'} each prompt read whole"
    return why or (edits if names else None)


def why_apart(specs: Sequence[Intervention], why: str | None) -> str | None:
    """The reason why questions about one image are asked apart; None if they share its prefix."""
    asking = split(specs)[1]
    if asking is None or asking.shares_prefix:
        return why_read_apart(specs, why)
    return why_read_apart(specs, why) or f"{asking.name} shows each question an image of its own"
