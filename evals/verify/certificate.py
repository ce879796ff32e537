"""The certificate: what was promised of each method on a model, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from regaze.evals.runs.files import read_json, write_json

Verdict = Literal["passed", "failed", "skipped", "info"]

PROMISES = {
    "maps": "attention = maps written out",
    "fired": "it acts",
    "prefill": "prefill = literal form",
    "decode": "decoding = literal form",
    "steps": "denoising = literal form",
    "batch": "a batch of two = each alone",
    "idle": "strength zero = plain model",
    "undo": "detached = plain model",
    "threads": "two threads = one by one",
    "cost": "cost (plain model: 1x)",
}
"""Wording of each promise, by the name that `Line.promise` holds."""


@dataclass(frozen=True)
class Line:
    """One promise about one method.

    Attributes:
        method: The method's label; empty if the line is about the plain model.
        promise: One of `PROMISES`.
        verdict: "passed", "failed", "skipped" (it couldn't be checked here; ``detail`` says why)
            or "info" (measured, nothing promised).
        detail: Measured figures, or the reason.
        difference: Largest difference, as a share of the spread (standard deviation) of what the
            plain model gives; None where nothing was compared that way.
        tolerance: The largest one allowed; 0 where bits are compared.
    """

    method: str
    promise: str
    verdict: Verdict
    detail: str = ""
    difference: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.promise not in PROMISES:
            raise ValueError(f"unknown promise {self.promise!r}; known: {', '.join(PROMISES)}")

    @property
    def says(self) -> str:
        """The promise in words."""
        return PROMISES[self.promise]


@dataclass(frozen=True)
class Certificate:
    """The findings of `regaze.verify`.

    Attributes:
        model: Class, dtype, device and attention implementation of the model, and its identity if
            that was given.
        inputs: Description of the inputs that the model was given.
        lines: The promises.
        versions: Versions of the packages that were at work.
        seconds: Seconds that the checks took.
    """

    model: Mapping[str, Any]
    inputs: str
    lines: Sequence[Line]
    versions: Mapping[str, str]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if no promise failed and some were kept."""
        verdicts = [line.verdict for line in self.lines]
        return "failed" not in verdicts and "passed" in verdicts

    @property
    def failures(self) -> list[Line]:
        """The promises that failed."""
        return [line for line in self.lines if line.verdict == "failed"]

    @property
    def methods(self) -> list[str]:
        """The labels of what was verified, in order."""
        return list(dict.fromkeys(line.method for line in self.lines if line.method))

    @property
    def unchecked(self) -> list[str]:
        """The labels of methods of which nothing could be checked."""
        checked = {line.method for line in self.lines if line.verdict in ("passed", "failed")}
        return [label for label in self.methods if label not in checked]

    def only(self, method: str) -> Certificate:
        """Keep the lines about one method and about the plain model.

        Raises:
            KeyError: It says nothing of the method.
        """
        if method not in self.methods:
            raise KeyError(f"nothing was verified of {method!r}")
        lines = tuple(line for line in self.lines if line.method in ("", method))
        return replace(self, lines=lines)

    def of(self, promise: str, method: str | None = None) -> Line:
        """The line of a promise.

        Args:
            promise: One of `PROMISES`.
            method: A method's label; the first line of the promise by default.

        Raises:
            KeyError: There is none.
        """
        for line in self.lines:
            if line.promise == promise and method in (None, line.method):
                return line
        raise KeyError(f"no line about {promise!r} of {method or 'any method'}")

    def to_dict(self) -> dict[str, Any]:
        """The form of strict JSON; `from_dict` reads it."""
        found = {
            "passed": self.passed,
            "model": dict(self.model),
            "inputs": self.inputs,
            "lines": [asdict(line) for line in self.lines],
            "versions": dict(self.versions),
            "seconds": round(self.seconds, 2),
        }
        return {key: _strict(value) for key, value in found.items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Certificate:
        """Read `to_dict`'s form.

        Raises:
            ValueError: It is something else.
        """
        try:
            lines = [Line(**line) for line in found["lines"]]
            fields = (found["model"], found["inputs"], lines, found["versions"], found["seconds"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no certificate of regaze verify: {error!r}") from error
        return cls(*fields)

    def save(self, path: str | Path) -> None:
        """Write it as strict JSON.

        Raises:
            OSError: The file can't be written.
        """
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read what `save` wrote.

        Raises:
            ValueError: The file holds something else.
            OSError: It can't be read.
        """
        found = read_json(Path(path))
        if not isinstance(found, Mapping):
            raise ValueError(f"{path} holds no certificate of regaze verify")
        return cls.from_dict(found)

    def __str__(self) -> str:
        head = f"{self.model.get('class')}, {self.model.get('dtype')}: {self.inputs}"
        body = [
            f"{line.verdict:7}  {line.method or 'plain model'}: {line.says}"
            + (f" ({line.detail})" if line.detail else "")
            for line in self.lines
        ]
        return "\n".join([head, *body])


def _strict(value: Any) -> Any:
    """A value as JSON holds it: what isn't finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(one) for key, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list) else value
