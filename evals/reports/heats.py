"""Where a model looks while it answers, for the items that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from regaze.evals.asking.batching import AdaptiveBatches
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import split
from regaze.evals.asking.prompts import Question
from regaze.evals.reports.plots import heat_layers
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.interventions import Intervention

Heat = NDArray[np.float32]


class Heats:
    """Attention maps of a run's items, made by asking again, many at a time.

    Args:
        task: What was asked.
        answerer: Who answers.
    """

    def __init__(self, task: QuestionTask, answerer: Answerer) -> None:
        self._task = task
        self._answerer = answerer
        self._batches = AdaptiveBatches("auto")
        self._plain: dict[str, Heat | None] = {}

    def layers(
        self, items: Sequence[Item], specs: Sequence[Intervention]
    ) -> dict[str, dict[str, str]]:
        """Maps "before" and "after" as data URIs on one scale, by item id.

        Items that no map can be drawn of are left out: without an image, chosen by likelihood (no
        row predicts a token then), with image columns whose grid isn't known, or all where a method
        shows the model another picture than the page does.

        Args:
            items: What was asked.
            specs: Interventions to look with; without them is looked too.

        Raises:
            OSError: An image is gone.
        """
        if split(specs)[1] is not None:
            return {}
        shown = [item for item in items if item.image is not None and not item.choices]
        self._plain |= self._maps([item for item in shown if item.id not in self._plain], ())
        edited = self._maps(shown, specs)
        layers = {}
        for item in shown:
            before, after = self._plain[item.id], edited[item.id]
            if before is not None and after is not None:
                layers[item.id] = heat_layers({"before": before, "after": after})
        return layers

    def _maps(self, items: Sequence[Item], specs: Sequence[Intervention]) -> dict[str, Heat | None]:
        if not items:
            return {}
        return self._batches.ask(items, partial(self._look, specs), lambda item: None)

    def _look(self, specs: Sequence[Intervention], items: Sequence[Item]) -> dict[str, Heat | None]:
        """The rows that choose the answers' tokens, on the picture; None where it has no grid."""
        answerer = self._answerer
        model, processor = answerer.model, answerer.processor
        questions = [Question(item.prompt, self._task.load_image(item)) for item in items]
        encoded, _ = answerer.encoded(questions, share=False)
        found: dict[str, Heat | None] = dict.fromkeys(item.id for item in items)
        with (
            torch.inference_mode(),
            attach(model, *specs, processor=processor),
            capture(model, heads="mean", processor=processor) as seen,
        ):
            for part in encoded:
                length = part.inputs["input_ids"].shape[1]
                for sample, answer in enumerate(answerer.answer(part)):
                    # The row before each token chooses it.
                    end = length - 1 + answer.n_new_tokens
                    with suppress(ValueError):  # The grid can't be known.
                        heat = seen.heat(sample, inputs=part.inputs, before=end)
                        found[items[part.rows[sample].place].id] = heat
        return found
