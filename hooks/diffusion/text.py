"""The words of the prompt among the columns of a denoiser's text.

Prompts are read off the running pipeline and its tokenizers: a pipeline that was given embeddings
has none, and then columns are known by their numbers alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.conventions import Encoder, encoders_of
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import call_of_rows, same
from regaze.hooks.diffusion.running import variables_of


@dataclass(frozen=True)
class Words:
    """The embeddings of a run's prompts, as they were when a work looked at their words.

    Attributes:
        text: The call's text, of all its rows.
        version: Number of writes to it until then.
        cond: Conditional rows of the text; None if the call has none.
    """

    text: Any
    version: int
    cond: Any

    @classmethod
    def of(cls, pass_: Pass) -> Words:
        """Keep the embeddings of a pass."""
        text = pass_.call.get(pass_.family.text)
        return cls(text, _version(text), _cond(pass_))

    def refuse_others(self, pass_: Pass) -> None:
        """Check that a later pass of the run has the same embeddings.

        Raises:
            ValueError: Its conditional rows were given others.
        """
        text = pass_.call.get(pass_.family.text)
        if pass_.rows.cond is None:
            return
        if text is self.text:  # As it mostly is, so that nothing needs to be compared.
            kept = _version(text) == self.version
        else:
            kept = self.cond is None or same(self.cond, _cond(pass_))
        if not kept:
            raise ValueError(
                "the prompt's embeddings were changed while the pipeline runs (by a callback?), so "
                "which of them are which words isn't known any more; run the other prompt on its "
                "own, or let the intervention stop before that step"
            )


def _cond(pass_: Pass) -> Any:
    call, rows = {"text": pass_.call.get(pass_.family.text)}, pass_.rows
    if rows.cond is None:
        return None
    return call_of_rows(call, rows.cond, rows.batch, pass_.family)["text"]


def _version(text: Any) -> int:
    return text._version if isinstance(text, Tensor) and not text.is_inference() else 0


@dataclass(frozen=True)
class Prompt:
    """A prompt as one text encoder reads it.

    Attributes:
        text: The prompt.
        pieces: Tokens of the prompt as text, special ones included, up to the end token.
        spans: Place of each token in the text, (start, end) in characters; (0, 0) for special
            tokens.
    """

    text: str
    pieces: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """Index of the end token."""
        return len(self.pieces) - 1

    def at(self, start: int, stop: int) -> list[int]:
        """Indices of the tokens that some characters of the text fall into."""
        return [i for i, (a, b) in enumerate(self.spans) if a < stop and b > start]

    def find(self, words: str) -> list[list[int]]:
        """The tokens of every occurrence of a word or phrase, whole words only, in any case."""
        pattern = r"\s+".join(map(re.escape, words.split()))
        found = re.finditer(rf"(?<!\w){pattern}(?!\w)", self.text, re.IGNORECASE)
        # What was cut off at the encoder's length has no tokens.
        return [tokens for match in found if (tokens := self.at(*match.span()))]

    def listed(self) -> str:
        """The tokens with their indices, for messages."""
        return ", ".join(f"{i} {piece}" for i, piece in enumerate(self.pieces))


@dataclass(frozen=True)
class Part:
    """The columns of one kind of text encoder.

    Attributes:
        encoder: "clip", "t5", or "text" if it isn't known.
        columns: Place of the columns in the text stream.
        prompts: Prompt of each row; None if the pipeline was given embeddings, or if how it reads
            prompts isn't known.
        pads_apart: True if what follows the end token is another token, as in Stable Diffusion 2.
        unread: Reason why there are no prompts, for messages.
    """

    encoder: str
    columns: slice
    prompts: tuple[Prompt, ...] | None
    pads_apart: bool = False
    unread: str = "the pipeline was given embeddings (or how it reads prompts isn't known)"


def read_text(pipeline: Any, rows: int, n_text: int) -> tuple[Part, ...]:
    """The parts of a running pipeline's text stream.

    Args:
        pipeline: The pipeline.
        rows: Conditional rows of its batch: every prompt has as many, one after the other.
        n_text: Length of the text stream, in tokens.
    """
    parts, start = [], 0
    for encoder in encoders_of(pipeline):
        length = int(getattr(pipeline, encoder.length)) if encoder.length else n_text
        columns = slice(start, min(n_text, start + length))
        if columns.start < columns.stop:
            parts.append(_part(pipeline, rows, encoder, columns))
        start = columns.stop
    return tuple(parts) or (Part("text", slice(0, n_text), None),)


def _part(pipeline: Any, rows: int, encoder: Encoder, columns: slice) -> Part:
    reader = getattr(pipeline, encoder.tokenizer, None)
    variables = variables_of(pipeline)
    given = variables.get(encoder.prompt) or variables.get("prompt")
    if reader is None:
        return Part(encoder.kind, columns, None)
    pads_apart = reader.pad_token_id not in (None, reader.eos_token_id)
    if given is None:
        return Part(encoder.kind, columns, None, pads_apart)
    if isinstance(given, dict):
        why = "the prompt changes from frame to frame"
        return Part(encoder.kind, columns, None, pads_apart, why)
    texts = _listed(given)
    other = variables.get(encoder.beside) or given
    if _listed(other) != texts:
        why = f"{encoder.beside} is another prompt, whose words lie in the same columns"
        return Part(encoder.kind, columns, None, pads_apart, why)
    length, learned = columns.stop - columns.start, hasattr(pipeline, "maybe_convert_prompt")
    prompts = [read_prompt(reader, text, length, learned) for text in texts]
    each = rows // len(prompts)
    return Part(encoder.kind, columns, tuple(_repeated(prompts, each)), pads_apart)


def _listed(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def read_prompt(tokenizer: Any, text: str, length: int, learned: bool = False) -> Prompt:
    """A prompt as a tokenizer cuts it.

    Args:
        tokenizer: The tokenizer of a CLIP or T5 text encoder.
        text: The prompt.
        length: Number of tokens that the encoder takes.
        learned: True if its pipeline puts all vectors of a learned word (textual inversion) in the
            place of the first.
    """
    read = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)
    pieces = tokenizer.convert_ids_to_tokens(read.input_ids)
    spans = [(a, b) if text[a:b].strip() else (0, 0) for a, b in read.offset_mapping]
    tokens: list[tuple[str, tuple[int, int]]] = list(zip(pieces, spans, strict=True))
    if learned:
        vectors = tokenizer.added_tokens_encoder
        tokens = [(one, at) for piece, at in tokens for one in _vectors(piece, vectors)]
        tokens[length - 1 : -1] = []  # The end token stays.
    return Prompt(text, tuple(piece for piece, _ in tokens), tuple(at for _, at in tokens))


def _vectors(piece: str, known: Collection[str]) -> Iterator[str]:
    """The tokens of a learned word, of which a prompt holds the first."""
    yield piece
    number = 1
    while (more := f"{piece}_{number}") in known:
        yield more
        number += 1


def _repeated(prompts: Sequence[Prompt], each: int) -> list[Prompt]:
    return [prompt for prompt in prompts for _ in range(each)]
