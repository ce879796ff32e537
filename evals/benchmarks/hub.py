"""Rows of a data set on the Hub, and its images by key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.benchmarks.data import Loader, Row, read_image


@dataclass(frozen=True)
class Hub:
    """The place of a benchmark on the Hub.

    Attributes:
        id: Name of the data set, e.g. ``"lmms-lab-encoder/MME"``.
        splits: Splits that are read, one after the other.
        config: Name of the configuration; None: the default one.
        key: Key of a row's image, by which rows share one; where it isn't given or gives None, a
            hash of the image's file.
        renamed: Names of some of the fields in the benchmark's own files.
        images: Columns that hold images, if a split has them.
    """

    id: str
    splits: Sequence[str]
    config: str | None = None
    key: Callable[[Row], str | None] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[str] = ("image",)


def read_hub(hub: Hub) -> tuple[list[Row], Loader]:
    """The rows of a data set, without its images, and what opens an image by its key.

    Images stay on the disk until they are asked for, and are read as those of files are, see
    `data.read_image`. In a row stands an image's key in its place, or None where it has none.

    Raises:
        ImportError: The package ``datasets`` isn't installed.
        OSError: There is no such data set, configuration or split, or the Hub can't be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"there is no file or folder {hub.id} here, and reading it from the Hub needs the "
            "package datasets: pip install 'regaze[hub]'"
        ) from error
    rows: list[dict[str, Any]] = []
    places: dict[str, tuple[Any, int, str]] = {}
    for split in hub.splits:
        try:
            table = datasets.load_dataset(hub.id, name=hub.config, split=split)
        except (OSError, ValueError) as error:
            raise OSError(
                f"cannot read {split} of {hub.id} from the Hub, and there is no such file or "
                f"folder here: {' '.join(str(error).split())}"
            ) from error
        columns = [name for name in hub.images if name in table.column_names]
        if not columns:
            rows += table
            continue
        files = table
        for column in columns:
            # Undecoded, so that all images go through one reader.
            files = files.cast_column(column, datasets.Image(decode=False))
            table = table.remove_columns(column)
        for number, row in enumerate(table):
            shown = files[number]
            keys = {
                column: (hub.key and hub.key(row)) or _digest(shown[column]) for column in columns
            }
            rows.append({**row, **keys})
            for column, key in keys.items():
                if key is not None:
                    places.setdefault(key, (files, number, column))

    def load(key: str) -> Image.Image:
        files, number, column = places[key]
        return read_image(_content(files[number][column]), f"{key} of {hub.id}")

    return [{hub.renamed.get(name, name): row[name] for name in row} for row in rows], load


def _digest(file: dict[str, Any] | None) -> str | None:
    return None if file is None else hashlib.sha256(_content(file)).hexdigest()[:16]


def _content(file: dict[str, Any]) -> bytes:
    content: bytes | None = file["bytes"]
    return Path(file["path"]).read_bytes() if content is None else content
