"""A run's directory: which folder belongs to which condition, and what its files must hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from regaze.evals.runs.files import read_json
from regaze.evals.runs.records import PREDICTIONS, reason

RUN = "run.json"
MANIFEST = "manifest.json"

_LONGEST = 80
# Answers and a search's scores, also those that a killed process left in a file of its own.
_RESULTS = (PREDICTIONS, "predictions.rank*.jsonl", "scores.jsonl", "scores.rank*.jsonl")
_T = TypeVar("_T")
_OPEN = ConfigDict(extra="allow", strict=True)


class Place(TypedDict):
    """The folder of a condition's answers, and its role as a control, see `controls.roles`."""

    label: str
    folder: str
    control: NotRequired[str | None]


class RunFile(TypedDict):
    """The content of ``run.json``: a run's source, its limit, and its conditions in order."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    source: dict[str, Any] | None
    limit: int | None
    conditions: list[Place]


class Acted(TypedDict):
    """The entry of one intervention in `Firing`."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    label: str
    fired: bool


class Firing(TypedDict):
    """A report on interventions, as `regaze.hooks.report.Report.to_dict` gives it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    fired: bool
    interventions: NotRequired[list[Acted]]


class Session(TypedDict):
    """One process's session for one condition."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    firing: Firing | None
    cost: NotRequired[dict[str, int | float | dict[str, int | float]] | None]
    answered: NotRequired[int]


class Configured(TypedDict):
    """The part common to every ``manifest.json``: the settings of the results beside it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    config: dict[str, Any]


class Manifest(Configured):
    """A condition's ``manifest.json``: the making of its answers."""

    condition: NotRequired[str]
    counts: NotRequired[dict[str, int]]
    sessions: list[Session]


class ConfigMismatchError(ValueError):
    """A folder holds answers that were made with other settings."""


def folder_name(label: str) -> str:
    """A label as a name that every file system takes; not one of its own, see `distinct_names`."""
    name = re.sub(r"[^\w.,=+-]", "_", label)
    if len(name.encode()) <= _LONGEST:
        return name
    return _hashed(label)


def distinct_names(labels: Iterable[str]) -> dict[str, str]:
    """A name for each label, no two alike, not even where capitals or accents don't count.

    Names that would be the same get a hash of their labels each.
    """
    names = {label: folder_name(label) for label in labels}
    often = Counter(map(_alike, names.values()))
    return {k: _hashed(k) if often[_alike(name)] > 1 else name for k, name in names.items()}


def folders(out: Path, labels: Sequence[str]) -> dict[str, Path]:
    """Each condition's folder in a run's directory: the one that is its own already, or a new one.

    Raises:
        ValueError: A manifest in the directory is damaged.
    """
    found: dict[str, Path] = {}
    for label in labels:
        plain, hashed = out / folder_name(label), out / _hashed(label)
        taken = _alike(plain.name) in {_alike(path.name) for path in found.values()}
        path = plain / MANIFEST
        owner = read_manifest(plain).get("condition", label) if path.exists() else label
        found[label] = hashed if taken or owner != label or hashed.exists() else plain
    return found


def read_run(out: Path) -> RunFile:
    """Read a directory's ``run.json``.

    Raises:
        ValueError: It isn't a run directory, or the file is damaged.
        OSError: It can't be read.
    """
    if not (out / RUN).exists():
        raise ValueError(f"{out} is not a run directory: it has no {RUN}")
    return checked(out / RUN, RunFile)


def read_manifest(folder: Path) -> Manifest:
    """Read a condition's manifest, which is there before the run's directory names the condition.

    Raises:
        ValueError: It is lost or damaged; the message names file and field.
        OSError: It can't be read.
    """
    if not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder / MANIFEST} is lost, so nothing says how the answers beside it were made: "
            "restore it, or give another --out"
        )
    return checked(folder / MANIFEST, Manifest)


def checked(path: Path, kind: type[_T]) -> _T:
    """Read a JSON file of a known form; further fields are kept.

    Raises:
        ValueError: It has another form; the message names file and field.
        OSError: It can't be read.
    """
    try:
        return cast(_T, _adapter(cast(Any, kind)).validate_python(read_json(path)))
    except ValidationError as error:
        raise ValueError(
            f"{path} is damaged ({reason(error)}): restore it, or give another --out"
        ) from error


def restored(out: Path, kind: type[_T], source: Mapping[str, Any]) -> _T:
    """The dataclass that a run directory's ``source`` stands for.

    Raises:
        ValueError: The source has other fields; the message names file and field.
    """
    known = {each.name for each in dataclasses.fields(cast(Any, kind))}
    try:
        if further := sorted(set(source) - known):
            raise ValueError(f"unknown field source.{further[0]}")
        try:
            return cast(_T, _adapter(cast(Any, kind)).validate_python(source))
        except ValidationError as error:
            raise ValueError(f"source.{reason(error)}") from error
    except ValueError as error:
        raise ValueError(
            f"{out / RUN} is damaged ({error}), or another version wrote it: restore it, or give "
            "another --out"
        ) from error


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that answers already in ``folder`` were made with the same settings.

    Raises:
        ConfigMismatchError: They weren't, or nothing says how they were made; the message lists
            the settings that differ.
    """
    if not (folder / MANIFEST).exists():
        if any(found for name in _RESULTS for found in folder.glob(name)):
            raise ConfigMismatchError(
                f"{folder} holds answers but no {MANIFEST} that says how they were made: give "
                "another --out"
            )
        return
    stored = dict(_flat(checked(folder / MANIFEST, Configured)["config"]))
    given = dict(_flat(json.loads(json.dumps(config))))
    keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
    if keys:
        keys.sort(key=lambda key: key.endswith("_sha256"))
        shown = "; ".join(
            # Of a hash only that it is another one says anything.
            f"other {key.removesuffix('_sha256')}"
            if key.endswith("_sha256")
            else f"{key}: {brief(stored.get(key))} there, {brief(given.get(key))} now"
            for key in keys[:4]
        )
        more = f"; and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise ConfigMismatchError(
            f"{folder} holds answers made with other settings ({shown}{more}). Answers are never "
            "mixed: give another --out, or go back to those settings"
        )


def brief(value: Any) -> str:
    """A JSON-able value in at most 40 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _hashed(label: str) -> str:
    name = re.sub(r"[^\w.,=+-]", "_", label).encode()[:64].decode(errors="ignore")
    return f"{name}~{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


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
