"""Training batches: scenes as pixels, patch labels, and question and caption segments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regaze.evals.sandbox.build import IMAGE_TOKENS, PATCH, PIXEL_MEAN, PIXEL_STD
from regaze.evals.sandbox.drawing import COLOURS, SIZE, Object
from regaze.evals.sandbox.scenes import SHAPES, Scene, scene
from regaze.evals.sandbox.text import CAPTION_PROMPT, LONG_CAPTION_PROMPT, caption, question

QUESTIONS = 6
"""Questions per image; one caption comes on top."""
P_BLANK = 0.10
"""Share of images replaced by an empty or noisy one, which leaves only the prior to answer from."""
P_HIDDEN = 0.05
"""Share of samples whose text can't see the image columns."""
IGNORE = -100

_HEAD = ("<s>", "user", ":")
PREFIX = len(_HEAD) + IMAGE_TOKENS
"""Length of what all segments of a sequence share: ``<s> user :`` and the image."""
IMAGE = slice(len(_HEAD), PREFIX)
_QUESTION_LENGTH = 13
_CAPTION_LENGTH = 31


@dataclass(frozen=True)
class Pictures:
    """Images and what their patches show.

    Attributes:
        pixels: ``(B, 3, 64, 64)``, normalised as the image processor does.
        kinds: ``(B, 64, 2)``, shape and colour number of each patch from 1; 0 is background.
        border: ``(B, 64)``, patches that lie wholly in the letterbox border.
    """

    pixels: Tensor
    kinds: Tensor
    border: Tensor


@dataclass(frozen=True)
class Texts:
    """Segments behind a shared image prefix.

    Every segment (a question or a caption, with its answer) sees the prefix and itself, so one
    encoding of the image serves all of them and each is what it would be alone.

    Attributes:
        tokens: ``(B, L)``; the image's places hold ``<image>``.
        labels: ``(B, L)``, the answers' tokens at their own places, ``IGNORE`` elsewhere.
        positions: ``(B, L)``; every segment counts on from the prefix.
        visible: ``(B, 1, L, L)``, whether a row may attend to a column.
        answerable: ``(B,)``, whether the text sees the scene (image not blank, columns not hidden).
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    visible: Tensor
    answerable: Tensor


def train_scenes(first: int, count: int) -> list[Scene]:
    """Scenes ``first`` to ``first + count - 1`` of the training split."""
    return [scene("train", index) for index in range(first, first + count)]


def pictures(scenes: Sequence[Scene]) -> Pictures:
    """Renders scenes and labels their patches."""
    pixels = np.stack([np.asarray(s.image, dtype=np.float32) for s in scenes])
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - PIXEL_MEAN) / PIXEL_STD
    kinds = torch.from_numpy(np.stack([_patch_kinds(s.objects) for s in scenes]))
    border = torch.from_numpy(np.stack([_border_patches(s) for s in scenes]))
    return Pictures(normalised, kinds, border)


def _patch_kinds(objects: Sequence[Object]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    grid = SIZE // PATCH
    y, x = np.mgrid[:grid, :grid] * PATCH + PATCH / 2
    kinds = np.zeros((grid, grid, 2), np.int64)
    for item in objects:
        inside = np.hypot(x - item.cx, y - item.cy) < item.r + 1
        kinds[inside] = SHAPES.index(item.shape) + 1, tuple(COLOURS).index(item.colour) + 1
    return kinds.reshape(-1, 2)


def _border_patches(s: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    left, top, right, bottom = s.content
    start = np.arange(0, SIZE, PATCH)
    columns = (start + PATCH <= left) | (start >= right)
    rows = (start + PATCH <= top) | (start >= bottom)
    return (rows[:, None] | columns[None, :]).reshape(-1)


def texts(
    scenes: Sequence[Scene],
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    blank: Sequence[bool],
) -> Texts:
    """Draws questions and captions for each scene.

    Args:
        scenes: The batch.
        tokenizer: The sandbox's.
        rng: Decides on questions, order of objects and hidden image columns.
        blank: The images that will not show their scene.
    """
    prompts: list[str] = []
    answers: list[str] = []
    for s in scenes:
        drawn = [draw_question(s.objects, rng) for _ in range(QUESTIONS)]
        prompts += [f"{question(phrase)} ASSISTANT:" for phrase, _ in drawn]
        answers += ["yes</s>" if present else "no</s>" for _, present in drawn]
        phrases = [item.phrase for item in s.objects]
        rng.shuffle(phrases)
        prompts.append(f"{rng.choice((CAPTION_PROMPT, LONG_CAPTION_PROMPT))} ASSISTANT:")
        answers.append(f"{caption(phrases)}</s>")
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]

    starts = [PREFIX + i * _QUESTION_LENGTH for i in range(QUESTIONS + 1)]
    length = starts[-1] + _CAPTION_LENGTH
    tokens = torch.full((len(scenes), length), tokenizer.pad_token_id)
    labels = torch.full_like(tokens, IGNORE)
    tokens[:, :PREFIX] = torch.tensor(
        tokenizer.convert_tokens_to_ids([*_HEAD, *["<image>"] * IMAGE_TOKENS])
    )
    for i, (prompt, answer) in enumerate(zip(prompt_ids, answer_ids, strict=True)):
        row, segment = divmod(i, QUESTIONS + 1)
        middle = starts[segment] + len(prompt)
        end = middle + len(answer)
        tokens[row, starts[segment] : end] = torch.tensor(prompt + answer)
        labels[row, middle:end] = torch.tensor(answer)

    hidden = torch.tensor([rng.random() < P_HIDDEN for _ in scenes])
    dropped = hidden & torch.tensor([rng.random() < 0.5 for _ in scenes])
    positions, visible = _layout(starts, length)
    positions = positions.repeat(len(scenes), 1)
    # A prompt without image is the same columns hidden, at the positions of a shorter prompt.
    positions[:, PREFIX:] -= IMAGE_TOKENS * dropped[:, None]
    visible = visible.repeat(len(scenes), 1, 1, 1)
    visible[:, :, PREFIX:, IMAGE] &= ~hidden[:, None, None, None]
    return Texts(tokens, labels, positions, visible, ~(hidden | torch.tensor(blank)))


def _layout(starts: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Positions ``(L,)`` and visibility ``(1, L, L)`` of a prefix with segments behind it."""
    positions = torch.arange(length)
    segment = torch.zeros(length, dtype=torch.long)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True), 1):
        positions[start:end] = PREFIX + torch.arange(end - start)
        segment[start:end] = number
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (segment[:, None] == segment) | (segment == 0)
    return positions, (causal & same)[None]


def draw_question(objects: Sequence[Object], rng: random.Random) -> tuple[str, bool]:
    """A phrase to ask for and whether it is there: even odds, uniform or near-miss negatives.

    Negatives are not balanced against the prior, so what often occurs is often rightly affirmed
    and the model learns to expect it.
    """
    present = {item.phrase for item in objects} | {item.shape for item in objects}
    if rng.random() < 0.5:
        item = rng.choice(objects)
        return (item.phrase if rng.random() < 0.75 else item.shape), True
    while True:
        shape, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
        style = rng.random()
        if style < 0.20:
            phrase = shape
        elif style < 0.55:
            phrase = f"{colour} {shape}"
        elif style < 0.85:
            phrase = f"{colour} {rng.choice(objects).shape}"
        else:
            phrase = f"{rng.choice(objects).colour} {shape}"
        if phrase not in present:
            return phrase, False


def blank_pixels(count: int, generator: torch.Generator) -> Tensor:
    """Images of one grey with more or less noise: ``(count, 3, 64, 64)``, normalised."""
    level = torch.rand(count, 1, 1, 1, generator=generator) * 2.0 - 2.0
    spread = torch.rand(count, 1, 1, 1, generator=generator) * 0.5
    return level + spread * torch.randn(count, 3, SIZE, SIZE, generator=generator)
