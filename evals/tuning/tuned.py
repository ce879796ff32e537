"""A search of settings as it was found and as it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals.runs import files
from regaze.evals.scoring.compare import to_json
from regaze.interventions.base import Intervention, from_dict

TUNED = "tuned.json"


@dataclass(frozen=True)
class Trial:
    """One setting and what it gave.

    Attributes:
        spec: The setting.
        metrics: On the total over all groups; empty where nothing can be said.
        why_not: Why nothing can be said: refused by the model, never fired, items unanswered.
    """

    spec: Intervention
    metrics: Mapping[str, float]
    why_not: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        numbers = to_json(self.metrics)
        fields = {"spec": self.spec.to_dict(), "metrics": numbers, "why_not": self.why_not}
        return {"with": self.spec.label, **fields}


@dataclass(frozen=True)
class Tuned:
    """A search.

    Attributes:
        objective: The metric that was searched by.
        direction: 1: the higher the better; -1: the lower.
        baseline: Metrics of the unedited model on the same items.
        usual: The method as it was given, which is in the running too.
        trials: All trials in order.
        source: The questions' source, JSON-able.
        model: The model's name.
        items: Number of items.
    """

    objective: str
    direction: int
    baseline: Mapping[str, float]
    usual: Trial
    trials: tuple[Trial, ...]
    source: Mapping[str, Any]
    model: str
    items: int

    @property
    def best(self) -> Trial | None:
        """The best setting, the given one if none is better; None if nothing can be said."""
        found = [t for t in (self.usual, *self.trials) if self._worth(t) is not None]
        return max(found, key=lambda t: self._worth(t) or 0.0, default=None)

    def _worth(self, trial: Trial) -> float | None:
        value = trial.metrics.get(self.objective, math.nan)
        return None if math.isnan(value) else self.direction * value

    def outcome(self) -> dict[str, Any]:
        """The best setting and its value beside those that were there before, JSON-able."""
        best, name = self.best, self.objective
        return {
            "with": best and best.spec.label,
            "objective": name,
            "value": best and best.metrics[name],
            "usual": to_json(self.usual.metrics.get(name)),
            "baseline": self.baseline[name],
            "trials": len(self.trials),
        }

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        best = self.best
        return {
            "objective": self.objective,
            "direction": self.direction,
            "model": self.model,
            "source": dict(self.source),
            "items": self.items,
            "baseline": to_json(self.baseline),
            "usual": self.usual.to_dict(),
            "best": best and best.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
        }


def read_tuned(folder: Path) -> Tuned:
    """Read a finished search.

    Raises:
        ValueError: It isn't JSON, or names a method that isn't known.
        OSError: There is none.
    """
    found = files.read_json(folder / TUNED)
    fields = {name: value for name, value in found.items() if name not in ("best", "trials")}
    usual, baseline = trial_of(fields.pop("usual")), _numbers(fields.pop("baseline"))
    trials = tuple(map(trial_of, found["trials"]))
    return Tuned(baseline=baseline, usual=usual, trials=trials, **fields)


def trial_of(stored: Mapping[str, Any]) -> Trial:
    """A trial as `Trial.to_dict` writes it."""
    return Trial(from_dict(stored["spec"]), _numbers(stored["metrics"]), stored["why_not"])


def _numbers(stored: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in stored.items()}
