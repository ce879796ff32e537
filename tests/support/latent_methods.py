"""Methods that move latents, on the tiny pipelines, which know no words."""

from __future__ import annotations

from typing import Any

import regaze

TOKENS = (1, 3)
METHODS = {"attend_and_excite": regaze.AttendAndExcite, "a_star": regaze.AStar}
LAYERS: dict[str, tuple[Any, ...]] = {
    "sd3": (1, 2), "sd35": (0, 1), "flux": (1, 2), "pixart": ("blocks.(1|2)",),
    "wan": ("blocks.1",), "qwen": (1, 2),
}  # fmt: skip
"""Elsewhere the first and last layers of a U-Net, which are of one resolution."""


def spec_for(method: str, family: str, **more: Any) -> Any:
    """A method that acts on a family's tiny pipeline, in every step."""
    settings: dict[str, Any] = {
        "tokens": TOKENS, "layers": LAYERS.get(family, ("down_blocks.0", "up_blocks.1")),
        "cut": "last", "stop": 1.0,
    }  # fmt: skip
    if method == "attend_and_excite":
        settings["refine"] = ""
    return METHODS[method](**{**settings, **more})


def traces(pipe: Any, denoiser: Any) -> Any:
    """All that an attachment could leave behind, but hooks' numbers."""
    modules = {
        name: (
            set(vars(module)), list(module._modules.items()), getattr(module, "processor", None),
            len(module._forward_hooks), len(module._forward_pre_hooks),
        )
        for name, module in denoiser.named_modules()
    }  # fmt: skip
    grads = [(p.requires_grad, p.grad is None) for p in denoiser.parameters()]
    return modules, grads, set(vars(pipe.scheduler))
