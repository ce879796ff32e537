"""Shared parts of the readers of benchmark data: images, JSON files, a hash of the items."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from regaze.evals.benchmarks.kinds import described, no_json
from regaze.evals.task import Item, is_text

Row = Mapping[str, Any]
Loader = Callable[[str], Image.Image]
"""Gives the image of a key, as RGB."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_HALVES = re.compile(r"\\u[dD][89a-fA-F]")
_IDS = ("id", "question_id", "image_id")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that makes an image upright, by its EXIF orientation."""


def images_in(folder: Path | str, suffix: str = "") -> Loader:
    """Opens images of a folder by name, less a suffix; one that isn't there is told when asked for.

    Args:
        folder: The images' folder.
        suffix: The end of a file's name, behind the key.
    """
    return lambda key: open_image(Path(folder) / f"{key}{suffix}")


def open_image(path: Path) -> Image.Image:
    """The image of a file as RGB, fully read; see `read_image`.

    Raises:
        OSError: Missing or unreadable; the message names the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except OSError as error:
        raise OSError(f"cannot read the image {path}: {error.strerror or error}") from error
    return read_image(data, str(path))


def read_image(data: bytes, name: str) -> Image.Image:
    """An image as a viewer shows it: upright, opaque, 8 bits, RGB.

    Turned as its EXIF says; what is transparent lies on white; 16-bit grey is scaled, not cut off
    at 255; of an animation it is the first frame. For all other images this is Pillow's
    ``convert("RGB")``, which the published scripts use. The format is told by the content,
    whatever the name ends with.

    Args:
        data: The file's content.
        name: The image's name in messages.

    Raises:
        OSError: Damaged, cut off, empty, too large or no image; the message holds the name.
    """
    if not data:
        raise OSError(f"cannot read the image {name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _as_rgb(_upright(image))
    except UnidentifiedImageError:
        why = f"no image format that Pillow knows begins with {data[:12]!r}"
        raise OSError(f"cannot read the image {name}: {why}") from None
    except MemoryError:
        raise
    # Decoders raise nearly anything for damaged files, mostly without the file's name. No such file
    # may end a run, so all of it becomes the one error that a run knows, with its cause.
    except Exception as error:
        raise OSError(f"cannot read the image {name}: {error or type(error).__name__}") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        ValueError: In another encoding, which can't be told for sure, so it isn't guessed; the
            message names file and line. Or a device, some of which have no end.
        OSError: The file can't be read.
    """
    if path.is_char_device():
        raise ValueError(f"{path} is a device: save what it gives as a file")
    data = path.read_bytes()
    marked = (name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark))
    encoding = next(marked, "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wanted = encoding.removesuffix("-sig")
        raise ValueError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is no {wanted}, so it is no text "
            "file or one in another encoding: save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is no text file, it holds zero bytes: save it as UTF-8")
    return text


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: Not JSON, or an object has a key twice; the message names file and line, or
            what the file is instead.
        OSError: The file can't be read.
    """
    text = _json_text(path)
    try:
        found = _parse(path, 1, text)
    except ValueError as error:
        first, _, rest = text.strip().partition("\n")
        if rest and (row := _object(first)) is not None:
            raise ValueError(
                f"{path} is JSON lines, not one JSON object or list; it begins with "
                f"{described(row)}"
            ) from error
        raise
    if _HALVES.search(text):
        _refuse_halves(str(path), found)
    return found


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects with file and line to name in messages, from JSON lines or one JSON array.

    Objects of an array are numbered from 1 instead.

    Raises:
        ValueError: Not JSON, not made of objects, or an object has a key twice; the message names
            file and line, or what the file is instead.
        OSError: The file can't be read.
    """
    text = _json_text(path)
    if text.lstrip().startswith("["):
        entries = list(enumerate(_parse(path, 1, text), 1))
    else:
        try:
            # Not splitlines(): JSON strings may hold U+2028, which ends no line here.
            lines = enumerate(text.split("\n"), 1)
            entries = [(n, _parse(path, n, line)) for n, line in lines if line.strip()]
        except ValueError as error:
            # One object over several lines is told by its fields, like any other.
            if (whole := _object(text)) is None:
                raise error from None
            entries = [(1, whole)]
    may_be_cut = _HALVES.search(text)
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, found {entry!r:.60}")
        if may_be_cut:
            _refuse_halves(f"{path}:{number}", entry)
        yield f"{path}:{number}", entry


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


def _upright(image: Image.Image) -> Image.Image:
    # Not `ImageOps.exif_transpose`: it also writes the EXIF anew, and where another entry of it is
    # damaged that fails, though the orientation is known.
    try:
        told = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return image  # Nothing can be read that says how to turn it.
    return image.transpose(_TURNS[told]) if told in _TURNS else image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255, so that nearly all becomes white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode}), of which nobody knows which one "
            "is white: save it with 8 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class ForeignFileError(ValueError):
    """A file is no JSON; the message says what it is."""


def _json_text(path: Path) -> str:
    if found := no_json(_start(path)):
        raise ForeignFileError(f"{path} is {found}; JSON is expected")
    return read_text(path)


def _start(path: Path) -> bytes:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a pipe or a device, which is read once: save it as a file")
    with path.open("rb") as file:
        return file.read(4096)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, if it is one."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1
        raise ValueError(f"{path}:{where}: malformed JSON: {error.msg}") from error
    except _RepeatedKeyError as error:
        raise ValueError(f"{path}:{line}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: malformed JSON: nested too deeply") from None
    except ValueError:  # Python's own limit.
        raise ValueError(f"{path}:{line}: a number has thousands of digits") from None


def _refuse_halves(where: str, value: Any) -> None:
    r"""Check that texts are texts: JSON can spell ``\ud800``, half of a pair, which no file holds.

    Raises:
        ValueError: One isn't; the message names file, field and the row's id.
    """
    parts: list[tuple[str, str, Any]] = [(where, "", value)]
    while parts:
        where, name, part = parts.pop()
        if isinstance(part, dict):
            here = next((f"{where}, {key} {part[key]!a:.60}" for key in _IDS if key in part), where)
            parts += [(where, f"a key of {name or 'the object'}", key) for key in part]
            parts += [(here, f"{name}.{key}".lstrip("."), each) for key, each in part.items()]
        elif isinstance(part, list):
            parts += [(where, f"{name}.{n}".lstrip("."), each) for n, each in enumerate(part)]
        elif isinstance(part, str) and not is_text(part):
            raise ValueError(
                f"{where}: {name or 'the content'} is {part!a:.60}, which holds half of a "
                "surrogate pair, so it is no text and can't be stored: correct it in the file"
            )


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(f"the key {key!r} occurs twice in the object {found!r:.80}")
        found[key] = value
    return found
