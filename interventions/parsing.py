"""Specs as text: ``vhr:alpha=2``, as command lines and reports write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regaze.hooks.checks import shown
from regaze.interventions.base import Intervention, get

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def parse(text: str) -> Intervention:
    """Read the command line's form ``name``, ``name:field=value,field=value`` or ``name@preset``.

    A preset may be followed by fields to set otherwise, as in ``name@preset:field=value``. Values
    are JSON (numbers, ``true``, ``null``, lists); anything else is a plain string, in lists too.
    ``field=@FILE`` takes the value from a JSON file, or from its entry of that name.

    Raises:
        ValueError: Unknown name, preset or field, a missing ``=``, a value out of its domain, or a
            file that doesn't hold one.
        OSError: The file can't be read.
    """
    if not isinstance(text, str):
        raise ValueError(f"a spec is text such as vhr:alpha=2, got a {type(text).__name__}")
    head, _, rest = text.strip().partition(":")
    name, at, preset = (part.strip() for part in head.partition("@"))
    fields: dict[str, Any] = {}
    for part in _parts(rest):
        field, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: expected field=value, got {part!r}")
        field, value = field.strip(), value.strip()
        if field in fields:
            raise ValueError(f"{text!r}: {field} is given twice")
        try:
            fields[field] = _stored(field, value[1:]) if value[:1] == "@" else read_value(value)
        except RecursionError as error:
            raise ValueError(f"{name}: {field} is nested too deeply") from error
    try:
        cls = get(name)
    except ValueError as error:
        if set(name) & set(",= "):
            form = (
                "fields follow a colon, as in vhr:alpha=2, and a plus joins methods, as in var+pai"
            )
            raise ValueError(f"{error} ({form})") from None
        raise
    return cls.preset(preset, **fields) if at else cls.from_fields(fields)


def _parts(text: str) -> list[str]:
    """Split at commas, except those in brackets or quotes, which belong to a value.

    Raises:
        ValueError: A quotation mark isn't closed.
    """
    parts, depth, quoted = [""], 0, False
    for before, char in zip(" " + text, text, strict=False):
        quoted ^= char == '"' and before != "\\"
        if not quoted:
            depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    if quoted:
        raise ValueError(f"a quotation mark isn't closed in {shown(text)}")
    return [part for part in parts if part.strip()]


def read_value(text: str) -> Any:
    """A field's value: JSON, a list that may hold bare words such as ``[mid]``, or a bare word."""
    try:
        return json.loads(_PYTHON_WORDS.get(text, text))
    except ValueError:  # No JSON, or a number of thousands of digits.
        if text.startswith("[") and text.endswith("]"):
            return [read_value(part.strip()) for part in _parts(text[1:-1])]
        return text


def _stored(field: str, name: str) -> Any:
    """A field's value from a JSON file, as a search of heads writes one."""
    if not name:
        raise ValueError(f"{field} names no file: write {field}=@FILE")
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}, which {field} is to be read from, is no JSON file") from error
    if not isinstance(found, Mapping):
        return found
    if field not in found:
        raise ValueError(f"{name} has no entry {field!r}, only {', '.join(sorted(found))}")
    return found[field]
