"""Answers as they are stored: one JSON line each, see `regaze.evals.runs.lines`.

A line reaches the disk before the next batch starts, so a killed process loses at most the batch
it was working on, and the same command carries on from there. Each of several processes appends to
a file of its own; at the end one of them puts all answers in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from regaze.evals.runs import lines

PREDICTIONS = "predictions.jsonl"

Key = tuple[str, int]
"""An item's id and a seed."""


@dataclass(frozen=True)
class Record:
    """One item's raw answer, or why there is none.

    Attributes:
        id: The item's id.
        cluster: The item's cluster, mostly its image.
        text: The answer as the model gave it, special tokens removed, nothing else changed; of an
            item with choices the likeliest.
        seed: Sampling seed; 0 where nothing is drawn.
        n_prompt_tokens: Prompt tokens without padding, image columns included.
        n_image_tokens: Image columns among them.
        n_new_tokens: Generated tokens, the end token included.
        finish: ``eos``, ``length`` (cut at the limit) or ``error``.
        margin: Log of the odds of yes to no at the first answer token of a yes/no question, from
            the model's logits before anything is cut off; see `prompts.yes_no_ids`.
        losses: Mean token cross-entropy of each choice of an item with choices, in nats.
        extra: A question-stage method's notes on how the question was made; None without one.
            CARVE: ``crop`` (left, top, right and bottom pixel of the part of the image that was
            shown) and ``tokens`` (generated to find it).
        prompt_sha256: SHA-256 of the prompt in the model's chat template, first 16 digits.
        inputs_sha256: SHA-256 of that and the image's pixels, first 16 digits.
        seconds: The batch's time divided by its items, reading images included.
        t_prefill_s: Likewise, time until the first token was predicted.
        t_decode_s: Likewise, time after it.
        peak_bytes: Most memory allocated on GPUs during the batch; None on the CPU.
        attempt: 1 for the first try; every resumed run tries an item with an error once more.
        error: The error's message, where ``finish`` is ``error``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    id: str
    cluster: str
    text: str = ""
    n_prompt_tokens: int = 0
    n_image_tokens: int = 0
    n_new_tokens: int = 0
    finish: Literal["eos", "length", "error"] = "eos"
    seconds: float = 0.0
    attempt: int = 1
    error: str | None = None
    _: KW_ONLY
    seed: int = 0
    margin: float | None = None
    losses: tuple[float, ...] | None = None
    extra: Mapping[str, Any] | None = None
    prompt_sha256: str | None = None
    inputs_sha256: str | None = None
    t_prefill_s: float = 0.0
    t_decode_s: float = 0.0
    peak_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.losses is not None:
            object.__setattr__(self, "losses", tuple(self.losses))

    @property
    def key(self) -> Key:
        """The key that tells this answer from all others of a condition."""
        return self.id, self.seed

    @property
    def ok(self) -> bool:
        """True if there is an answer."""
        return self.error is None


def read(*paths: Path) -> dict[Key, Record]:
    """Read answers: for each key its last answer, or its last error where it has no answer.

    Args:
        *paths: Files, in the order in which they count; those that aren't there hold nothing.

    Raises:
        ValueError: A line isn't a record; the message names file and line.
    """
    records: dict[Key, Record] = {}
    for path in paths:
        for record in lines.read(path, _record, "an answer"):
            known = records.get(record.key)
            if known is None or record.ok or not known.ok:
                records[record.key] = record
    return records


def predictions(folder: Path, rank: int = 0) -> Path:
    """The file to which a process appends its answers."""
    return lines.own(folder / PREDICTIONS, rank)


def all_predictions(folder: Path) -> list[Path]:
    """The files that hold a condition's answers; several only until processes have finished."""
    return lines.every(folder / PREDICTIONS)


def settle(folder: Path, order: Sequence[Key]) -> dict[Key, Record]:
    """Put all answers into one file, in order; if they are already, nothing is touched.

    Args:
        folder: A condition's.
        order: The keys to keep, in the order of the lines.

    Returns:
        The answers, in order.
    """
    found = read(*all_predictions(folder))
    records = {key: found[key] for key in order if key in found}
    lines.settle(folder / PREDICTIONS, [dict(vars(record)) for record in records.values()])
    return records


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records and wait until they are on the disk.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    lines.append(path, (dict(vars(record)) for record in records))


def reason(error: ValidationError) -> str:
    """The first error in stored values: ``sessions.0.answered: should be a valid integer``."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Input ")
    return f"{where}: {said}" if where else said


def _record(line: bytes) -> Record:
    """The record that a line holds, also where an earlier version wrote it."""
    if b'"crop"' in line:
        fields = json.loads(line)
        crop, tokens = fields.pop("crop", None), fields.pop("n_look_tokens", None)
        if crop is not None:
            fields["extra"] = {"crop": crop, "tokens": tokens}
        line = json.dumps(fields).encode()
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        raise ValueError(reason(error)) from error


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)
