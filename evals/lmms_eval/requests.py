"""Requests of lmms-eval as prompts and decoding settings of transformers. Nothing here needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import GenerationConfig, PreTrainedModel

from regaze.evals.asking.decoding import Decoding
from regaze.evals.benchmarks.data import open_image
from regaze.evals.runs.conditions import Condition
from regaze.hooks.checks import unknown
from regaze.interventions import Intervention

MARK = "<image>"
"""The mark of an image inside a text of lmms-eval's tasks, whatever the model's own token is."""

# What lmms-eval's own models generate at most where a task doesn't say.
_MAX_NEW_TOKENS = 1024
# A hint to the first LLaVA's own preprocessing; here the model's processor decides.
_IGNORED = {"image_aspect_ratio"}
_KNOWN = {
    "max_new_tokens",
    "max_gen_toks",
    "temperature",
    "do_sample",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
    "until",
} | _IGNORED


@dataclass(frozen=True)
class Prompt:
    """A conversation for a chat template, and the images that its placeholders stand for.

    Attributes:
        messages: Turns as transformers takes them; an image is ``{"type": "image"}``.
        images: RGB, in reading order.
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[Image.Image]


def from_context(text: str, visuals: Sequence[Any] | None, where: str) -> Prompt:
    """The prompt of a request in lmms-eval's simple form: a text and what is shown with it.

    Args:
        text: May hold `MARK` for each image; without marks the images come first.
        visuals: PIL images, as ``doc_to_visual`` gives them.
        where: Task and document, for errors.

    Raises:
        ValueError: Something other than images is shown, or the marks don't fit the images.
    """
    images = []
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise ValueError(_only_images(where, "a video or audio file", visual))
        images.append(visual.convert("RGB"))
    return Prompt([{"role": "user", "content": _place(text, len(images), where)}], images)


def from_messages(messages: Sequence[Mapping[str, Any]], where: str) -> Prompt:
    """The prompt of a request in lmms-eval's chat form.

    Args:
        messages: ``{"role": ..., "content": [{"type": "text" | "image", ...}]}`` each; an image
            stands under ``url`` as a PIL image or a file's path. `MARK` in a text is where the
            message's images go.
        where: Task and document, for errors.

    Raises:
        ValueError: As in `from_context`.
        OSError: An image's file is missing or unreadable.
    """
    turns, images = [], []
    for message in messages:
        content: list[dict[str, str]] = []
        shown = 0
        given = message["content"]
        for part in [{"type": "text", "text": given}] if isinstance(given, str) else given:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                content.append({"type": "image"})
                images.append(_image(part["url"], where))
                shown += 1
            else:
                raise ValueError(_only_images(where, f"{part['type']} content", part.get("url")))
        text = "".join(part.get("text", "") for part in content)
        if MARK in text:
            content = _place(text, shown, where)
        turns.append({"role": message["role"], "content": content})
    return Prompt(turns, images)


def generation(model: PreTrainedModel, given: Mapping[str, Any]) -> GenerationConfig:
    """A model's generation settings with a request's ``generation_kwargs``; greedy by default.

    A temperature, or ``do_sample`` alone, means sampling; a temperature of zero or ``do_sample:
    false`` means not to, and then nothing random counts.

    Raises:
        ValueError: A setting that isn't known, with the nearest names, or out of its domain.
    """
    for key in given:
        if key not in _KNOWN:
            raise ValueError(unknown("generation setting", key, _KNOWN))
    temperature = given.get("temperature")
    sampled = bool(given.get("do_sample", temperature)) and temperature != 0
    decoding = Decoding(
        beams=given.get("num_beams") or 1,
        temperature=(temperature or 1.0) if sampled else None,
        top_p=given.get("top_p") or None if sampled else None,
        top_k=given.get("top_k") or None if sampled else None,
    )
    limit = given.get("max_new_tokens") or given.get("max_gen_toks") or _MAX_NEW_TOKENS
    config = decoding.config(model, int(limit))
    if given.get("repetition_penalty") is not None:
        config.repetition_penalty = given["repetition_penalty"]
    return config


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The answer before the first of the stop strings."""
    stops = [until] if isinstance(until, str) else until or ()
    return text[
        : min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=None)
    ]


def interventions(text: str) -> tuple[Intervention, ...]:
    """Read the model argument ``intervention``: ``none``, ``var:p=0.6`` or ``var+pai``.

    Arguments are cut at commas, so a spec with several fields comes in quotes, which stay on it:
    ``intervention="vhr:alpha=2,layers=[2,3]"``.

    Raises:
        ValueError: An unknown method or field, with the nearest names; or a method without a
            field that it needs.
    """
    quoted = re.fullmatch(r"""\s*(["'])(.*)\1\s*""", text)
    condition = Condition.parse(quoted[2] if quoted else text)
    condition.check_given()
    if condition.image != "given":
        raise ValueError(
            f"intervention {text!r} asks for another image, but lmms-eval chooses the images: "
            "use `regaze eval` for controls with wrong or blank ones"
        )
    return condition.specs


def _place(text: str, images: int, where: str) -> list[dict[str, str]]:
    """Text and placeholders in reading order."""
    pieces = text.split(MARK)
    if len(pieces) == 1:
        return [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    if len(pieces) - 1 != images:
        raise ValueError(f"{where}: the text marks {len(pieces) - 1} images, but shows {images}")
    content = []
    for number, piece in enumerate(pieces):
        if number:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return content


def _image(given: Any, where: str) -> Image.Image:
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if isinstance(given, str):
        return open_image(Path(given))
    raise ValueError(_only_images(where, "no image", given))


def _only_images(where: str, what: str, given: Any) -> str:
    shown = f" ({given:.60})" if isinstance(given, str) else ""
    return f"{where} shows {what}{shown}; regaze_hf answers questions about images and texts only"
