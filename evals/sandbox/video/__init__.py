"""Video in the sandbox: clips of moving objects with exact flow, and models that paint clips."""

from __future__ import annotations

from pathlib import Path

from regaze.evals.sandbox.shipped import shipped

__all__ = ["CONTROLNETS", "FRAMES", "MOTIONS", "controlnet_path", "motion_path"]

CONTROLNETS = ("painter-controlnet",)
"""Names of the shipped ControlNets; each steers the painter ``painter-unet``."""
FRAMES = 8
"""Frames of a clip."""
MOTIONS = ("painter-motion",)
"""Names of the shipped motion modules; each makes the painter ``painter-unet`` paint clips."""


def motion_path(name: str = "painter-motion") -> Path:
    """Folder of shipped motion modules, for ``MotionAdapter.from_pretrained``.

    Raises:
        ValueError: No shipped motion modules have that name.
    """
    return shipped("motion modules", name, MOTIONS)


def controlnet_path(name: str = "painter-controlnet") -> Path:
    """Folder of a shipped ControlNet, for ``ControlNetModel.from_pretrained``.

    Raises:
        ValueError: No shipped ControlNet has that name.
    """
    return shipped("ControlNet", name, CONTROLNETS)
