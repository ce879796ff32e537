"""Facts of a method that its spec alone gives: fields, domains, presets, formula, literal form."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.interventions import Intervention, parse
from regaze.interventions.shipped import outlines

ROOT = Path(__file__).resolve().parents[2]
_PARTS = {"interventions": "interventions", "hooks": "hooks", "evals": "evals"}


@dataclass(frozen=True)
class Field:
    """A setting of a method.

    Attributes:
        name: Name of the setting.
        default: The default, as JSON; "required" if there is none.
        domain: Values it may have; empty where that depends on the model.
        text: The setting's meaning.
    """

    name: str
    default: str
    domain: str
    text: str


def methods() -> list[str]:
    """Names of all methods that the package ships, sorted."""
    return sorted(outlines())


def source_of(cls: type[Intervention]) -> Path:
    """The method's file, from the repository's root."""
    _, part, *rest = cls.__module__.split(".")
    return Path(_PARTS[part], *rest).with_suffix(".py")


def explained(cls: type[Intervention]) -> str:
    """The docstring of a method's module: formula, source, where paper and code differ.

    Markdown as it stands. A module without more than a title leaves that to the class.
    """
    title, _, body = (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n\n")
    if body:
        return f"{title}\n\n{body}"
    own = inspect.getdoc(cls) or ""
    return own.partition("Attributes:")[0].strip()


def fields(cls: type[Intervention]) -> list[Field]:
    """The method's settings, in the order in which they are written."""
    texts = dict(_documented(cls))
    return [
        Field(f.name, _default(f), _domain(cls, f), texts.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]


def literal_source(cls: type[Intervention]) -> str:
    """The code of `Intervention.literal`; empty if the method has none."""
    if cls.literal is Intervention.literal:
        return ""
    return textwrap.dedent(inspect.getsource(cls.literal))


def spec(cls: type[Intervention], *labels: str) -> Intervention | None:
    """The method with its defaults, or as the first of some labels that can be made says it."""
    for label in (cls.name, *labels):
        try:
            return parse(label)
        except ValueError:
            continue
    return None


def _documented(cls: type[Intervention]) -> Iterator[tuple[str, str]]:
    """Fields and their texts, from the docstrings of the class and, before it, its bases."""
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, found, listed = text.partition("Attributes:\n")
        if not found:
            continue
        listed = textwrap.dedent(re.split(r"\n\n(?=\S)", listed)[0])
        for entry in re.split(r"\n(?=\w+: )", listed):
            name, colon, said = entry.partition(":")
            if colon and name.isidentifier():
                yield name, " ".join(said.split())


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return json.dumps(field.default)
    return "required"


def _domain(cls: type[Intervention], field: dataclasses.Field[Any]) -> str:
    """A field's domain, read off the message of its own check for a value outside."""
    kind = str(field.type)
    if kind == "bool":
        return "true or false"
    if found := re.fullmatch(r"Literal\[([^\[\]]*)\](?: \| None)?", kind):
        return re.sub("[\"']", "`", found[1])
    try:
        cls(**{**_required(cls), field.name: "\0"})
    except (ValueError, TypeError) as error:
        said = str(error)
    else:
        return ""
    if found := re.search(rf"{field.name} must be (?:a finite number in )?(.*), got ", said):
        return found[1]
    if found := re.search(r"known: (.*)$", said):
        return ", ".join(f"`{name}`" for name in found[1].split(", "))
    return ""


def _required(cls: type[Intervention]) -> dict[str, Any]:
    return {f.name: None for f in dataclasses.fields(cls) if _default(f) == "required"}
