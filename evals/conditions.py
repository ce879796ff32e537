"""What a run compares: the unedited model and the model with interventions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from regaze.interventions import Intervention, parse


@dataclass(frozen=True)
class Condition:
    """Interventions to run the model with, in the order in which they act; none: as it is."""

    specs: tuple[Intervention, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``none``, ``var``, ``vhr:alpha=2`` or ``var+pai``.

        Raises:
            ValueError: An unknown method or field, with the nearest names.
        """
        if text.strip() == "none":
            return cls()
        # A plus before a digit belongs to a number such as 1e+2.
        return cls(tuple(parse(part) for part in re.split(r"\+(?=\s*[a-z])", text)))

    @property
    def label(self) -> str:
        """``none``, or the specs' labels joined by a plus."""
        return "+".join(spec.label for spec in self.specs) or "none"


def baseline_first(conditions: Sequence[Condition]) -> list[Condition]:
    """The unedited model and then what it is compared with, in the order given.

    Raises:
        ValueError: A condition is named twice.
    """
    labels = [condition.label for condition in conditions]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"given twice: {', '.join(sorted(twice))}; name each condition once")
    return [Condition(), *(condition for condition in conditions if condition.specs)]
