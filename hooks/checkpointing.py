"""Gradient checkpointing: layers that run again in the backward pass, and find their pass then."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.running import Running
from regaze.hooks.stack import KWARG, LayerEntry


def checkpoints(tower: nn.Module) -> bool:
    """Return whether the layers will run again in a backward pass."""
    if not (torch.is_grad_enabled() and tower.training):
        return False
    layers: Any = tower.layers
    return bool(getattr(tower, "gradient_checkpointing", False)) or any(
        getattr(layer, "gradient_checkpointing", False) for layer in layers
    )


def hand_on(tower: nn.Module, kwargs: dict[str, Any], running: Running) -> None:
    """Give the pass to the layers, which the backward pass runs again."""
    parameters = inspect.signature(type(tower).forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise NotImplementedError(
            f"{type(tower).__name__} doesn't hand arguments on to its layers, so they can't be "
            "edited when gradient checkpointing runs them again; call "
            "model.gradient_checkpointing_disable(), or detach first"
        )
    kwargs[KWARG] = running


def guard(output: Any, running: Running, attached: Sequence[LayerEntry]) -> None:
    """Keep the layers edited when they run again.

    Args:
        output: Output of the tower.
        running: The pass.
        attached: Live sequence of the edits attached.
    """
    hidden = output[0] if isinstance(output, (tuple, list)) else output.last_hidden_state
    entries = list(attached)

    def look(gradient: Tensor) -> None:
        if not all(any(e is one for one in attached) for e in entries):
            raise RuntimeError(
                "interventions were detached before the backward pass, and gradient "
                "checkpointing would now run the layers again without them: call backward "
                "while they are attached"
            )

    if running.works and isinstance(hidden, Tensor) and hidden.requires_grad:
        hidden.register_hook(look)
