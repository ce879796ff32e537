"""Video in the sandbox: clips of moving objects with exact flow, and models that paint clips."""

from __future__ import annotations

from pathlib import Path

from regaze.evals.sandbox.shipped import shipped

__all__ = ["CONTROLNETS", "FRAMES", "controlnet_path"]

CONTROLNETS = ("painter-controlnet",)
"""Names of the shipped ControlNets; each steers the painter ``painter-unet``."""
FRAMES = 8
"""Frames of a clip."""


def controlnet_path(name: str = "painter-controlnet") -> Path:
    """Folder of a shipped ControlNet, for ``ControlNetModel.from_pretrained``.

    Raises:
        ValueError: No shipped ControlNet has that name.
    """
    return shipped("ControlNet", name, CONTROLNETS)
