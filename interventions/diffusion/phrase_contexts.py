"""Contexts of a prompt in which phrases stand as they are encoded by themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.hooks.diffusion.text import Prompt

_WORD = re.compile(r"[\w'-]+")
Made = list[tuple[Tensor | None, Tensor | None, Tensor]]
"""Contexts of keys and of values "S L C" (None: the prompts' own), and each sample's share "S"."""


@dataclass(frozen=True)
class Aligned:
    """A phrase in its prompt.

    Attributes:
        columns: Places of its tokens in the prompt, once for each time that it occurs.
        embeddings: Embeddings of the phrase alone, "tokens C".
    """

    columns: tuple[tuple[int, ...], ...]
    embeddings: Tensor

    def put(self, context: Tensor) -> Tensor:
        """A prompt's embeddings "L C" with the phrase's own in their place."""
        found = context.clone()
        for columns in self.columns:
            found[list(columns)] = self.embeddings.to(context)
        return found


def contexts(base: Tensor, samples: Sequence[Sequence[Aligned]], keys: str) -> Made:
    """The contexts that prompts read, attention call by attention call.

    Args:
        base: Their embeddings "S L C".
        samples: The phrases of each.
        keys: See `StructuredDiffusion`.
    """
    ones = base.new_ones(len(base))
    if keys == "prompt":
        mean = [
            torch.stack([x, *(phrase.put(x) for phrase in phrases)]).mean(0)
            for x, phrases in zip(base, samples, strict=True)
        ]
        return [(None, torch.stack(mean), ones)]
    merged = torch.stack([_merged(x, s) for x, s in zip(base, samples, strict=True)])
    made: Made = [(None, merged if keys == "phrases" else None, ones)]
    for number in range(max(map(len, samples), default=0)):
        context = torch.stack(
            [s[number].put(x) if number < len(s) else x for x, s in zip(base, samples, strict=True)]
        )
        # Samples of fewer phrases don't count what fills their lists up.
        share = base.new_tensor([float(number < len(s)) for s in samples])
        made.append((context, merged if keys == "phrases" else context, share))
    whole = torch.stack([share for _, _, share in made]).sum(0)
    return [(key, value, share / whole) for key, value, share in made]


def aligned(prompt: Prompt, phrase: str, encoded: Tensor) -> Aligned:
    """A phrase's own embeddings and its columns in a prompt.

    Args:
        prompt: As the encoder reads it.
        phrase: The phrase.
        encoded: The phrase, encoded by itself: "L C", its first token behind the one that begins.

    Raises:
        ValueError: As `columns_of`.
    """
    columns = columns_of(prompt, phrase)
    return Aligned(columns, encoded[1 : 1 + len(columns[0])])


def columns_of(prompt: Prompt, phrase: str) -> tuple[tuple[int, ...], ...]:
    """The columns of a phrase in a prompt, once for each time that it occurs, equally many.

    Raises:
        ValueError: The prompt doesn't hold the phrase, or cuts it off, or reads it as other tokens.
    """
    found = prompt.find(phrase)
    if not found:
        raise ValueError(
            f"structured_diffusion: {phrase!r} isn't in the prompt {prompt.text!r}, or is cut off "
            f"at the encoder's length; its tokens are {prompt.listed()}"
        )
    lengths = {len(columns) for columns in found}
    if len(lengths) > 1 or any(c != list(range(c[0], c[0] + len(c))) for c in found):
        raise ValueError(
            f"structured_diffusion: {phrase!r} is {sorted(lengths)} tokens in {prompt.text!r}, so "
            "it can't be aligned; leave it out"
        )
    return tuple(map(tuple, found))


def other_spans(prompt: str, phrases: Sequence[str]) -> list[str]:
    """Spans of a prompt that aren't its phrases, drawn at random, but the same ones each time.

    For each phrase one of as many words, as long as there are any left.
    """
    words = [word.span() for word in _WORD.finditer(prompt)]
    draw, taken, found = random.Random(prompt), {_read(phrase) for phrase in phrases}, []
    for phrase in phrases:
        last = max(len(_read(phrase)), 1) - 1
        spans = [prompt[words[at][0] : words[at + last][1]] for at in range(len(words) - last)]
        left = [span for span in spans if _read(span) not in taken]
        if left:
            found.append(draw.choice(left))
            taken.add(_read(found[-1]))
    return found


def _read(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(text))


def _merged(context: Tensor, phrases: Sequence[Aligned]) -> Tensor:
    for phrase in phrases:
        context = phrase.put(context)
    return context
