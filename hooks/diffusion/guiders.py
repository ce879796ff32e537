"""Guiders of modular pipelines: whether what guidance adds to each branch comes out of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.running import Running

_WITHIN = 1e-3
"""Share of what was added that may be lost to rounding, in float32."""


def refuse_uneven(running: Running | None, prediction: Any) -> None:
    """Check that a guider passes on what is added to both of its branches.

    ``uncond + g (cond - uncond)`` gains what both gain, for every g. It is tried out, in this
    step, on a copy of the guider and on noise.

    Args:
        running: The pipeline that runs.
        prediction: What its denoiser predicted.

    Raises:
        ValueError: It scales, projects or drops a part of it.
    """
    if running is None or running.guider is None or not isinstance(prediction, Tensor):
        return
    guider: Any = getattr(running.pipeline, "guider", None)
    alone = running.guider[1] == 1
    if len(getattr(guider, "_input_predictions", ())) > 2:
        return  # The call for its further branch raises.
    drawn = torch.Generator().manual_seed(0)
    cond, uncond, added = (
        torch.randn((1, *prediction.shape[1:]), generator=drawn, dtype=torch.float32, device="cpu")
        for _ in "cua"
    )

    def combined(more: Tensor | float) -> Any:
        parts = {"pred_cond": cond + more, "pred_uncond": uncond + more}
        if alone:
            del parts["pred_uncond"]
        return copy.deepcopy(guider).forward(**parts).pred

    if guider is None or float((combined(added) - combined(0) - added).abs().max()) > _WITHIN:
        raise ValueError(
            f"{type(guider).__name__} doesn't pass on what guidance adds to its branches: beside "
            "uncond + g (cond - uncond) it scales, projects or drops a part of them; take "
            "ClassifierFreeGuidance without guidance_rescale as the guider"
        )
