"""Video in the sandbox: clips of moving objects with exact flow, and models that paint clips."""

from __future__ import annotations

from pathlib import Path

from regaze.evals.sandbox.painting import PAINTERS
from regaze.evals.sandbox.shipped import shipped

__all__ = ["CONTROLNETS", "FRAMES", "MOVING", "PIPELINES", "controlnet_path", "motion_path"]

CONTROLNETS = ("painter-controlnet",)
"""Names of the shipped ControlNets; each steers the painter ``painter-unet``."""
MOVING = ("painter-motion",)
"""Names of the shipped motion modules; each makes a painter of clips of ``painter-unet``."""
PIPELINES = (*PAINTERS, *MOVING)
"""Names of all shipped pipelines, of pictures and of clips."""
FRAMES = 8
"""Frames of a clip."""


def controlnet_path(name: str = "painter-controlnet") -> Path:
    """Folder of a shipped ControlNet, for ``ControlNetModel.from_pretrained``.

    Raises:
        ValueError: No shipped ControlNet has that name.
    """
    return shipped("ControlNet", name, CONTROLNETS)


def motion_path(name: str = "painter-motion") -> Path:
    """Folder of shipped motion modules, for ``MotionAdapter.from_pretrained``.

    Raises:
        ValueError: No shipped motion modules have that name.
    """
    return shipped("set of motion modules", name, MOVING)
