"""Run a model as it is and with methods, and gather what there is to see."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from regaze.evals.asking.models import Loaded
from regaze.evals.asking.once import Asked, ask
from regaze.evals.pictures.once import Painted, paint
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.play.following import Job, News
from regaze.evals.play.models import Shelf
from regaze.evals.reports.seen import head_maps, within
from regaze.evals.reports.viewer import Heads, Side, element
from regaze.hooks.attach import attach
from regaze.hooks.diffusion.head_maps import HeadMaps
from regaze.hooks.report import Report
from regaze.interventions.base import Intervention

PLAIN = "plain"
ON_PICTURE = "of attention on the picture"
ON_WORDS = "of attention on the words"
BUDGET = 1_500_000
"""Bytes of maps of one condition in a page; tokens and words beyond are left out."""

_FINEST = 24
_MOST_WORDS = 12


@dataclass(frozen=True)
class Request:
    """A user's request.

    Attributes:
        model: Name of the model.
        prompt: The question, or what to paint.
        specs: Methods, in the order in which they act; none: the model as it is.
        picture: The picture that a question is about.
        max_new_tokens: Longest answer.
        seed: Number of the painting among those of its prompt.
        arguments: Arguments of the pipeline's call.
    """

    model: str
    prompt: str
    specs: tuple[Intervention, ...] = ()
    picture: Image.Image | None = None
    max_new_tokens: int = 64
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def edited(self) -> str:
        """The name of the edited condition."""
        return "+".join(spec.name for spec in self.specs)


@dataclass(frozen=True)
class Answer:
    """The answer of a condition.

    Attributes:
        title: The condition.
        text: In words; empty for a painting.
        margin: Log of the odds of yes to no at the first token, where the tokenizer has both.
        picture: The painting.
    """

    title: str
    text: str = ""
    margin: float | None = None
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Result:
    """All there is to see of a run.

    Attributes:
        answers: Plain and, where methods were asked for, edited.
        report: The report of the methods.
        viewer: The attention, as HTML; empty where there is none to see.
        unseen: Why there is none, or not of all.
    """

    answers: tuple[Answer, ...]
    report: Report
    viewer: str
    unseen: str = ""


def run(shelf: Shelf, request: Request, job: Job) -> Result:
    """Open the model and answer.

    Raises:
        ValueError: Something doesn't fit; it is said before anything is answered where possible.
        Stopped: Somebody stopped it.
    """
    if not request.prompt.strip():
        raise ValueError("nothing is asked: write a question, or what to paint")
    for spec in request.specs:
        spec.check_given()
    job.tell(News(f"opening {request.model}"))
    opened = shelf.open(request.model)
    job.turn(opened.lock)
    try:
        if isinstance(opened.loaded, LoadedPipeline):
            return _painted(opened.loaded, request, job)
        return _answered(opened.loaded, request, job)
    finally:
        opened.lock.release()


def _conditions(request: Request) -> list[tuple[str, tuple[Intervention, ...]]]:
    edited = [(request.edited, request.specs)] if request.specs else []
    return [(PLAIN, ()), *edited]


def _answered(loaded: Loaded, request: Request, job: Job) -> Result:
    attached = [spec for spec in request.specs if spec.stage == "attention"]
    with attach(loaded.model, *attached, processor=loaded.processor):
        pass  # What doesn't fit is refused before the plain model answers.
    conditions, answers, found = _conditions(request), [""] * 2, []
    for number, (title, specs) in enumerate(conditions):
        job.tell(News(f"{title}: reading the prompt", number / len(conditions), tuple(answers)))

        def told(text: str, tokens: int, number: int = number, title: str = title) -> None:
            answers[number] = text
            done = (number + min(1, tokens / request.max_new_tokens)) / len(conditions)
            job.tell(News(f"{title}: {tokens} tokens", done, tuple(answers)))

        found.append(
            ask(
                loaded,
                request.prompt,
                request.picture,
                specs,
                max_new_tokens=request.max_new_tokens,
                look=request.picture is not None,
                told=told,
            )
        )
    viewer, unseen = "", "" if request.picture else "there is no picture to look at"
    if request.picture is not None:
        try:
            viewer = _look([title for title, _ in conditions], found, loaded)
        except ValueError as error:
            unseen = " ".join(str(error).split())
    said = tuple(
        Answer(title, one.answer.text, one.answer.margin)
        for (title, _), one in zip(conditions, found, strict=True)
    )
    return Result(said, found[-1].report, viewer, unseen)


def _look(titles: Sequence[str], found: Sequence[Asked], loaded: Loaded) -> str:
    """The viewer of answers.

    Raises:
        ValueError: The model's patches can't be laid over the picture.
    """
    from regaze.evals.reports.gallery import as_seen

    sides, heads = [], None
    for title, one in zip(titles, found, strict=True):
        if one.seen is None or one.picture is None:
            raise ValueError("nothing was looked at")
        end = one.inputs.inputs["input_ids"].shape[1] - 1 + one.answer.n_new_tokens
        heads, maps = head_maps(one.seen, one.inputs.inputs, before=end)
        tokenizer = loaded.processor.tokenizer
        names = [tokenizer.decode([token]).strip() or "␣" for token in one.tokens]
        looks, maps = within(BUDGET, maps, names)
        shown = as_seen(one.picture, loaded.processor)
        sides.append(Side(title, shown, looks, maps, maps.sum((2, 3))))
    if heads is None:
        raise ValueError("nothing was looked at")
    return element(heads, sides, ON_PICTURE)


def _painted(loaded: LoadedPipeline, request: Request, job: Job) -> Result:
    with attach(loaded.pipeline, *request.specs):
        pass
    settings = Painter(loaded.pipeline, {**loaded.arguments, **request.arguments}).settings
    steps = int(settings.get("num_inference_steps") or 1)
    conditions, found = _conditions(request), []
    words = tuple(dict.fromkeys(re.findall(r"[^\W\d_][\w'-]*", request.prompt)))[:_MOST_WORDS]
    for number, (title, specs) in enumerate(conditions):
        job.tell(News(f"{title}: painting", number / len(conditions)))

        def told(step: int, number: int = number, title: str = title) -> None:
            done = (number + (step + 1) / steps) / len(conditions)
            job.tell(News(f"{title}: step {step + 1} of {steps}", min(1, done)))

        found.append(
            paint(
                loaded,
                Shot(request.prompt, request.seed),
                specs,
                request.arguments,
                words=words,
                told=told,
                pulse=job.check,
            )
        )
    answers = tuple(
        Answer(title, picture=one.picture.image)
        for (title, _), one in zip(conditions, found, strict=True)
    )
    viewer, unseen = _look_at_words([title for title, _ in conditions], found)
    return Result(answers, found[-1].report, viewer, unseen)


def _look_at_words(titles: Sequence[str], found: Sequence[Painted]) -> tuple[str, str]:
    """The viewer of paintings, and why some of it is missing."""
    why = {title: _unseen(one) for title, one in zip(titles, found, strict=True)}
    unseen = "; ".join(f"{title}: {said}" for title, said in why.items() if said)
    looked = [(t, one) for t, one in zip(titles, found, strict=True) if one.seen and one.seen.read]
    if not looked:
        return "", unseen or "no layer is known to see the text"
    # Only layers that every condition shows can stand side by side.
    shared = set.intersection(*({s.name for s in cast(HeadMaps, o.seen).read} for _, o in looked))
    first = cast(HeadMaps, looked[0][1].seen)
    sites = [site for site in first.read if site.name in shared]
    heads = Heads(tuple(site.name for site in sites), tuple(site.heads for site in sites))
    finest = max(max(first.mean(site).shape[-2:]) for site in sites)
    largest = next(
        first.mean(site).shape[-2:] for site in sites if finest in first.mean(site).shape
    )
    scale = min(1.0, _FINEST / finest)
    size = tuple(max(1, round(scale * side)) for side in largest)
    sides = []
    for title, one in looked:
        seen = cast(HeadMaps, one.seen)
        pooled = [
            torch.nn.functional.interpolate(seen.mean(site), size, mode="area") for site in sites
        ]
        maps = torch.cat(pooled).transpose(0, 1).numpy().astype(np.float32)
        kept = max(1, BUDGET // maps[0].size - 1)
        looks = ("all words", *seen.words[:kept])
        shown = np.concatenate([maps.mean(0, keepdims=True), maps[:kept]])
        sides.append(Side(title, one.picture.image, looks, shown, shown.mean((2, 3))))
    return element(heads, sides, ON_WORDS), unseen


def _unseen(one: Painted) -> str:
    if one.unseen or one.seen is None:
        return one.unseen
    if not one.seen.words:
        return "which tokens are which words of the prompt isn't known for this pipeline"
    if one.seen.read:
        return ""
    return next(iter(one.seen.why_not.values()), "no layer was read")
