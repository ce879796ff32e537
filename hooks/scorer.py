"""The model around a text tower that makes next-token scores, however it is wrapped."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationMixin


def find_scorer(model: nn.Module, tower: nn.Module) -> nn.Module | None:
    """The outermost model that generates with the text tower, if it is within reach."""
    for module in model.modules():
        if isinstance(module, GenerationMixin) and any(part is tower for part in module.modules()):
            return module
    return None


def generates_by(model: nn.Module, tower: nn.Module) -> str:
    """The class of the part that a model generates with in its place; empty if there is none.

    Such a model's ``generate`` calls another one inside of it (as Q-Former models do), and its own
    ``forward``, whose scores could be edited, never runs.
    """
    scorer: Any = find_scorer(model, tower)
    if scorer is None or type(scorer).generate is GenerationMixin.generate:
        return ""
    inner = (one for one in scorer.children() if find_scorer(one, tower) is not None)
    return next((type(one).__name__ for one in inner), "")
