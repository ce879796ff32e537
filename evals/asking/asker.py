"""Ask one condition's questions, batch by batch, and write each batch down before the next."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.asking.batching import Halving
from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.preparing import Prepared, Preparer, preparer, split
from regaze.evals.asking.prompts import Question
from regaze.evals.runs import records, sessions
from regaze.evals.runs.conditions import Condition, blank
from regaze.evals.runs.cost import Cost, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.records import Key, Record
from regaze.evals.task import Item, Task
from regaze.hooks.attach import Attachment, attach
from regaze.hooks.report import Report
from regaze.interventions.base import Intervention

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A condition, resolved for the model.

    Attributes:
        condition: The condition.
        specs: Its interventions with every field filled in.
        folder: Where its answers go.
        shown: For each image the one that is shown in its place.
        config: What its answers depend on.
    """

    condition: Condition
    specs: tuple[Intervention, ...]
    folder: Path
    shown: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def why_apart(self) -> str | None:
        """Why questions about one image are asked apart; None if they share its prefix."""
        asking = split(self.specs)[1]
        if asking is None or asking.shares_prefix:
            return self.why_read_apart
        return self.why_read_apart or f"{asking.name} shows each question an image of its own"

    @property
    def why_read_apart(self) -> str | None:
        """Why questions about one and the same image are asked apart."""
        names = [spec.name for spec in split(self.specs)[0] if not spec.shares_prefix]
        edits = f"{' and '.join(names)} treats an image's columns by what is asked"
        return self.config["sharing"]["why"] or (edits if names else None)


@dataclass(frozen=True)
class Asker:
    """One condition, asked by one process.

    Attributes:
        plan: The condition.
        task: What is asked.
        answerer: The model.
        halving: Decides how many items are asked at once.
        world: This process among the others.
        progress: Called with the condition's label, items done and items in all.
    """

    plan: Plan
    task: Task
    answerer: Answerer
    halving: Halving
    world: World
    progress: Progress

    def ask_all(self, batches: Sequence[Sequence[Item]], before: Mapping[Key, Record]) -> None:
        """Answer this process's part of whatever hasn't been answered yet, batch by batch.

        Args:
            batches: All batches.
            before: What was on the disk when the processes met.
        """
        plan, answerer = self.plan, self.answerer
        known = dict(before)
        todo = [
            (seed, batch)
            for seed in answerer.decoding.seeds
            for batch in batches
            if not all(_answered((item.id, seed), known) for item in batch)
        ]
        mine = todo[self.world.rank :: self.world.size]
        done = sum(map(len, batches)) * len(answerer.decoding.seeds) - sum(len(b) for _, b in todo)
        total = done + sum(len(batch) for _, batch in mine)
        self.progress(plan.condition.label, done, total)
        if not mine:
            return
        session = sessions.Session(plan.folder, self.world, str(answerer.model.device))
        predictions = records.predictions(plan.folder, self.world.rank)
        model, processor = answerer.model, answerer.processor
        specs, asking = split(plan.specs)
        share = plan.why_read_apart is None
        prepares = preparer(asking, answerer, share) if asking else None
        with attach(model, *specs, processor=processor) as attached, answerer.meter.running():
            for seed, batch in mine:
                found, cost = self._ask(batch, seed, known, attached, prepares)
                fresh = _news(found, known)
                if fresh:
                    firing = _report(attached, prepares) if plan.specs else None
                    # The session first: no answer is on the disk without the proof that its
                    # intervention acted.
                    session.note(len(fresh), cost, self.halving.size, firing)
                    records.append(predictions, fresh)
                    known |= {record.key: record for record in fresh}
                    _warn(fresh)
                done += len(batch)
                self.progress(plan.condition.label, done, total)
            session.save()

    def _ask(
        self,
        batch: Sequence[Item],
        seed: int,
        known: Mapping[Key, Record],
        attached: Attachment,
        prepares: Preparer | None,
    ) -> tuple[list[Record], Cost]:
        """Answer a whole batch; an item whose image can't be read gets an error for an answer."""
        started = time.perf_counter()
        meter = self.answerer.meter
        meter.start()
        if prepares:
            prepares.cost = Cost()
        images, unreadable = self._images(batch)
        failed = [
            Record(i.id, i.cluster, seed=seed, finish="error", error=unreadable[i.image])
            for i in batch
            if i.image in unreadable
        ]
        asked = [item for item in batch if item.image not in unreadable]
        # Every item still open has an unreadable image, and the others were answered before.
        if all(_answered((item.id, seed), known) for item in asked):
            return failed, Cost()
        ask = partial(self._answers, images=images, seed=seed, attached=attached, prepares=prepares)
        answers = self.halving.ask(asked, ask, lambda item: Refused("out of memory"))
        share = 1 / len(asked)
        cost = Cost(
            items=len(asked),
            seconds=time.perf_counter() - started,
            prefill_s=meter.prefill_s,
            decode_s=meter.decode_s,
            forwards=meter.forwards,
            columns=meter.columns,
            peak_bytes=peak_gpu_bytes(),
            rss_bytes=peak_process_bytes(),
        )
        times = {
            "seconds": round(share * cost.seconds, 4),
            "t_prefill_s": round(share * cost.prefill_s, 4),
            "t_decode_s": round(share * cost.decode_s, 4),
            "peak_bytes": cost.peak_bytes or None,
        }
        found = [self._record(i, seed, answers[i.id], images.get(i.image), times) for i in asked]
        cost = replace(
            cost,
            prompt_tokens=sum(record.n_prompt_tokens for record in found),
            new_tokens=sum(record.n_new_tokens for record in found),
        )
        return [*failed, *found], Cost.total([cost, prepares.cost]) if prepares else cost

    def _images(
        self, batch: Sequence[Item]
    ) -> tuple[dict[str | None, _Shown], dict[str | None, str]]:
        """What is shown for each image of a batch, and why some can't be read."""
        images: dict[str | None, _Shown] = {}
        unreadable: dict[str | None, str] = {}
        for item in batch:
            if item.image is None or item.image in images or item.image in unreadable:
                continue
            try:
                image = self.task.load_image(replace(item, image=self.plan.shown[item.image]))
            except OSError as error:
                unreadable[item.image] = str(error)
                continue
            if self.plan.condition.image == "blank":
                image = blank(image)
            pixels = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes())
            images[item.image] = _Shown(image, pixels.hexdigest())
        return images, unreadable

    def _answers(
        self,
        items: Sequence[Item],
        images: Mapping[str | None, _Shown],
        seed: int,
        attached: Attachment,
        prepares: Preparer | None,
    ) -> dict[str, Generated | Refused]:
        questions = {
            i.id: Question(i.prompt, images[i.image].image if i.image else None, i.image, i.choices)
            for i in items
        }
        answers: dict[str, Generated | Refused] = {}
        prepared: dict[str, Prepared] = {}
        if prepares and items[0].image is not None:
            for key, found in zip(questions, prepares.prepare([*questions.values()]), strict=True):
                if isinstance(found, Refused):
                    answers[key] = found
                else:
                    prepared[key] = found
            questions = {key: found.question for key, found in prepared.items()}
        if not questions:
            return answers
        given = self.answerer.ask(
            [*questions.values()],
            share=self.plan.why_read_apart is None,
            partial=attached.partial_prompt,
            drawing=partial(self.answerer.decoding.drawing, seed, [item.id for item in items]),
        )
        for key, answer in zip(questions, given, strict=True):
            if key in prepared and isinstance(answer, Generated):
                answer = replace(answer, extra=prepared[key].extra)
            answers[key] = answer
        return answers

    def _record(
        self,
        item: Item,
        seed: int,
        answer: Generated | Refused,
        shown: _Shown | None,
        times: Mapping[str, Any],
    ) -> Record:
        if isinstance(answer, Refused):
            why = f"{answer.reason}{f' (image {item.image})' if item.image else ''}"
            return Record(item.id, item.cluster, seed=seed, finish="error", error=why)
        text = self.answerer.prompter.text(item.prompt, images=0 if shown is None else 1)
        fields = {**asdict(answer), **times}
        if not self.task.yes_no:
            fields["margin"] = None
        elif answer.margin is not None:
            fields["margin"] = round(answer.margin, 6)
        return Record(
            item.id,
            item.cluster,
            seed=seed,
            prompt_sha256=_short_hash(text),
            inputs_sha256=_short_hash(f"{shown.sha256 if shown else None} {text}"),
            **fields,
        )


@dataclass(frozen=True)
class _Shown:
    """An image as the model is shown it, and a hash of its pixels."""

    image: Image.Image
    sha256: str


def _report(attached: Attachment, prepares: Preparer | None) -> dict[str, Any]:
    """What a condition's interventions did."""
    own = (prepares.report(),) if prepares else ()
    return Report((*attached.report().interventions, *own)).to_dict()


def _answered(key: Key, known: Mapping[Key, Record]) -> bool:
    return key in known and known[key].ok


def _news(fresh: Iterable[Record], known: Mapping[Key, Record]) -> list[Record]:
    """What isn't on the disk: first answers, and outcomes of another try that differ."""
    news = []
    for record in fresh:
        before = known.get(record.key)
        if before is None:
            news.append(record)
        elif not before.ok and record.error != before.error:
            news.append(replace(record, attempt=before.attempt + 1))
    return news


def _warn(fresh: Iterable[Record]) -> None:
    """One line for each reason why items have no answer."""
    failed: dict[str, list[str]] = {}
    for record in fresh:
        if record.error is not None:
            failed.setdefault(record.error, []).append(record.id)
    for reason, (first, *others) in failed.items():
        more = f" and {len(others)} more items" if others else ""
        _log.warning("no answer to %s%s: %s", first, more, reason)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
