"""Text-to-image in the sandbox: prompts, pictures with exact ground truth, a checker, two painters.

The painters are small diffusion models trained on this world, stored as stock diffusers pipelines.
"""

from __future__ import annotations

from pathlib import Path

from regaze.evals.sandbox.shipped import shipped

__all__ = ["NEGATION", "PAINTERS", "SUBSETS", "painter_path"]

PAINTERS = ("painter-mmdit", "painter-unet")
"""Names of the shipped painters, by the kind of their denoiser."""
SUBSETS = ("single", "pair", "relation", "composition")
"""Kinds of validation and test prompts: one object of any kind; two seen in training, but not
together; the same with a relation; and ``composition``, the hard ones (see `scenes.wanted`)."""
NEGATION = "negation"
"""One or two objects without another one, which is named last: see `prompts.Wanted.unwanted`."""


def painter_path(name: str) -> Path:
    """Folder of a shipped painter, for ``DiffusionPipeline.from_pretrained``.

    Raises:
        ValueError: No shipped painter has that name.
    """
    return shipped("painter", name, PAINTERS)
