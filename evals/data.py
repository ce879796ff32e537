"""What the readers of benchmark data share: images, JSON files, a hash of the items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.task import Item


def open_image(path: Path) -> Image.Image:
    """The image as RGB, fully read.

    Raises:
        OSError: Missing or unreadable; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    # Pillow raises all of these for damaged files, most of them without the file's name.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the image {path}: {error}") from error


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects with their line numbers, from JSON lines or from one JSON array.

    Objects of an array are numbered from 1 instead.

    Raises:
        ValueError: Not JSON, or not made of objects; the message names file and line.
        OSError: The file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file: {error}") from error
    if text.lstrip().startswith("["):
        entries = list(enumerate(_parse(path, 1, text), 1))
    else:
        # Not splitlines(): JSON strings may hold U+2028, which ends no line here.
        lines = enumerate(text.split("\n"), 1)
        entries = [(number, _parse(path, number, line)) for number, line in lines if line.strip()]
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, found {entry!r:.60}")
        yield number, entry


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 of all that the items say."""
    digest = hashlib.sha256()
    for item in items:
        entry = [
            item.id,
            item.image,
            item.prompt,
            item.group,
            item.target,
            item.choices,
            item.cluster,
        ]
        digest.update(json.dumps(entry, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1
        raise ValueError(f"{path}:{where}: malformed JSON: {error.msg}") from error
