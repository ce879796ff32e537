"""Traces that an attachment could leave behind on a model."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def trace(model: nn.Module) -> dict[str, Any]:
    """Whatever an attachment could leave behind: attributes, hooks and settings.

    To be taken after a first run, in which transformers adds hooks of its own.
    """
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = sorted(vars(module)), type(module).forward
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("hooks")}
        found[name + " hooks"] = hooks
        if hasattr(module, "config"):
            found[name + " config"] = copy.deepcopy(vars(module.config))
    return found
