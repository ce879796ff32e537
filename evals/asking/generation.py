"""Answers to prompts about images, in batches: generated, or the likeliest of given choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from regaze.evals.asking import sharing
from regaze.evals.asking.batching import out_of_memory
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.encoding import Encoded, Encoder, Refused
from regaze.evals.asking.forcing import forced
from regaze.evals.asking.meter import Meter
from regaze.evals.asking.prompts import Prompter, Question, margin
from regaze.evals.asking.sharing import CannotShareError, Partial
from regaze.hooks.host import find_text


@dataclass(frozen=True)
class Generated:
    """One answer, and the sizes that go with it; the fields are those of `Record`."""

    text: str
    n_prompt_tokens: int
    n_image_tokens: int
    n_new_tokens: int
    finish: Literal["eos", "length"]
    margin: float | None = field(default=None, compare=False)
    losses: tuple[float, ...] | None = field(default=None, compare=False)
    extra: Mapping[str, Any] | None = None


class Answerer:
    """A model and its processor with fixed decoding settings.

    Attributes:
        model: An image-text-to-text model.
        processor: The model's processor, with a chat template.
        decoding: The way tokens are chosen.
        config: The model's own generation settings with those in their place.
        prompter: Makes the model's prompts.
        meter: Counts what answering costs, while it is `Meter.running`.
        ends: Token ids that end an answer.
        yes_no: Token ids of yes and of no; None if the tokenizer writes either in pieces.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.decoding = decoding or Decoding()
        self.config = self.decoding.config(model, max_new_tokens)
        self.prompter = Prompter(processor)
        tower, self._image_ids = find_text(model)
        self.meter = Meter(model, tower)
        context = getattr(tower.config, "max_position_embeddings", None)
        if context is not None and max_new_tokens > context:
            raise ValueError(
                f"answers of up to {max_new_tokens} tokens are longer than the {context} positions "
                "of this model: ask for fewer (--max-new-tokens)"
            )
        pad = cast(int | None, self.config.pad_token_id)
        self._encoder = Encoder(self.prompter, self._image_ids, context, pad or 0)
        ends = self.config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        yes, no = self.prompter.yes_no_ids()
        self.yes_no = (yes, no) if yes and no else None

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Image.Image | None]
    ) -> list[Generated]:
        """Answer one batch: one prompt about one image, or about none, per row.

        Raises:
            ValueError: One can't be asked.
        """
        answers = []
        for answer in self.ask([Question(*pair) for pair in zip(prompts, images, strict=True)]):
            if isinstance(answer, Refused):
                raise ValueError(answer.reason)
            answers.append(answer)
        return answers

    def encode(
        self, prompts: Sequence[str], images: Sequence[Image.Image | None]
    ) -> dict[str, Any]:
        """Model inputs for one user turn per row, left-padded, on the model's device."""
        texts = [
            self.prompter.text(prompt, images=0 if image is None else 1)
            for prompt, image in zip(prompts, images, strict=True)
        ]
        shown = [[] if image is None else [image] for image in images]
        return self._on_device(self.prompter.inputs(texts, shown))

    @property
    def settings(self) -> dict[str, Any]:
        """The decoding settings that differ from transformers' defaults, JSON-able."""
        settings = self.config.to_diff_dict()
        return {k: settings[k] for k in settings if k != "transformers_version" and k[0] != "_"}

    def ask(
        self,
        questions: Sequence[Question],
        *,
        share: bool = False,
        partial: Partial = nullcontext,
        drawing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[Generated | Refused]:
        """Answer one batch; all questions have images or none has, all have choices or none has.

        Args:
            questions: The questions to answer.
            share: Read each image once for all questions about it.
            partial: `regaze.hooks.Attachment.partial_prompt`, where interventions are attached.
            drawing: Fixes what is drawn at random.
        """
        encoded, refused = self.encoded(questions, share)
        found: dict[int, list[Generated]] = {}
        with torch.inference_mode(), drawing():
            for part in encoded:
                with self.meter.answering():
                    answers = self.answer(part, partial)
                for row, answer in zip(part.rows, answers, strict=True):
                    found.setdefault(row.place, []).append(answer)
        return [
            refused[place] if place in refused else _chosen(question, found[place])
            for place, question in enumerate(questions)
        ]

    def why_apart(self, questions: Sequence[Question]) -> str | None:
        """The reason why questions about one image can't share its prefix here; None if they can.

        It is tried out on the plain model: token ids, cache, independence of what follows bit for
        bit, and the logits of the first answer token.

        Args:
            questions: About one image.
        """
        ends = sorted(questions, key=lambda question: len(question.prompt))
        pair = [Question(one.prompt, one.image, "") for one in (ends[0], ends[-1])]
        texts = [self.prompter.text(one.prompt, images=1) for one in pair]
        try:
            real = [self.prompter.inputs([text], [ends[0].images]) for text in texts]
            ids = [inputs["input_ids"][0].tolist() for inputs in real]
            if sharing.splice(self.prompter, texts, ids[0], self._image_ids) != ids:
                raise CannotShareError("its processor doesn't only put the image where it belongs")
            with torch.inference_mode():
                sharing.check_causal(self.model, self._on_device(real[0]))
            apart, shared = (self._first_logits(pair, share) for share in (False, True))
        except CannotShareError as reason:
            return str(reason)
        except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            if out_of_memory(error):
                return "memory ran out when it was tried"
            return f"it can't go on from a prefix ({type(error).__name__}: {error})"
        off = float((apart - shared).norm() / apart.norm())
        most = 1e-3 if self.model.dtype == torch.float32 else 0.1
        return None if off <= most else f"its logits differ by {off:.2g} of their size"

    def _first_logits(self, questions: Sequence[Question], share: bool) -> Tensor:
        with self.meter.running():
            self.ask(questions, share=share)
        logits = cast(Tensor, self.meter.logits).float()
        return logits - logits.mean(-1, keepdim=True)

    def encoded(
        self, questions: Sequence[Question], share: bool
    ) -> tuple[list[Encoded], dict[int, Refused]]:
        """Questions as tensors, and those that can't be asked, by their place."""
        rows = [
            row for place, one in enumerate(questions) for row in self._encoder.rows(place, one)
        ]
        return self._encoder.encode(rows, share)

    def answer(
        self, encoded: Encoded, partial: Partial = nullcontext, stop: StoppingCriteria | None = None
    ) -> list[Generated]:
        """Answer rows that go through the model together.

        Args:
            encoded: The rows.
            partial: `regaze.hooks.Attachment.partial_prompt`, where interventions are attached.
            stop: Says which rows need no more tokens.
        """
        inputs = self._on_device(encoded.inputs)
        if encoded.shared:
            inputs = sharing.begin(self.model, inputs, encoded.shared, self.decoding.beams, partial)
        self.meter.watch()
        answers = [row.answer for row in encoded.rows if row.answer is not None]
        if answers:
            new: list[list[int]] = answers
            losses: list[tuple[float, ...] | None] = [
                (loss,) for loss, _ in forced(self.model, inputs, answers)
            ]
        else:
            stops = None if stop is None else StoppingCriteriaList([stop])
            made = cast(Any, self.model).generate(
                **inputs, generation_config=self.config, stopping_criteria=stops
            )
            new = made[:, inputs["input_ids"].shape[1] :].tolist()
            losses = [None] * len(new)
        odds: list[float | None] = [None] * len(new)
        if self.yes_no and self.meter.logits is not None:
            # Beams are rows of their own; the first of a prompt's speaks for it.
            odds = [*margin(self.meter.logits[:: len(self.meter.logits) // len(new)], *self.yes_no)]
        sizes = zip(encoded.lengths, encoded.images, strict=True)
        return [
            replace(self._generated(tokens, *size), margin=odd, losses=loss)
            for tokens, size, odd, loss in zip(new, sizes, odds, losses, strict=True)
        ]

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return dict(BatchFeature(dict(inputs)).to(self.model.device, dtype=self.model.dtype))

    def _generated(self, tokens: list[int], n_prompt: int, n_image: int) -> Generated:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        if end is not None:
            tokens = tokens[: end + 1]
        return Generated(
            text=self.prompter.tokenizer.decode(tokens, skip_special_tokens=True),
            n_prompt_tokens=n_prompt,
            n_image_tokens=n_image,
            n_new_tokens=len(tokens),
            finish="length" if end is None else "eos",
        )


def _chosen(question: Question, answers: Sequence[Generated]) -> Generated:
    """The answer, or of one per choice the likeliest, with the losses of all."""
    if not question.choices:
        return answers[0]
    losses = tuple(loss for answer in answers for loss in answer.losses or ())
    best = losses.index(min(losses))
    return replace(answers[best], text=question.choices[best], losses=losses, finish="eos")
