"""Spans of a prompt that methods point at: by their text, by columns, or the image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.host import Host
from regaze.hooks.passes import Pass
from regaze.hooks.tokens import Kind

Spans = tuple[str | tuple[int, int], ...]
"""Texts of the prompt, or half-open ranges of its columns, counted without padding."""
IMAGE = "<image>"
"""The word that stands for all image columns among spans."""
_WINDOW = 8  # Tokens before a token that bear on how it is written.


def check_spans(method: str, spans: Any) -> None:
    """Check that a field is a list of texts and column ranges.

    Raises:
        ValueError: It isn't.
    """
    what = f'texts, [start,end] ranges of columns, or "{IMAGE}"'
    if not isinstance(spans, tuple):
        raise ValueError(f"{method}: spans must be a list of {what}, got {spans!r}")
    for span in spans:
        pair = isinstance(span, tuple) and len(span) == 2 and all(type(i) is int for i in span)
        if not (isinstance(span, str) and span) and not (pair and 0 <= span[0] < span[1]):
            raise ValueError(f"{method}: spans must hold {what}, got {span!r}")


def check_pointed(method: str, spans: Spans) -> None:
    """Check that there is something to point at.

    Raises:
        ValueError: There isn't.
    """
    if not spans:
        raise ValueError(
            f"{method} points at a part of the prompt, and none is given: set spans to texts, to "
            f'[start,end] ranges of columns, or to "{IMAGE}"'
        )


def need_spans(method: str, host: Host, spans: Spans) -> None:
    """Check that there is something to point at, and that texts can be found.

    Raises:
        ValueError: There isn't, or there is no tokenizer to read the prompt with.
    """
    check_pointed(method, spans)
    texts = [span for span in spans if isinstance(span, str) and span != IMAGE]
    if texts and not hasattr(_tokenizer(host), "decode"):
        raise ValueError(
            f"{method}: to find {texts[0]!r} in a prompt its tokens must be read: pass processor= "
            "to attach, or give the span's columns"
        )


def _tokenizer(host: Host) -> Any:
    return getattr(host.processor, "tokenizer", host.processor)


def find_spans(method: str, host: Host, spans: Spans, pass_: Pass) -> Tensor:
    """Find spans in the prompts so far: bool "B S P".

    Args:
        method: The method's name.
        host: The model.
        spans: The spans; a text means its first occurrence.
        pass_: A block of the prompt, not a decode step.

    Raises:
        ValueError: A prompt ends, and a span isn't in it or was cut in two by its parts.
    """
    kinds = pass_.tokens.kinds
    ids = pass_.ids[:, : kinds.shape[1]]
    real = ~torch.isin(
        kinds, torch.tensor([int(Kind.PAD), int(Kind.GENERATED)], dtype=kinds.dtype, device="cpu")
    )
    found = torch.zeros(len(kinds), len(spans), kinds.shape[1], dtype=torch.bool, device="cpu")
    for row in range(len(kinds)):
        columns = real[row].nonzero().flatten()
        for number, span in enumerate(spans):
            if span == IMAGE:
                found[row, number] = kinds[row] == Kind.IMAGE
                continue
            if isinstance(span, str):
                at = _find_text(host, span, ids[row], kinds[row], columns)
            else:
                at = columns[span[0] : span[1]] if span[1] <= len(columns) else None
            if at is None and pass_.prompt_end:
                raise ValueError(_missing(method, span, row, len(columns)))
            if at is None:
                continue
            if int(at[0]) < pass_.past <= int(at[-1]):
                raise ValueError(
                    f"{method}: span {span!r} lies across two parts of the prompt, whose first was "
                    "read before it was known: read the prompt in one block"
                )
            found[row, number, at] = True
    return found


def _missing(method: str, span: object, row: int, length: int) -> str:
    if isinstance(span, str):
        return (
            f"{method}: the text {span!r} isn't in prompt {row} of this batch (as it is written "
            "there, capitals and spaces included)"
        )
    return f"{method}: span {span} lies outside of prompt {row}, which has {length} columns"


def _find_text(host: Host, text: str, ids: Tensor, kinds: Tensor, real: Tensor) -> Tensor | None:
    """Columns of a text's first occurrence between the images of one prompt."""
    image = torch.isin(
        kinds, torch.tensor([int(Kind.IMAGE), int(Kind.SEPARATOR)], dtype=kinds.dtype, device="cpu")
    )
    run: list[int] = []
    for column in [*real.tolist(), None]:
        if column is not None and not image[column]:
            run.append(column)
            continue
        written, offsets = read_tokens(_tokenizer(host), ids[run].tolist())
        if text in written:
            start, end = token_range(written, text, offsets)
            return torch.tensor(run[start:end], device="cpu")
        run = []
    return None


def read_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text of some tokens, and each token's half-open range of characters in it."""
    text, offsets = "", []
    for at in range(len(ids)):
        start = max(0, at - _WINDOW)
        before, upto = (
            tokenizer.decode(
                ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for end in (at, at + 1)
        )
        # A token may end a character that the one before it began.
        common = len(before.rstrip("\ufffd"))
        begin = len(text) - (len(before) - common)
        text = text[:begin] + upto[common:]
        offsets.append((begin, len(text)))
    return text, offsets


def token_range(
    text: str,
    span: str,
    offsets: Sequence[tuple[int, int]],
    occurrence: int = 0,
    touching: bool = False,
) -> tuple[int, int]:
    """The half-open range of tokens that hold an occurrence of a text.

    Args:
        text: The text that the tokens spell.
        span: The text to find.
        offsets: Half-open range of characters of each token.
        occurrence: The number of its occurrence, from 0.
        touching: Take in a token that ends just where the text begins, as PASTA's code does.

    Raises:
        ValueError: There is no such occurrence.
    """
    begin = -1
    for _ in range(occurrence + 1):
        begin = text.find(span, begin + 1)
        if begin < 0:
            raise ValueError(f"{span!r} occurs less than {occurrence + 1} times in {text!r}")
    end = begin + len(span)
    first = next(at for at, (_, e) in enumerate(offsets) if e > begin or (touching and e == begin))
    last = max(at for at, (s, e) in enumerate(offsets) if s < end and e > begin)
    return first, last + 1


def points_at_text(spans: Spans) -> bool:
    """True if a span is given by its text."""
    return any(isinstance(span, str) and span != IMAGE for span in spans)
