"""Finding the heads that a method should act on, on a benchmark's items.

By the margin: a method acts on one head after the other, and heads are ranked by how much farther
the right answer then is ahead (PASTA's profiling, `regaze.rank_heads`). By attribution: a model's
own captions are read, and heads are ranked by how much likelier they make the objects that aren't
there than those that are (AD-HH's, `regaze.attribute_heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.evals.analysis.asked import Subject
from regaze.evals.analysis.direct import right_signs
from regaze.evals.analysis.maps import HeadMap, Pairs
from regaze.evals.asking.prompts import margin
from regaze.evals.benchmarks.chair import Chair
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.task import Item, QuestionTask
from regaze.interventions.base import Intervention
from regaze.interventions.lvlm.head_search import Caption, attribute_heads, rank_heads
from regaze.interventions.lvlm.heads import choose_heads

By = Literal["margin", "attribution"]


@dataclass(frozen=True)
class Found:
    """Heads that were found for a method.

    Attributes:
        method: The method's label, as it was given.
        by: The measure that ranks heads.
        model: Name of the model that the heads are of.
        task: The benchmark, in words.
        items: Number of items.
        heads: The best ones, the best first.
        map: The measured value of each.
    """

    method: str
    by: By
    model: str
    task: str
    items: int
    heads: Pairs
    map: HeadMap

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able; a spec's ``heads=@FILE`` reads the heads from it."""
        heads = [list(pair) for pair in self.heads]
        return {**vars(self), "heads": heads, "map": self.map.to_dict()}


def check_task(task: QuestionTask, by: str) -> None:
    """Check that a task's answers can rank heads.

    Args:
        task: The task.
        by: "margin" or "attribution".

    Raises:
        ValueError: They can't; the message says what to ask.
    """
    if by == "attribution":
        _captioned(task)
    elif not task.yes_no:
        raise ValueError(
            f"heads are ranked by the margin between yes and no, and answers to {task.name} are "
            "neither: ask pope, or rank by attribution (chair)"
        )


def _captioned(task: QuestionTask) -> Chair:
    if not isinstance(task, Chair):
        raise ValueError(
            "attribution reads captions of pictures whose objects are known: ask chair, not "
            f"{task.name}"
        )
    return task


def by_margin(
    subject: Subject,
    spec: Intervention,
    *,
    layers: Collection[int] | None = None,
    progress: Progress = quiet,
) -> HeadMap:
    """Gain of the right answer's lead when a method acts on one head.

    Args:
        subject: The model, and questions of yes and no.
        spec: The method; it has a field ``heads``.
        layers: Layers whose heads are tried; by default all that attend.
        progress: Called with runs over the items done and in all.

    Raises:
        ValueError: The questions have no right answers of yes and no, or the method no ``heads``.
    """
    check_task(subject.task, "margin")
    words = subject.answerer.yes_no
    if words is None:
        raise ValueError(
            "heads are ranked by the margin between yes and no, for which this model's tokenizer "
            "has no single tokens: rank by attribution"
        )
    host = subject.host
    _, where = choose_heads(spec.name, host, "all", None if layers is None else tuple(layers))
    runs, done = 1 + len(where) * host.n_heads, 0
    batches = list(subject.batches())
    signs = right_signs([item.target for batch in batches for item in batch.items])

    def score() -> float:
        nonlocal done
        odds = [
            one for batch in batches for one in margin(subject.read(batch).logits[:, -1], *words)
        ]
        done += 1
        progress(spec.label, done, runs)
        return float((signs * torch.tensor(odds, dtype=torch.float64)).mean())

    processor = subject.answerer.processor
    ranking = rank_heads(subject.model, spec, score, layers=layers, processor=processor)
    about = (
        f"Rise of the margin of the right answer when {spec.name} acts on this head alone; mean "
        "over items."
    )
    return HeadMap("margin", f"{spec.name} on one head", "log odds", ranking.scores, about=about)


def by_attribution(subject: Subject, *, progress: Progress = quiet) -> HeadMap:
    """Effect of each head on objects that aren't there, less that on those that are.

    Args:
        subject: The model, and pictures to describe whose objects are known (CHAIR).
        progress: Called with captions made and in all.

    Raises:
        ValueError: The task isn't CHAIR, or captions name nothing that is there, or nothing that
            isn't.
    """
    task = _captioned(subject.task)
    captions = []
    for number, item in enumerate(subject.items, 1):
        captions.append(_caption(subject, task, item))
        progress("captions", number, len(subject.items))
    processor = subject.answerer.processor
    ranking = attribute_heads(subject.model, captions, processor=processor)
    false = sum(len(caption.hallucinated) for caption in captions)
    true = sum(len(caption.true) for caption in captions)
    about = (
        "Log of how much likelier a word is with the head than with its output at zero; mean over "
        f"{false} words for objects that aren't in the picture, less that over {true} for objects "
        "that are."
    )
    title = "What heads do for hallucinated words"
    return HeadMap("attribution", title, "log odds", ranking.scores, about=about)


@torch.inference_mode()
def _caption(subject: Subject, task: Chair, item: Item) -> Caption:
    """The model's caption of a picture, with the places of object words."""
    answerer = subject.answerer
    inputs: Mapping[str, Any] = answerer.encode([item.prompt], [subject.image(item)])
    made = subject.model.generate(
        **inputs, max_new_tokens=task.max_new_tokens, do_sample=False, num_beams=1
    )
    answer = made[0, inputs["input_ids"].shape[1] :]
    truth = task.truth[item.id]

    def mentions(count: int) -> list[str]:
        text = answerer.processor.tokenizer.decode(answer[:count], skip_special_tokens=True)
        return [mention.name for mention in task.find(text).mentions]

    places = _places(mentions, answer)
    # The first token has no decode step that predicts it.
    known = {place: name for place, name in places.items() if place > 0}
    return Caption(
        inputs,
        answer,
        hallucinated=[place for place, name in known.items() if name not in truth],
        true=[place for place, name in known.items() if name in truth],
    )


def _places(mentions: Callable[[int], list[str]], answer: Tensor) -> dict[int, str]:
    """The token that completes each object word, and the object.

    Args:
        mentions: The objects that so many first tokens name, in order.
        answer: Token ids.
    """
    found: dict[int, str] = {}
    settled = mentions(len(answer))
    for count in range(len(answer), 0, -1):
        # From the end on: the k-th word is complete where it still is what it ends up as.
        now = mentions(count - 1)
        kept = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(now, settled)))  # noqa: B905
        for name in settled[kept:]:
            found[count - 1] = name
        settled = settled[:kept]
    return dict(sorted(found.items()))
