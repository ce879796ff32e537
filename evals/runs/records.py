"""What a run leaves on disk: answers as append-only JSON lines and one manifest per condition.

A line reaches the disk before the next batch starts, so a killed process loses at most the batch
it was working on, and the same command carries on from there. Each of several processes appends to
a file of its own; at the end one of them puts all answers in order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

PREDICTIONS = "predictions.jsonl"
MANIFEST = "manifest.json"
LOCK = ".lock"

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
        seed: Of sampling; 0 where nothing is drawn.
        n_prompt_tokens: Prompt tokens without padding, image columns included.
        n_image_tokens: Image columns among them.
        n_new_tokens: Generated tokens, the end token included.
        finish: ``eos``, ``length`` (cut at the limit) or ``error``.
        margin: Of a yes/no question, log of the odds of yes to no at the first answer token, from
            the model's logits before anything is cut off; see `prompts.yes_no_ids`.
        losses: Of an item with choices, the mean token cross-entropy of each, in nats.
        extra: What a question-stage method says of how the question was made; None without one.
            CARVE: ``crop`` (left, top, right and bottom pixel of the part of the image that was
            shown) and ``tokens`` (generated to find it).
        prompt_sha256: Of the prompt in the model's chat template, first 16 digits.
        inputs_sha256: Of that and the image's pixels, first 16 digits.
        seconds: The batch's time divided by its items, reading images included.
        t_prefill_s: Likewise, time until the first token was predicted.
        t_decode_s: Likewise, time after it.
        peak_bytes: Most memory allocated on GPUs during the batch; None on the CPU.
        attempt: 1 for the first try; every resumed run tries an item with an error once more.
        error: What went wrong, where ``finish`` is ``error``.
    """

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
        """What tells this answer from all others of a condition."""
        return self.id, self.seed

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.error is None


class ConfigMismatchError(ValueError):
    """A folder holds answers that were made with other settings."""


def folder_name(label: str) -> str:
    """A condition's label as a folder name that every file system takes."""
    name = re.sub(r"[^\w.,=+-]", "_", label)
    if len(name) <= 80:
        return name
    return f"{name[:64]}~{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(*paths: Path) -> dict[Key, Record]:
    """Read answers: for each key its last answer, or its last error where it has no answer.

    A last line without its line end was cut off by a crash and doesn't count.

    Args:
        *paths: Files, in the order in which they count; those that aren't there hold nothing.

    Raises:
        ValueError: Another line isn't a record; the message names file and line.
    """
    records: dict[Key, Record] = {}
    for path in paths:
        *lines, _cut_off = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for number, line in enumerate(lines, 1):
            try:
                record = _record(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not an answer ({error}): remove that line, or the "
                    "whole file to start again"
                ) from error
            known = records.get(record.key)
            if known is None or record.ok or not known.ok:
                records[record.key] = record
    return records


def predictions(folder: Path, rank: int = 0) -> Path:
    """The file to which a process appends its answers."""
    return folder / (f"predictions.rank{rank}.jsonl" if rank else PREDICTIONS)


def all_predictions(folder: Path) -> list[Path]:
    """The files that hold a condition's answers; several only until processes have finished."""
    return [folder / PREDICTIONS, *sorted(folder.glob("predictions.rank*.jsonl"))]


def settle(folder: Path, order: Sequence[Key]) -> dict[Key, Record]:
    """Put all answers into one file, in order; if they are already, nothing is touched.

    The new file is in its place before old ones are removed, so a crash in between loses nothing.

    Args:
        folder: A condition's.
        order: The keys to keep, in the order of the lines.

    Returns:
        The answers, in order.
    """
    main, *others = all_predictions(folder)
    found = read(main, *others)
    records = {key: found[key] for key in order if key in found}
    text = "".join(map(_line, records.values()))
    if records and (not main.exists() or main.read_bytes() != text.encode()):
        write_text(main, text)
    for path in others:
        with writing(path):
            path.unlink()
    return records


def repair(path: Path) -> None:
    """Remove a last line that a crash cut off, so that the next one starts on its own line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with writing(path):
            os.truncate(path, whole)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records and wait until they are on the disk.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    lines = "".join(map(_line, records))
    if not lines:
        return
    with writing(path), path.open("ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: there is no moment with half of it.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN is not JSON and must have become ``None``."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It isn't JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that answers already in ``folder`` were made with the same settings.

    Raises:
        ConfigMismatchError: They weren't, or nothing says how they were made; the message lists
            the settings that differ.
    """
    path = folder / MANIFEST
    if not path.exists():
        if (folder / PREDICTIONS).exists():
            raise ConfigMismatchError(
                f"{folder} holds answers but no {MANIFEST} that says how they were made: give "
                "another --out"
            )
        return
    stored = dict(_flat(read_json(path)["config"]))
    given = dict(_flat(json.loads(json.dumps(config))))
    keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
    if keys:
        shown = "; ".join(
            f"{key}: {_brief(stored.get(key))} there, {_brief(given.get(key))} now"
            for key in keys[:4]
        )
        more = f"; and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise ConfigMismatchError(
            f"{folder} holds answers made with other settings ({shown}{more}). Answers are never "
            "mixed: give another --out, or go back to those settings"
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing to a run's directory.

    The lock goes with the process, so a killed run leaves none behind.

    Raises:
        OSError: Another process holds it, or the folder can't be written.
    """
    path = out / LOCK
    lock = FileLock(path, blocking=False)
    try:
        with writing(path):
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another process is writing to {out}: wait until it is done, or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error on writing it, and say that the run can go on later."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Finished answers are kept: once "
            "that is put right, the same command carries on"
        ) from error


def _record(fields: dict[str, Any]) -> Record:
    """The record that a line holds, also where an earlier version wrote it."""
    crop, tokens = fields.pop("crop", None), fields.pop("n_look_tokens", None)
    if crop is not None:
        fields["extra"] = {"crop": crop, "tokens": tokens}
    return Record(**fields)


def _line(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists under dotted keys."""
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        children = enumerate(value)
    else:
        yield prefix, value
        return
    for key, child in children:
        yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
