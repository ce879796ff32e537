"""Proof that an intervention acted: how often, where, and how strongly."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.passes import Pass

# Per prompt and layer the change is measured at calls 1, 2, 4, 8, ... in a few rows of each, and
# otherwise only counted, so that the proof costs next to nothing.
MEASURED_ROWS = 8


class Tally:
    """Counters of one edit; sums stay on the device, so that counting never waits for it."""

    def __init__(self) -> None:
        self.prompts = 0
        self.calls: Counter[int] = Counter()
        self._asked: Counter[int] = Counter()
        self._due = False
        self._sums: dict[int, Tensor] = {}

    def begin(self, pass_: Pass) -> None:
        """A block begins."""
        if pass_.prompt_start:
            self._asked.clear()
        # At its end: a beginning may be shared by several prompts.
        if pass_.prompt_end and pass_.tokens.generated == 0:
            self.prompts += pass_.batch

    def add_rows(
        self, layer: int, before: Tensor, after: Tensor, valid: Tensor, goes_on: bool = False
    ) -> None:
        """Count a row edit and measure how far each row's weights moved (total variation).

        Args:
            layer: Layer index.
            before: "B H R K" logits.
            after: The same, edited.
            valid: "B R", rows that count.
            goes_on: More rows of the call that was counted last.
        """
        if not goes_on:
            self._due = self._counts(layer)
        if self._due:
            rows = torch.linspace(0, valid.shape[1] - 1, min(MEASURED_ROWS, valid.shape[1]))
            rows = rows.round().long().to(valid.device)
            old, new = before[:, :, rows].softmax(-1), after[:, :, rows].softmax(-1)
            picked = valid[:, None, rows]
            self._measure(layer, 0.5 * (new - old).abs().sum(-1).masked_fill(~picked, 0), picked)

    def add_factor(self, layer: int, factor: Tensor) -> None:
        """Count a head scaling; its effect is how far the factors are from one."""
        if self._counts(layer):
            self._measure(layer, (factor.float() - 1).abs(), torch.ones_like(factor))

    def _counts(self, layer: int) -> bool:
        """Count a call; whether it is one to measure."""
        self.calls[layer] += 1
        self._asked[layer] += 1
        return self._asked[layer] & (self._asked[layer] - 1) == 0

    def _measure(self, layer: int, change: Tensor, counts: Tensor) -> None:
        total = counts.expand_as(change).sum()
        sums = torch.stack([(change > 0).sum(), change.sum(), total]).double()
        self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums

    def layers(self) -> list[LayerReport]:
        """The sums as numbers; waits for the device."""
        reports = []
        for layer in sorted(self.calls):
            heads, effect, total = self._sums[layer].tolist() if layer in self._sums else (0, 0, 1)
            total = max(total, 1)
            reports.append(LayerReport(layer, self.calls[layer], heads / total, effect / total))
        return reports


@dataclass(frozen=True)
class LayerReport:
    """What one intervention did at one layer.

    Attributes:
        layer: Layer index.
        calls: Attention calls in which it edited.
        heads: Share of (head, edited row) pairs that it changed, where measured.
        effect: Mean size of the change over them all: total variation between a row's attention
            weights before and after (0 to 1), |factor - 1| for head scaling, or for a denoiser
            |new - old| / |old| of a head's output.
        name: The module's path, where layers have one.
    """

    layer: int
    calls: int
    heads: float
    effect: float
    name: str = ""


@dataclass(frozen=True)
class InterventionReport:
    """What one intervention did.

    Attributes:
        label: The spec's label.
        prompts: Prompts seen while attached.
        layers: One entry per layer at which it was called.
        exempt: It is a no-op by its own settings (strength zero), so silence is no alarm.
        steps: Sampling steps in which it acted (denoisers).
        note: How it ran, if that needs saying.
    """

    label: str
    prompts: int
    layers: tuple[LayerReport, ...]
    exempt: bool = False
    steps: int | None = None
    note: str = ""

    @property
    def fired(self) -> bool:
        """Whether it changed anything."""
        return any(layer.effect > 0 for layer in self.layers)

    @property
    def effect(self) -> float:
        """Mean effect over the layers at which it was called."""
        return sum(layer.effect for layer in self.layers) / max(1, len(self.layers))


@dataclass(frozen=True)
class Report:
    """What all interventions of one `attach` did."""

    interventions: tuple[InterventionReport, ...]

    @property
    def fired(self) -> bool:
        """Whether every intervention changed something."""
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
            acted = [x for x in one.layers if x.effect > 0]
            over = f"{one.prompts} prompts" if one.steps is None else f"{one.steps} steps"
            lines.append(
                f"{one.label}: {state} in {len(acted)} layers over {over}, "
                f"mean effect {one.effect:.3f}" + (f" ({one.note})" if one.note else "")
            )
            lines += [
                f"  layer {x.layer:3d}  calls {x.calls:6d}  heads {x.heads:6.1%}  "
                f"effect {x.effect:.4f}" + (f"  {x.name}" if x.name else "")
                for x in one.layers
            ]
        return "\n".join(lines)
