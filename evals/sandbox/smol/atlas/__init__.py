"""Pictures of kinds of objects, cut out and free to give away, with what each shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from regaze.evals.sandbox.smol.atlas.kinds import KINDS, LOOK_ALIKE

__all__ = ["KINDS", "LOOK_ALIKE", "Picture", "pictures"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """One cut-out picture of an object.

    Attributes:
        kind: The kind that it shows.
        source: The set it comes from.
        name: The set's name for it.
        seen: True if scenes of the training split may show it.
        image: RGBA, its longer side 128 pixels.
    """

    kind: str
    source: str
    name: str
    seen: bool
    image: Image.Image


@lru_cache(maxsize=1)
def pictures() -> dict[str, Sequence[Picture]]:
    """All pictures by kind, in the atlas's order."""
    sheet = Image.open(_FOLDER / "atlas.webp").convert("RGBA")
    found: dict[str, list[Picture]] = {kind: [] for kind in KINDS}
    for entry in json.loads((_FOLDER / "atlas.json").read_text("utf-8")):
        picture = Picture(
            entry["kind"],
            entry["set"],
            entry["name"],
            entry["seen"],
            sheet.crop(tuple(entry["box"])),
        )
        found[picture.kind].append(picture)
    return {kind: tuple(held) for kind, held in found.items()}
