"""Proof that an intervention acted: how often, where, and how strongly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SCORES = "next-token scores"
"""The place of edits of scores, which are in no layer."""


@dataclass(frozen=True)
class LayerReport:
    """The record of one intervention at one layer.

    Attributes:
        layer: Layer index.
        calls: Attention calls in which it edited.
        heads: Share of (head, edited row) pairs that it changed, where measured.
        effect: Mean size of the change over them all: total variation between a row's attention
            weights before and after (0 to 1), |factor - 1| for head scaling, or for a denoiser
            |new - old| / |old| of a head's output.
        name: The module's path, where layers have one.
        measured: True if the change can be measured; False where what would have been computed
            otherwise is too slow to compute.
    """

    layer: int
    calls: int
    heads: float
    effect: float
    name: str = ""
    measured: bool = True

    @property
    def place(self) -> str:
        """The place as tables show it: the layer, or the name of what has no number."""
        return f"layer {self.layer:3d}" if self.layer >= 0 else self.name


@dataclass(frozen=True)
class InterventionReport:
    """The record of one intervention.

    Attributes:
        label: The spec's label.
        prompts: Prompts seen while attached.
        layers: One entry per layer at which it was called.
        exempt: True if it is a no-op by its own settings (strength zero), so silence is no alarm.
        steps: Sampling steps in which it acted (denoisers).
        note: Remark on how it ran, if that needs saying.
        silent: Works of a method with several that should have changed something and never did.
    """

    label: str
    prompts: int
    layers: tuple[LayerReport, ...]
    exempt: bool = False
    steps: int | None = None
    note: str = ""
    silent: tuple[str, ...] = ()

    @property
    def fired(self) -> bool:
        """True if it changed anything, and each of its works did that should."""
        return not self.silent and any(
            x.effect > 0 or (x.calls > 0 and not x.measured) for x in self.layers
        )

    @property
    def effect(self) -> float:
        """Mean effect over the layers at which it was called."""
        return sum(layer.effect for layer in self.layers) / max(1, len(self.layers))


@dataclass(frozen=True)
class Report:
    """The records of all interventions of one `attach`."""

    interventions: tuple[InterventionReport, ...]

    @property
    def fired(self) -> bool:
        """True if every intervention changed something, but for no-ops by their settings."""
        return all(i.fired or i.exempt for i in self.interventions)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "fired": self.fired,
            "interventions": [
                {**asdict(i), "fired": i.fired, "effect": i.effect} for i in self.interventions
            ],
        }

    def __str__(self) -> str:
        lines = []
        for one in self.interventions:
            state = "fired" if one.fired else "off by its settings" if one.exempt else "NEVER FIRED"
            if one.silent and not one.exempt:
                state += f" ({', '.join(one.silent)})"
            acted = [x for x in one.layers if x.effect > 0]
            over = f"{one.prompts} prompts" if one.steps is None else f"{one.steps} steps"
            lines.append(
                f"{one.label}: {state} in {len(acted)} layers over {over}, "
                f"mean effect {one.effect:.3f}" + (f" ({one.note})" if one.note else "")
            )
            lines += [
                f"  {x.place}  calls {x.calls:6d}  heads {x.heads:6.1%}  effect {x.effect:.4f}"
                + (f"  {x.name}" if x.layer >= 0 and x.name else "")
                for x in one.layers
            ]
        return "\n".join(lines)
