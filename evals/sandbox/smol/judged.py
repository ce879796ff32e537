"""Shares, ranks and expectations of answers about kinds in pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Judged:
    """A model's answers about kinds in pictures.

    Attributes:
        margins: Logit of yes less that of no: ``(n, kinds)``.
        present: True where the picture shows the kind: ``(n, kinds)``.
    """

    margins: Tensor
    present: Tensor

    def scores(self, counted: Tensor | None = None) -> dict[str, float]:
        """Yes rate to what is there and to what isn't, and AUC, in percent.

        Args:
            counted: The pairs to count; default: all.
        """
        chosen = torch.ones_like(self.present) if counted is None else counted
        margins, present = self.margins[chosen], self.present[chosen]
        return {
            "pairs": len(margins),
            "recall": percent(margins[present] > 0),
            "false_yes": percent(margins[~present] > 0),
            "auc": auc(margins, present),
        }


def percent(values: Tensor) -> float:
    """Share of what is true."""
    return round(100 * values.float().mean().item(), 1)


def auc(margins: Tensor, present: Tensor) -> float:
    """Chance that a present kind has a larger margin than an absent one, in percent."""
    yes, no = margins[present], margins[~present].sort().values
    below = torch.searchsorted(no, yes) + torch.searchsorted(no, yes, right=True)
    return round(100 * (below.double().mean() / 2 / len(no)).item(), 1)


def expected(said: Tensor, counted: Tensor, asked: Tensor) -> float:
    """Number of yes to be expected if only scene and kind mattered, not what goes with what.

    Crowded scenes have more partners and get more wrong yes of every kind, so the mean over other
    kinds is too low a mark for partners.

    Args:
        said: True where yes was said: ``(n, kinds)``.
        counted: The pairs to learn rates from, likewise; a rate is a factor of the scene times one
            of the kind (iterative proportional fitting).
        asked: The pairs to sum the rates over, likewise.
    """
    yes, tiny = (said & counted).double(), 1e-9
    scene, kind = yes.new_ones(len(said), 1), yes.new_ones(said.shape[1])
    for _ in range(200):
        scene = (
            scene
            * (yes.sum(1, keepdim=True) + tiny)
            / ((scene * kind * counted).sum(1, keepdim=True) + tiny)
        )
        kind = kind * (yes.sum(0) + tiny) / ((scene * kind * counted).sum(0) + tiny)
    return float((scene * kind * asked).sum())
