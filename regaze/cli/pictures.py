"""Pictures that commands are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regaze.hooks.checks import reason

if TYPE_CHECKING:
    from PIL import Image


def read_picture(path: Path) -> Image.Image:
    """A picture from a file.

    Raises:
        ValueError: It can't be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            return opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"--image {path} can't be read: {reason(error)}") from None
