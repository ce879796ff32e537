"""Norms with their scale frozen, fitted and proven on what a run has shown.

With the statistics of a row as they came out in the run, RMSNorm ``g x / rms`` and LayerNorm
``g (x - mean) / std + b`` are linear. The scale of each row is fitted to input and output, and what
doesn't come out then is refused: nothing is taken from a class's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.02}
_COARSE = 0.1


@dataclass(frozen=True)
class Frozen:
    """``y = s g x`` (of centred ``x`` where ``centred``), and an offset.

    Attributes:
        gain: "E".
        scale: "B", of each row.
        centred: True if the mean is taken off first.
    """

    gain: Tensor
    scale: Tensor
    centred: bool

    def back(self, direction: Tensor) -> Tensor:
        """A direction "B E" behind the norm, as one before it: ``<back(d), x> = <d, s g x>``."""
        found = direction * self.gain * self.scale[:, None]
        return found - found.mean(-1, keepdim=True) if self.centred else found


def freeze(norm: nn.Module, before: Tensor, after: Tensor, dtype: torch.dtype) -> Frozen | None:
    """Fit a norm to a run.

    Args:
        norm: The module.
        before: "B E" what went in.
        after: "B E" what came out.
        dtype: The type that the model computes in; how exactly it must fit.

    Returns:
        None if it is none of these norms.
    """
    before, after = before.double(), after.double()
    given: Any = getattr(norm, "weight", None)
    weight = torch.ones_like(before[0]) if given is None else given.detach().double()
    bias: Any = getattr(norm, "bias", None)
    shift = 0.0 if bias is None else bias.detach().double()
    for gain in (weight, 1 + weight):  # Gemma's norms hold what is added to 1.
        for centred in (False, True):
            x = before - before.mean(-1, keepdim=True) if centred else before
            scale = fit(x * gain, after - shift, dtype)
            if scale is not None:
                return Frozen(gain, scale, centred)
    return None


def fit(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The factors "B" with ``y = factor x`` of rows "B E"; None if there are none."""
    factor = (x * y).sum(-1) / x.square().sum(-1).clamp(min=1e-30)
    return factor if agree(factor[:, None] * x, y, dtype) else None


def agree(x: Tensor, y: Tensor, dtype: torch.dtype) -> bool:
    """True if rows "B E" are the same, as exactly as a model's numbers allow."""
    most = _TOLERANCE.get(dtype, _COARSE)
    off = (x.double() - y.double()).norm(dim=-1)
    return bool((off <= most * y.double().norm(dim=-1)).all())
