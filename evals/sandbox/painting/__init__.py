"""Text-to-image in the sandbox: prompts, pictures with exact ground truth, a checker, two painters.

The painters are small diffusion models trained on this world, stored as stock diffusers pipelines.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

__all__ = ["PAINTERS", "painter_path"]

PAINTERS = ("painter-mmdit", "painter-unet")
"""Names of the shipped painters, by the kind of their denoiser."""


def painter_path(name: str) -> Path:
    """Folder of a shipped painter, for ``DiffusionPipeline.from_pretrained``.

    Raises:
        ValueError: No shipped painter has that name.
    """
    if name not in PAINTERS:
        near = get_close_matches(name, PAINTERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown painter {name!r}: it must be one of {', '.join(PAINTERS)}; "
            f"nearest is {near!r}"
        )
    return Path(__file__).parent.parent / "models" / name
