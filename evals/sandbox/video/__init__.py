"""Video in the sandbox: clips of moving objects with exact flow, and a ControlNet for them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

__all__ = ["CONTROLNETS", "controlnet_path"]

CONTROLNETS = ("painter-controlnet",)
"""Names of the shipped ControlNets; each steers the painter ``painter-unet``."""


def controlnet_path(name: str = "painter-controlnet") -> Path:
    """Folder of a shipped ControlNet, for ``ControlNetModel.from_pretrained``.

    Raises:
        ValueError: No shipped ControlNet has that name.
    """
    if name not in CONTROLNETS:
        near = get_close_matches(name, CONTROLNETS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown ControlNet {name!r}: it must be one of {', '.join(CONTROLNETS)}; "
            f"nearest is {near!r}"
        )
    return Path(__file__).parent.parent / "models" / name
