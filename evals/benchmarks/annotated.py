"""Objects in one's own pictures, from COCO, Pascal VOC, a table or POPE's own lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from regaze.evals.benchmarks.coco import Id, find_pictures, pictures_in, read_annotations
from regaze.evals.benchmarks.data import read_json, read_records, read_text
from regaze.evals.benchmarks.kinds import described, no_json
from regaze.evals.benchmarks.rows import require, texts

FORMATS = (
    "COCO's instances (JSON), a folder of Pascal-VOC files (XML), a table with the columns image "
    "and object (CSV), or POPE's lines of image and objects"
)


@dataclass(frozen=True)
class Annotated:
    """Pictures of a folder and what is in them.

    Attributes:
        objects: Classes in each picture, each once, in order of annotation; by its path in the
            folder, sorted by path.
        form: The form they were read from, in words.
        absent: Annotated pictures that the folder lacks.
        extra: Pictures of the folder that aren't annotated.
    """

    objects: Mapping[str, tuple[str, ...]]
    form: str
    absent: int
    extra: int


def read_objects(paths: Sequence[Path], images: Path) -> Annotated:
    """Read annotations of one's own pictures.

    Objects that are marked crowd (COCO) or difficult (VOC) count: they are in the picture. Parts
    of objects (VOC) don't.

    Args:
        paths: Files or folders of one of the forms in `FORMATS`.
        images: Folder of the pictures; those below it are found too.

    Raises:
        ValueError: Files of something else or of several forms, or no picture that is annotated.
        OSError: A file can't be read.
    """
    files = [file for path in paths for file in _files(path)]
    forms = {file: _form(file) for file in files}
    if len(set(forms.values())) > 1:
        one, *others = files
        other = next(file for file in others if forms[file] != forms[one])
        raise ValueError(f"{one} holds {forms[one]}, {other} {forms[other]}: give one form")
    form = next(iter(forms.values()))
    named: Mapping[Id, str]
    found: Mapping[Id, tuple[str, ...]]
    if form == _COCO:
        known = read_annotations(files)
        if not known.objects:
            raise ValueError(f"{files[0]} holds no instances: instances_*.json does")
        named, found = known.images, known.objects
    else:
        found = _READERS[form](files)
        named = {name: str(name) for name in found}
    shown = find_pictures(images, named)
    return Annotated(
        {name: found.get(image, ()) for name, image in shown.items()},
        form,
        len(named) - len(shown),
        len(pictures_in(images)) - len(shown),
    )


_COCO, _VOC, _CSV, _POPE = "COCO's format", "Pascal VOC's format", "a table", "POPE's own format"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for pattern in ("*.xml", "instances*.json"):
        if found := sorted(path.glob(pattern)):
            return found
    inside = sorted(each.name for each in path.iterdir())
    raise ValueError(
        f"{path} holds neither Pascal-VOC files (*.xml) nor instances*.json, but "
        f"{', '.join(inside[:4]) or 'nothing'}{', ...' if inside[4:] else ''}: name the files"
    )


def _form(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4096)
    told = no_json(start)
    if path.suffix.lower() == ".csv" and (told or "a table").startswith("a table"):
        return _CSV
    if told is None and start.strip():
        content: object
        try:
            content = read_json(path)
        except ValueError:
            content = [row for _, row in read_records(path)]
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            return _COCO
        rows = content if isinstance(content, list) else [content]
        if rows and isinstance(rows[0], dict) and {"image", "objects"} <= rows[0].keys():
            return _POPE
        told = described(content)
    if told is not None and "Pascal-VOC" in told:
        return _VOC
    if told is not None and told.startswith("a table (CSV)"):
        return _CSV
    raise ValueError(f"{path} is {told or 'empty'}; objects are read from {FORMATS}")


def _voc(paths: Iterable[Path]) -> dict[Id, tuple[str, ...]]:
    found: dict[Id, tuple[str, ...]] = {}
    for path in paths:
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError(f"{path} declares a document type, as no Pascal-VOC file does")
        try:
            root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{path}: malformed XML: {error}") from error
        if root.tag != "annotation":
            raise ValueError(f"{path} is XML of <{root.tag}>, no Pascal-VOC <annotation>")
        name = (root.findtext("filename") or "").strip()
        if not name:
            raise ValueError(f"{path} has no <filename>, so whose objects these are isn't told")
        if not PurePosixPath(name).suffix:
            # Some tools leave the ending out; the annotation's own name has none either.
            raise ValueError(f"{path}: the <filename> {name!r} has no ending such as .jpg")
        _new(found, name, str(path))
        names = [(each.findtext("name") or "").strip() for each in root.findall("object")]
        if "" in names:
            raise ValueError(f"{path}: object {names.index('') + 1} has no <name>")
        found[name] = tuple(dict.fromkeys(names))
    return found


def _table(paths: Iterable[Path]) -> dict[Id, tuple[str, ...]]:
    found: dict[Id, dict[str, None]] = {}
    for path in paths:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        if columns.count("image") != 1 or columns.count("object") != 1:
            first = ", ".join(map(repr, reader.fieldnames or ()))
            raise ValueError(
                f"{path}:1: the first line must name the columns, image and object among them, "
                f"separated by commas; it is {first or 'empty'}"
            )
        reader.fieldnames = columns
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                require(place, row, ("image", "object"), "row of objects:")
                image, name = row["image"].strip(), row["object"].strip()
                if not image or not name:
                    raise ValueError(f"{place}: image and object must not be empty")
                found.setdefault(image, {})[name] = None
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: malformed CSV: {error}") from error
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))} names no object: a row for each is needed")
    return {image: tuple(names) for image, names in found.items()}


def _lines(paths: Iterable[Path]) -> dict[Id, tuple[str, ...]]:
    found: dict[Id, tuple[str, ...]] = {}
    for path in paths:
        for place, row in read_records(path):
            require(place, row, ("image", "objects"), "OPOPE")
            _new(found, str(row["image"]), place)
            found[str(row["image"])] = tuple(dict.fromkeys(texts(place, row, "objects")))
    return found


def _new(found: Mapping[Id, object], image: str, place: str) -> None:
    if image in found:
        raise ValueError(f"{place}: the image {image} is annotated twice")


_READERS = {_VOC: _voc, _CSV: _table, _POPE: _lines}
