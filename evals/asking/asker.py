"""Ask a model a condition's questions, batch by batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from regaze.evals.asking.batching import AdaptiveBatches
from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.preparing import Prepared, Preparer
from regaze.evals.asking.prompts import Question
from regaze.evals.runs.conditions import blank
from regaze.evals.runs.cost import Cost, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.work import Done, Plan
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.attach import Attachment
from regaze.hooks.report import Report


@dataclass(frozen=True)
class Asker:
    """Asks batches under one condition.

    Attributes:
        task: The task to ask.
        answerer: Whom.
        sizes: The number of questions that go through the model together.
        plan: The condition.
        shown: For each image the one that is shown in its place.
        share: True if questions about one image share its prefix.
        attached: The condition's interventions.
        prepares: Changes questions first; None if the condition doesn't.
    """

    task: QuestionTask
    answerer: Answerer
    sizes: AdaptiveBatches
    plan: Plan
    shown: Mapping[str, str]
    share: bool
    attached: Attachment
    prepares: Preparer | None

    def __call__(self, seed: int, batch: Sequence[Item], wanted: Collection[Key]) -> Done:
        """Answer a whole batch; an item whose image can't be read gets an error for an answer."""
        found, cost = self._ask(seed, batch, wanted)
        firing = _report(self.attached, self.prepares) if self.plan.specs else None
        return Done(found, cost, self.sizes.size, firing)

    def _ask(
        self, seed: int, batch: Sequence[Item], wanted: Collection[Key]
    ) -> tuple[list[Record], Cost]:
        started = time.perf_counter()
        prepares, meter = self.prepares, self.answerer.meter
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
        if not any((item.id, seed) in wanted for item in asked):
            return failed, Cost()
        ask = partial(self._answers, images=images, seed=seed)
        answers = self.sizes.ask(asked, ask, lambda item: Refused("out of memory"))
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
        """The image shown for each one of a batch, and the errors of those that can't be read."""
        images: dict[str | None, _Shown] = {}
        unreadable: dict[str | None, str] = {}
        for item in batch:
            if item.image is None or item.image in images or item.image in unreadable:
                continue
            try:
                image = self.task.load_image(replace(item, image=self.shown[item.image]))
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
    ) -> dict[str, Generated | Refused]:
        prepares, answerer = self.prepares, self.answerer
        # By its pixels, because all blank images of one size are one.
        shown = {i.id: images[i.image] if i.image else _Shown() for i in items}
        questions: dict[str, Question] = {}
        alike: dict[Hashable, str] = {}
        # The same question about the same pixels (POPE asks for an object that is there in each of
        # its groups; all blank images of one size are one) has one answer, unless it is drawn.
        first: dict[str, str] = {}
        for i in items:
            alone = i.id if answerer.decoding.samples else None
            asks = (i.prompt, shown[i.id].sha256, i.choices, alone)
            first[i.id] = alike.setdefault(asks, i.id)
            if first[i.id] == i.id:
                questions[i.id] = Question(
                    i.prompt, shown[i.id].image, shown[i.id].sha256, i.choices
                )
        answers: dict[str, Generated | Refused] = {}
        prepared: dict[str, Prepared] = {}
        if prepares and items[0].image is not None:
            for key, found in zip(questions, prepares.prepare([*questions.values()]), strict=True):
                if isinstance(found, Refused):
                    answers[key] = found
                else:
                    prepared[key] = found
            questions = {key: found.question for key, found in prepared.items()}
        given = answerer.ask(
            [*questions.values()],
            share=self.share,
            partial=self.attached.partial_prompt,
            drawing=partial(answerer.decoding.drawing, seed, [item.id for item in items]),
        )
        for key, answer in zip(questions, given, strict=True):
            if key in prepared and isinstance(answer, Generated):
                answer = replace(answer, extra=prepared[key].extra)
            answers[key] = answer
        return {key: answers[asked] for key, asked in first.items()}

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
    """An image as the model is shown it, and a hash of its pixels; None where there is no image."""

    image: Image.Image | None = None
    sha256: str | None = None


def _report(attached: Attachment, prepares: Preparer | None) -> dict[str, Any]:
    """The report on a condition's interventions, JSON-able."""
    own = (prepares.report(),) if prepares else ()
    return Report((*attached.report().interventions, *own)).to_dict()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
