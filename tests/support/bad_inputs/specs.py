"""Bad specs: every field of every method at values that it can't have, and text that is no spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from bad_inputs.case import Case, command
from regaze.interventions.base import get, names

_NUMBERS = ("nan", "-inf", "1e999", "9" * 401, "abc", "{}", "[[1]]", "true", '"', "[" * 500)
_LISTS = ("NaN", "abc", "{}", "[-1]", "[1.5,2,3]", "[1,1]", "[null]", '[{"a":[]}]', "[" * 500)
_FLAGS = ("abc", "2", "[]", "NaN", "{}")
_CHOICES = ("no-such-choice", "5", "[]", "{}", "[/red]")
_TEXTS = (
    "", " ", ":", "vhr:=", "vhr:alpha", "vhr:=3", "vhr:alpha=", "vhr:alpha=1,alpha=2", "+",
    "vhr+", "+vhr", "none+vhr", "vhr@", "vhr@blank2", "@", "vhrr", "VHR ", "[vhr]", "[/]",
    "vhr:[red]=1", "vhr:alpha=[/]", "\x1b[31mvhr", "v" * 10_000, "vhr:alpha=1;pai", "vhr alpha=1",
    "vhr:alpha=1 beta=2", "vhr:alpha=2=3", "vhr:alpha:2", "vhr,pai", "carve+carve", "vhr/pai",
    "vhr:alpha=@", "vhr:alpha=@no-such.json", "vhr:alpha=@.", "adhh:heads=@/dev/null",
    "\u202evhr", "☃", "vhr:{}", "vhr:{\"alpha\": 2}", "../vhr", "vhr:alpha=(1)", "pai+pai+",
)  # fmt: skip


_ASK = ("eval", "pope", "--model", "toy", "--limit", "4")
_PAINT = ("compare", "--model", "painter", "-p", "a red circle", "--steps", "1", "--seeds", "1")


def cases() -> Iterator[Case]:
    """All of them."""
    for text in _TEXTS:
        yield command("specs: text", *_ASK, "--with", text)
    for text in _TEXTS:
        text = text.replace("vhr", "pag").replace("alpha", "scale").replace("pai", "seg")
        yield command("specs: text", *_PAINT, "--with", text)
    for name in names():
        cls = get(name)
        for field in dataclasses.fields(cls):
            kind, values = _values(str(field.type))
            for value in values:
                if value == "[1,1]" and ("str" in str(field.type) or field.default == (1, 1)):
                    continue  # paths may name a layer twice, and a default is no mistake
                spec = f"{name}:{field.name}={value}"
                before = _ASK if cls.acts_on == "vision-language models" else _PAINT
                yield command(f"specs: {kind}", *before, "--with", spec)


def _values(kind: str) -> tuple[str, tuple[str, ...]]:
    """Values that a field of some type can't hold."""
    if "bool" in kind:
        return "flags", _FLAGS
    if "tuple" in kind or "Sequence" in kind or "Mapping" in kind or "list" in kind:
        return "lists", _LISTS
    if "float" in kind or "int" in kind:
        return "numbers", _NUMBERS if "str" not in kind else _NUMBERS[:4]
    if "str" in kind or "Any" in kind:  # free text, and what a method reads itself
        return "texts", ()
    return "choices", _CHOICES
