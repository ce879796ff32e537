"""Controls of a method's fields, made from its spec: types, domains, defaults and docs.

A page shows one control a field. `Control.shown` turns a field's value into the control's, `read`
turns what the controls hold back into a spec; nothing here knows how a page draws them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from regaze.hooks.checks import Domain, noting
from regaze.interventions.base import Intervention, from_dict
from regaze.interventions.parsing import read_value

Kind = Literal["flag", "choice", "number", "slider", "line", "text"]
UNSET = ""
"""Content of a choice or a text where the method is to choose."""

_PROBES: tuple[Any, ...] = (0, "?", True, (), None)
_WIDEST_SLIDER = 10
_STEPS = 200


@dataclass(frozen=True)
class Control:
    """One field's control.

    Attributes:
        field: The field.
        kind: A check box, a list to choose from, a number, a slider, a line of text taken as it
            is, or text that is read as on the command line: numbers, lists, words.
        default: The field's value where nothing is said.
        info: The field's description in the method's documentation.
        low: Smallest number; None where there is none.
        high: Largest number.
        step: Between a slider's numbers; None for any.
        whole: Takes whole numbers only.
        optional: Takes None, too.
        choices: To choose from, `UNSET` among them where that is one.
    """

    field: str
    kind: Kind
    default: Any
    info: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    whole: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    def shown(self, value: Any) -> Any:
        """The control's content for a field's value."""
        if self.kind in ("flag", "number", "slider"):
            return value
        if value is None:
            return UNSET if self.default is None or self.kind == "choice" else "null"
        if self.kind == "choice":
            return value if isinstance(value, str) else json.dumps(value)
        if self.kind == "line":
            return value
        return written(value)

    def read(self, given: Any) -> Any:
        """The field's value for the control's content.

        Raises:
            ValueError: It is no number where one is needed.
        """
        if self.kind == "flag":
            return bool(given)
        if self.kind in ("number", "slider"):
            return self._number(given)
        text = str(UNSET if given is None else given)
        if self.kind == "choice":
            value = None if text == UNSET else text
            return {"true": True, "false": False}.get(text) if value and self._asks() else value
        if text.strip() == UNSET:
            return self.default
        if self.kind == "line":
            return text
        return read_value(text.strip())

    def _asks(self) -> bool:
        return set(self.choices) <= {"true", "false", UNSET}

    def _number(self, given: Any) -> Any:
        if given is None or given == UNSET:
            if self.optional:
                return None
            raise ValueError(f"{self.field} needs a number")
        value = float(given)
        # A slider stops at its steps, which a default need not be one of.
        if isinstance(self.default, float) and self.step and abs(value - self.default) < self.step:
            near = round(self.default / self.step) * self.step
            if math.isclose(value, near, abs_tol=1e-9):
                return self.default
        return int(value) if self.whole and value.is_integer() else value


@cache
def controls(cls: type[Intervention]) -> tuple[Control, ...]:
    """One control for each field of a method, in the order of its fields."""
    domains, said, kinds = _domains(cls), docs(cls), get_type_hints(cls)
    return tuple(
        _control(field, kinds[field.name], domains.get(field.name), said.get(field.name, ""))
        for field in dataclasses.fields(cls)
    )


def show(spec: Intervention) -> list[Any]:
    """The content of a method's controls for a spec."""
    return [control.shown(getattr(spec, control.field)) for control in controls(type(spec))]


def read(cls: type[Intervention], given: Sequence[Any]) -> Intervention:
    """The spec for the content of a method's controls.

    Raises:
        ValueError: A value is out of its domain; the message names field and domain.
    """
    pairs = zip(controls(cls), given, strict=True)
    return from_dict({"name": cls.name, **{one.field: one.read(value) for one, value in pairs}})


def written(value: Any) -> str:
    """A field's value as the command line reads it: JSON, or a bare word where that is the same."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    bare = isinstance(value, str) and value.strip() and not set(value) & set('",=[]{}+@')
    return str(value) if bare and read_value(value) == value else text


def docs(cls: type[Intervention]) -> dict[str, str]:
    """Descriptions of a method's fields, from its docstring and those of its bases, by field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and base.__doc__:
            found |= _attributes(inspect.cleandoc(base.__doc__))
    return found


def _attributes(text: str) -> dict[str, str]:
    """The section "Attributes" of a docstring in Google's style."""
    section = re.search(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w+:)", section[1] if section else "", flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if entry.strip())
    return {name.strip(): " ".join(said.split()).replace("``", "`") for name, _, said in pairs}


def _domains(cls: type[Intervention]) -> dict[str, Domain]:
    """The domains that a method's checks name, by field.

    Fields that are None by default are mostly checked only where they are set, so each is tried.
    """
    with noting() as usual:
        _tried(cls, {})
    found = dict(usual)
    for field in dataclasses.fields(cls):
        for probe in _PROBES:
            if field.name in found:
                break
            with noting() as noted:
                _tried(cls, {field.name: probe})
            found |= {name: domain for name, domain in noted.items() if name == field.name}
    return found


def _tried(cls: type[Intervention], fields: Mapping[str, Any]) -> None:
    try:
        cls(**fields)
    except (TypeError, ValueError):
        return  # The checks up to this one were noted, which is all that is asked.


def _control(field: dataclasses.Field[Any], hint: Any, domain: Domain | None, info: str) -> Control:
    union = get_origin(hint) in (Union, types.UnionType)
    options = [one for one in (get_args(hint) if union else (hint,)) if one is not type(None)]
    optional = len(options) < len(get_args(hint)) if union else False
    default = None if field.default is dataclasses.MISSING else field.default
    named = tuple(domain.choices) if domain else ()
    if len(options) == 1:
        kind = options[0]
        if get_origin(kind) is Literal and all(isinstance(x, str) for x in get_args(kind)):
            named = get_args(kind)
        if kind is bool and not optional:
            return Control(field.name, "flag", default, info)
        if kind is bool:
            named = ("true", "false")
        if named and (kind in (str, bool) or get_origin(kind) is Literal):
            choices = (UNSET, *named) if optional else named
            return Control(field.name, "choice", default, info, optional=optional, choices=choices)
        if kind in (int, float):
            return _number(field.name, default, info, domain or Domain(), kind is int, optional)
        if kind is str:
            return Control(field.name, "line", default, info, optional=optional)
    return Control(field.name, "text", default, info, optional=optional)


def _number(
    name: str, default: Any, info: str, domain: Domain, whole: bool, optional: bool
) -> Control:
    low, high = domain.low, domain.high
    even = math.isfinite(high - low) and float(low).is_integer() and float(high).is_integer()
    slides = even and not optional and high - low <= _WIDEST_SLIDER
    return Control(
        name,
        "slider" if slides else "number",
        default,
        info,
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        step=1 if whole else (high - low) / _STEPS if slides else None,
        whole=whole,
        optional=optional,
    )
