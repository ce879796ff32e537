"""CARVE's and ViCrop's question stage: read where the model looks, and show it that.

All questions about an image and the general one are read as one group, whose prefix is encoded once
where the model allows it. The general answer goes on only as long as the others do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from regaze.evals.asking.encoding import Encoded, Refused
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import Prepared, prepares
from regaze.evals.asking.prompts import Question
from regaze.evals.runs.cost import Cost, now
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.hooks.report import InterventionReport, LayerReport
from regaze.interventions.lvlm.carve_reading import Looker, Reading, patch_attention
from regaze.interventions.lvlm.carve_regions import middle
from regaze.interventions.lvlm.looking import Looking

_KEPT_IMAGES = 256
"""Images whose general reading is kept; their questions are neighbours, but may fill batches."""


@prepares("vicrop")
@prepares("carve")
class CarveReader:
    """The reading passes of one condition.

    Args:
        answerer: The model that is asked.
        spec: The resolved settings.
        share: True if readings of one image may share its prefix.

    Attributes:
        cost: The cost of reading, since it was last set.
    """

    def __init__(self, answerer: Answerer, spec: Looking, share: bool) -> None:
        self.cost = Cost()
        self._spec, self._share = spec, share
        self._reader = Answerer(answerer.model, answerer.processor, spec.reading_tokens)
        self._looker = Looker(answerer.model, answerer.processor, spec)
        self._general: dict[str, Reading] = {}
        self._looks, self._hidden = 0, 0.0

    def prepare(self, questions: Sequence[Question]) -> list[Prepared | Refused]:
        """Find what each question of a batch is about.

        Args:
            questions: All with images; those with the same key show the same image.
        """
        began = now()
        plain = [replace(question, choices=()) for question in questions]
        images = {str(one.key): one for one in plain}
        fresh = [key for key in images if key not in self._general]
        read = self._read([*plain, *(self._about(images[key]) for key in fresh)], len(plain))
        general: dict[str, Reading | Refused] = dict(self._general)
        general |= zip(fresh, read[len(plain) :], strict=True)
        # Questions of an earlier batch may have been answered more shortly.
        short = [key for key in images if _short(general[key], _longest(key, plain, read))]
        again = self._read([self._about(images[key]) for key in short], 0)
        general |= zip(short, again, strict=True)
        self._general = {k: v for k, v in general.items() if isinstance(v, Reading)}
        while len(self._general) > _KEPT_IMAGES:
            del self._general[next(iter(self._general))]
        self._count(seconds=now() - began)
        return [
            self._prepared(place, question, read[place], general[str(question.key)])
            for place, question in enumerate(questions)
        ]

    def report(self) -> InterventionReport:
        """The layers that it read, and as its effect the mean share of the images that it hid."""
        hidden = self._hidden / max(1, self._looks)
        layers = self._spec.reading_layers if self._looks else ()
        return InterventionReport(
            self._spec.label,
            self._looks,
            tuple(LayerReport(layer, self._looks, 1.0, hidden) for layer in layers),
            note="effect: share of the image that is hidden",
        )

    def _about(self, question: Question) -> Question:
        return replace(question, prompt=self._spec.general)

    def _prepared(
        self, place: int, question: Question, query: Reading | Refused, general: Reading | Refused
    ) -> Prepared | Refused:
        if isinstance(query, Refused):
            return query
        if isinstance(general, Refused):
            return general
        processor, image = self._reader.processor, question.images[0]
        seen = middle(getattr(processor, "image_processor", None), image.size)
        try:
            self._spec.check_question(question.prompt)
            look = self._spec.look(image, query.attention, general.attention, seen)
        except ValueError as error:
            return Refused(str(error))
        self._looks += 1
        self._hidden += 1 - float(look.mask.mean())
        # Its image is its own, but its choices may share it.
        first, *more = look.shown
        asked = replace(question, image=first, more=tuple(more), key=f"{question.key}#{place}")
        # Tokens of the general answer aren't this question's.
        return Prepared(asked, {"crop": list(look.box), "tokens": len(query.attention)})

    def _count(self, **extra: float) -> None:
        self.cost = Cost.total(
            [self.cost, Cost(extra={f"{self._spec.name}_{k}": v for k, v in extra.items()})]
        )

    def _read(self, questions: Sequence[Question], asked: int) -> list[Reading | Refused]:
        """Answer, and keep the attention; answers after the first ``asked`` may be cut."""
        if not questions:
            return []
        if self._alone(questions):
            return [self._read_alone(question) for question in questions]
        encoded, refused = self._reader.encoded(questions, self._share)
        found: dict[int, Reading | Refused] = dict(refused)
        with torch.inference_mode():
            for part in encoded:
                found |= self._read_part(part, asked)
        return [found[place] for place in range(len(questions))]

    def _alone(self, questions: Sequence[Question]) -> bool:
        """True if questions must be read one by one, as gradients and tiles are."""
        if self._spec.gradient is not None:
            return True
        return any(sum(map(len, self._spec.parts(q.images[0]))) > 1 for q in questions)

    def _read_alone(self, question: Question) -> Reading | Refused:
        """Read a picture's gradient, or its tiles."""
        if len(question.images) != 1:
            return Refused(f"looking closer takes one image, and this has {len(question.images)}")
        image = question.images[0]
        count = sum(map(len, self._spec.parts(image)))
        self._count(prompts=count, tokens=count)
        try:
            return self._looker.read(image.convert("RGB"), question.prompt, 1)
        except ValueError as error:
            return Refused(str(error))

    def _read_part(self, part: Encoded, asked: int) -> dict[int, Reading | Refused]:
        reader = self._reader
        with (
            capture(
                reader.model,
                "last",
                self._spec.reading_layers,
                heads="mean",
                processor=reader.processor,
            ) as seen,
            attach(reader.model, processor=reader.processor) as attached,
        ):
            follows = torch.tensor([row.place >= asked for row in part.rows])
            stop = None if follows.all() else _Follow(follows, reader.ends)
            answers = reader.answer(part, attached.partial_prompt, stop)
        found: dict[int, Reading | Refused] = {}
        for sample, (row, answer) in enumerate(zip(part.rows, answers, strict=True)):
            try:
                rows = patch_attention(seen, answer.n_new_tokens, sample, part.inputs)
                found[row.place] = Reading(rows, answer.finish == "eos")
            except ValueError as error:
                found[row.place] = Refused(str(error))
        tokens = sum(answer.n_new_tokens for answer in answers)
        self._count(prompts=len(part.rows), tokens=tokens)
        return found


class _Follow(StoppingCriteria):
    """Stops rows that follow others once those have ended."""

    def __init__(self, follows: Tensor, ends: Collection[int]) -> None:
        self._follows = follows
        self._ends = ends
        self._ended = torch.zeros_like(follows)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._ended |= torch.tensor([new in self._ends for new in input_ids[:, -1].tolist()])
        done = self._follows & self._ended[~self._follows].all()
        return done.to(input_ids.device)


def _longest(key: str, questions: Sequence[Question], read: Sequence[Reading | Refused]) -> int:
    """Tokens of the longest answer to a question about an image."""
    found = (
        len(one.attention)
        for question, one in zip(questions, read, strict=False)
        if str(question.key) == key and isinstance(one, Reading)
    )
    return max(found, default=0)


def _short(general: Reading | Refused, tokens: int) -> bool:
    return isinstance(general, Reading) and not general.suffices(tokens)
