"""Attention maps of a model's answers, for the items that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.asking.batching import AdaptiveBatches
from regaze.evals.asking.encoding import Encoded
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import split
from regaze.evals.asking.prompts import Question
from regaze.evals.reports.plots import heat_layers
from regaze.evals.reports.seen import head_maps
from regaze.evals.reports.viewer import Heads, Side, element
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.hooks.host import find_host
from regaze.interventions import Intervention

Heat = NDArray[np.float32]

ON_PICTURE = "of attention on the picture"
PAGE = 6_000_000
"""Bytes of maps of single heads in a page; items beyond show the mean over all heads alone."""
_HELD = 256_000_000
"""Bytes that may be captured at a time."""


@dataclass(frozen=True)
class _Seen:
    """Attention on an item: the mean over all heads, and each head's map where it is kept."""

    heat: Heat
    heads: Heads | None = None
    maps: NDArray[np.float32] | None = None


class Heats:
    """Attention maps of a run's items, made by asking again, many at a time.

    Args:
        task: The benchmark that was asked.
        answerer: Who answers.
    """

    def __init__(self, task: QuestionTask, answerer: Answerer) -> None:
        self._task = task
        self._answerer = answerer
        self._batches = AdaptiveBatches("auto")
        self._plain: dict[str, _Seen | None] = {}
        self._edited: dict[str, _Seen | None] = {}
        self._left = PAGE

    def layers(
        self, items: Sequence[Item], specs: Sequence[Intervention]
    ) -> dict[str, dict[str, str]]:
        """Maps "before" and "after" as data URIs on one scale, by item id.

        Items that no map can be drawn of are left out: without an image, chosen by likelihood (no
        row predicts a token then), with image columns whose grid isn't known, or all where a method
        shows the model another picture than the page does.

        Args:
            items: The items that were asked.
            specs: Interventions to look with; without them is looked too.

        Raises:
            OSError: An image is gone.
        """
        if split(specs)[1] is not None:
            return {}
        shown = [item for item in items if item.image is not None and not item.choices]
        self._plain |= self._maps([item for item in shown if item.id not in self._plain], ())
        self._edited = self._maps(shown, specs)
        layers = {}
        for item in shown:
            before, after = self._plain[item.id], self._edited[item.id]
            if before is not None and after is not None:
                layers[item.id] = heat_layers({"before": before.heat, "after": after.heat})
        return layers

    def viewer(self, item: Item, picture: Image.Image, titles: tuple[str, str]) -> str:
        """An item of the last `layers` head by head, as HTML; empty where that isn't kept.

        Args:
            item: The item.
            picture: The picture that the model saw.
            titles: The conditions.
        """
        both = (self._plain.get(item.id), self._edited.get(item.id))
        sides, heads = [], None
        for title, seen in zip(titles, both, strict=True):
            if seen is None or seen.maps is None or seen.heads is None:
                return ""
            heads, shares = seen.heads, seen.maps.sum((2, 3))
            sides.append(Side(title, picture, ("whole answer",), seen.maps, shares))
        size = sum(side.size for side in sides)
        if heads is None or size > self._left:
            return ""
        self._left -= size
        return element(heads, sides, ON_PICTURE)

    def _maps(
        self, items: Sequence[Item], specs: Sequence[Intervention]
    ) -> dict[str, _Seen | None]:
        if not items:
            return {}
        return self._batches.ask(items, partial(self._look, specs), lambda item: None)

    def _look(
        self, specs: Sequence[Intervention], items: Sequence[Item]
    ) -> dict[str, _Seen | None]:
        """The rows that choose the answers' tokens, on the picture; None where it has no grid."""
        answerer = self._answerer
        model, processor = answerer.model, answerer.processor
        questions = [Question(item.prompt, self._task.load_image(item)) for item in items]
        encoded, _ = answerer.encoded(questions, share=False)
        found: dict[str, _Seen | None] = dict.fromkeys(item.id for item in items)
        single = all(self._fits(part) for part in encoded)
        with (
            torch.inference_mode(),
            attach(model, *specs, processor=processor),
            capture(model, heads=None if single else "mean", processor=processor) as seen,
        ):
            for part in encoded:
                length = part.inputs["input_ids"].shape[1]
                for sample, answer in enumerate(answerer.answer(part)):
                    # The row before each token chooses it.
                    end = length - 1 + answer.n_new_tokens
                    with suppress(ValueError):  # The grid can't be known.
                        heat = seen.heat(sample, inputs=part.inputs, before=end)
                        kept: tuple[Heads | None, NDArray[np.float32] | None] = (None, None)
                        if single:
                            heads, maps = head_maps(seen, part.inputs, sample, end)
                            kept = (heads, maps.mean(0, keepdims=True))
                        found[items[part.rows[sample].place].id] = _Seen(heat, *kept)
        return found

    def _fits(self, part: Encoded) -> bool:
        """True if every head's rows of a batch may be held while its answers are made."""
        host = find_host(self._answerer.model, self._answerer.processor)
        batch, columns = part.inputs["input_ids"].shape
        tokens = int(self._answerer.config.max_new_tokens or 1)
        heads = len(host.sites) * host.n_heads
        return 4 * batch * tokens * heads * (columns + tokens) <= _HELD
