"""Items whose answer an intervention flipped: image, both answers and where the model looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from regaze.evals.reports.heats import Heats
from regaze.evals.reports.plots import data_uri
from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.task import Item, QuestionTask
from regaze.interventions import from_dict
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
        tiny: True if the image is to be enlarged in plain pixels, which shows what was painted.
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
        gained: True if it went from wrong to right.
        before: The unedited model's answer.
        after: The edited model's answer.
        viewer: Both conditions' attention, head by head, as HTML; empty where that isn't known.
    """

    item: Item
    gained: bool
    before: Side
    after: Side
    viewer: str = ""

    @property
    def truth(self) -> str:
        """The right answer in words; empty where the prompt says it all."""
        target = self.item.target
        if isinstance(target, Mapping):
            target = target.get("objects", [f"{key}: {value}" for key, value in target.items()])
        return target if isinstance(target, str) else ", ".join(map(str, target or ()))


def flips(
    result: RunResult,
    scores: TaskScores,
    label: str,
    processor: Any = None,
    heats: Heats | None = None,
) -> list[Flip]:
    """The first flipped items of a condition in data order, one per image, both directions.

    Args:
        result: The run.
        scores: The run's scores, which say what flipped.
        label: The condition.
        processor: The model's, which says what it sees of an image; None: all of it.
        heats: Makes attention maps; None leaves them out.

    Raises:
        OSError: An image, or a picture that is an answer, is gone.
    """
    condition = next(c for c in scores.conditions if c.label == label)
    if condition.change is None:
        return []
    items = {item.id: item for item in result.items}
    edited = next(answers for answers in result.answers if answers.label == label)
    specs = [from_dict(spec) for spec in edited.manifest["config"]["interventions"]]
    chosen = [
        (item, gained)
        for gained, ids in ((False, condition.change.lost), (True, condition.change.gained))
        for item in _one_per_image([items[i] for i in ids])[:PER_DIRECTION]
    ]
    layers = heats.layers([item for item, _ in chosen], specs) if heats else {}
    shown = []
    for item, gained in chosen:
        seen = None
        if isinstance(result.task, QuestionTask) and item.image is not None:
            seen = as_seen(result.task.load_image(item), processor)
        before, after = (
            _side(result, answers, item, seen, layers.get(item.id, {}).get(name))
            for name, answers in (("before", result.answers[0]), ("after", edited))
        )
        viewer = ""
        if heats is not None and seen is not None:
            viewer = heats.viewer(item, seen, (result.answers[0].label, label))
        shown.append(Flip(item, gained, before, after, viewer))
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


def as_seen(image: Image.Image, processor: Any) -> Image.Image:
    """A thumbnail of what the model sees of an image, by the rule that CARVE crops by.

    Args:
        image: The whole image.
        processor: The model's; None: all of it is seen.
    """
    box = middle(getattr(processor, "image_processor", None), image.size)
    return _thumbnail(image.crop(box) if box else image)


def _thumbnail(image: Image.Image) -> Image.Image:
    """A copy of the image no larger than the page needs."""
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return image
