"""Items whose answer an intervention flipped: image, both answers and where the model looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.asking.generation import Answerer
from regaze.evals.reports.plots import data_uri, heat_layers
from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.interventions import Intervention, from_dict
from regaze.interventions.lvlm.carve_regions import middle

PER_DIRECTION = 6
_SIDE = 336
_TINY = 128


@dataclass(frozen=True)
class Side:
    """One of the two answers to a flipped item.

    Attributes:
        answer: In words.
        image: Data URI of the item's image as the model saw it (cropped, where its processor
            crops), or of the picture that is the answer; None for a question about no image.
        heat: Data URI of the attention map to lay over the image; None if there is none.
        tiny: Whether the image is to be enlarged in plain pixels, which shows what was painted.
    """

    answer: str
    image: str | None = None
    heat: str | None = None
    tiny: bool = False


@dataclass(frozen=True)
class Flip:
    """One flipped item, ready to show.

    Attributes:
        item: The item.
        gained: Whether it went from wrong to right.
        before: The unedited model's answer.
        after: The edited model's answer.
    """

    item: Item
    gained: bool
    before: Side
    after: Side

    @property
    def truth(self) -> str:
        """What is right, in words; empty where the prompt says it all."""
        target = self.item.target
        if isinstance(target, Mapping):
            target = target.get("objects", [f"{key}: {value}" for key, value in target.items()])
        return target if isinstance(target, str) else ", ".join(map(str, target or ()))


def flips(
    result: RunResult, scores: TaskScores, label: str, answerer: Answerer | None
) -> list[Flip]:
    """The first flipped items of a condition in data order, one per image, both directions.

    Args:
        result: The run.
        scores: Its scores, which say what flipped.
        label: The condition.
        answerer: Makes attention maps by asking again; None leaves them out.

    Raises:
        OSError: An image, or a picture that is an answer, is gone.
    """
    condition = next(c for c in scores.conditions if c.label == label)
    if condition.change is None:
        return []
    items = {item.id: item for item in result.items}
    edited = next(answers for answers in result.answers if answers.label == label)
    specs = [from_dict(spec) for spec in edited.manifest["config"]["interventions"]]
    shown = []
    task = result.task
    flipped = condition.change
    for gained, ids in ((False, flipped.lost), (True, flipped.gained)):
        for item in _one_per_image([items[i] for i in ids])[:PER_DIRECTION]:
            image = None
            if isinstance(task, QuestionTask) and item.image is not None:
                image = task.load_image(item)
            # What is chosen by likelihood has no tokens whose rows could be looked at.
            drawn = answerer if not item.choices else None
            heats = _heats(drawn, item, image, specs) if drawn and image else {}
            seen = as_seen(image, answerer.processor if answerer else None) if image else None
            before, after = (
                _side(result, answers, item, seen, heats.get(name))
                for name, answers in (("before", result.answers[0]), ("after", edited))
            )
            shown.append(Flip(item, gained, before, after))
    return shown


def _side(
    result: RunResult, answers: Answers, item: Item, seen: Image.Image | None, heat: str | None
) -> Side:
    text = result.task.told(item, answers.records[item.id].text)
    painted = result.task.picture(item, answers.folder)
    image = _thumbnail(painted) if painted else seen
    tiny = painted is not None and max(painted.size) < _TINY
    return Side(text, data_uri(image) if image else None, heat, tiny)


def _one_per_image(items: Sequence[Item]) -> list[Item]:
    """The first of each image, or of each cluster of items without one."""
    first = {item.image or item.cluster: item for item in reversed(items)}
    return list(first.values())[::-1]


def _heats(
    answerer: Answerer, item: Item, image: Image.Image, specs: Sequence[Intervention]
) -> dict[str, str]:
    """Where the rows that choose the answer's tokens look, without and with the interventions."""
    try:
        maps = {
            "before": _heat(answerer, item, image, ()),
            "after": _heat(answerer, item, image, specs),
        }
    except ValueError:
        # The model's image columns don't form a known grid, so there is no map to draw.
        return {}
    return heat_layers(maps)


def _heat(
    answerer: Answerer, item: Item, image: Image.Image, specs: Sequence[Intervention]
) -> NDArray[np.float32]:
    with ExitStack() as stack:
        stack.enter_context(attach(answerer.model, *specs, processor=answerer.processor))
        seen = stack.enter_context(capture(answerer.model, processor=answerer.processor))
        answerer([item.prompt], [image])
        return seen.heat()


def as_seen(image: Image.Image, processor: Any) -> Image.Image:
    """A thumbnail of what the model sees of an image, by the rule that CARVE crops by.

    Args:
        image: The whole image.
        processor: The model's; None: all of it is seen.
    """
    box = middle(getattr(processor, "image_processor", None), image.size)
    return _thumbnail(image.crop(box) if box else image)


def _thumbnail(image: Image.Image) -> Image.Image:
    """No larger than the page needs."""
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return image
