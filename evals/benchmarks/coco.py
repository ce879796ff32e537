"""COCO annotation files, and which of a folder's pictures they are about."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from regaze.evals.benchmarks.data import ForeignFileError, read_json
from regaze.evals.benchmarks.kinds import described

Id = int | str
"""COCO's ids are numbers; other tools also write text."""

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
"""COCO names a picture by its id: with the split before it in 2014, without since 2017."""


@dataclass(frozen=True)
class Annotations:
    """COCO's annotations of images.

    Attributes:
        images: File name of every image by its id, also of those without objects; empty where the
            files don't tell.
        objects: Class names of an image's instances, each once, in order of annotation. Crowds
            (``iscrowd``) count: there is something of the class.
        captions: An image's reference captions.
        classes: The classes that were looked for, whether or not there is one.
    """

    images: Mapping[Id, str]
    objects: Mapping[Id, tuple[str, ...]]
    captions: Mapping[Id, tuple[str, ...]]
    classes: tuple[str, ...] = ()


def read_annotations(paths: Iterable[Path | str]) -> Annotations:
    """Merge instance and caption files, e.g. the four of COCO 2014, or one of one's own.

    Raises:
        ValueError: Not a COCO file, one that contradicts itself, or two that give one id to two
            pictures.
        OSError: A file can't be read.
    """
    merged = _Merged()
    for path in map(Path, paths):
        try:
            content = read_json(path)
        except ForeignFileError as error:
            raise ValueError(f"{error}: COCO's instances_*.json or captions_*.json") from error
        merged.add(path, content)
    return Annotations(
        merged.images,
        {image: tuple(names) for image, names in merged.objects.items()},
        {image: tuple(texts) for image, texts in merged.captions.items()},
        tuple(merged.classes),
    )


def find_pictures(folder: Path, images: Mapping[Id, str]) -> dict[str, Id]:
    """The annotated images in a folder or below it: ids by path in it, sorted by path.

    A picture is found by the path or the file name that its annotation gives; or, if it is named
    as COCO names its own, by the id in its name, so that annotations of 2014 fit pictures of 2017.

    Raises:
        ValueError: One annotation fits several pictures or two fit one, or none fits any.
        OSError: The folder can't be read.
    """
    paths = pictures_in(folder)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    by_id: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_name[PurePosixPath(path).name].append(path)
        if (number := coco_id(path)) is not None:
            by_id[str(number)].append(path)
    known, found = set(paths), dict[str, Id]()
    for image, given in images.items():
        name = given.replace("\\", "/")
        fits = [name] if name in known else by_name.get(PurePosixPath(name).name, [])
        if not fits and (not name or coco_id(name) == image):
            fits = by_id.get(str(image), [])
        if len(fits) > 1:
            raise ValueError(
                f"{folder} holds {len(fits)} pictures that image {image} of the annotations may "
                f"be: {fits[0]} and {fits[1]}"
            )
        for path in fits:
            if path in found:
                raise ValueError(f"images {found[path]} and {image} are both {path} of {folder}")
            found[path] = image
    if not found:
        raise ValueError(
            f"none of the {len(images)} annotated images is in {folder}"
            + (f", e.g. {name}" if (name := next(iter(images.values()), "")) else "")
            + f"; it holds {len(paths)} pictures{', e.g. ' + paths[0] if paths else ''}"
        )
    return dict(sorted(found.items()))


def pictures_in(folder: Path) -> list[str]:
    """Paths of all pictures in a folder and below, relative to it, sorted.

    Raises:
        OSError: The folder can't be read.
    """
    folder.stat()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder that it is in")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in files if path.is_file())


def draw_images(folder: Path, count: int | None, seed: int) -> list[str]:
    """Names of ``count`` images of a folder, sorted; ``None`` takes all.

    The draw is from the sorted names, so it is the same on every file system.

    Raises:
        ValueError: The folder holds fewer images.
        OSError: The folder can't be read.
    """
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    return draw(names, count, seed, folder)


def draw(names: list[str], count: int | None, seed: int, folder: Path) -> list[str]:
    """Draw names of images that are listed already; see `pick`."""
    if len(names) < (count or 1):
        raise ValueError(f"{folder} holds {len(names)} images, {count or 'some'} are asked for")
    return names if count is None else sorted(random.Random(seed).sample(names, count))


def coco_id(name: str) -> int | None:
    """42 for ``COCO_val2014_000000000042.jpg`` and ``000000000042.jpg``; None for other names."""
    found = _COCO_NAME.fullmatch(PurePosixPath(name).stem)
    return int(found[1]) if found else None


@dataclass
class _Merged:
    """The annotations of several files together."""

    images: dict[Id, str] = field(default_factory=dict)
    objects: defaultdict[Id, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    captions: defaultdict[Id, list[str]] = field(default_factory=lambda: defaultdict(list))
    classes: dict[str, None] = field(default_factory=dict)

    def add(self, path: Path, content: Any) -> None:
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(
                f"{path} is {described(content)}, no COCO instances or captions file: that is one "
                "JSON object with images, annotations and, for instances, categories"
            )
        for entry in _entries(path, content, "images", ("id",)):
            self._image(path, entry)
        names = {
            entry["id"]: str(entry["name"]).strip()
            for entry in _entries(path, content, "categories", ("id", "name"))
        }
        self.classes |= dict.fromkeys(names.values())
        for entry in _entries(path, content, "annotations", ("image_id",)):
            image = entry["image_id"]
            if image not in self.images:
                raise ValueError(f"{path}: an annotation is of image {image!r}, not in its images")
            if "caption" in entry:
                self.captions[image].append(str(entry["caption"]))
            elif "category_id" not in entry:
                raise ValueError(f"{path} is {described(content)}: instances or captions are read")
            elif entry["category_id"] not in names:
                raise ValueError(
                    f"{path}: an annotation of image {image} is of category "
                    f"{entry['category_id']!r}, which is not among its categories"
                )
            else:
                self.objects[image][names[entry["category_id"]]] = None

    def _image(self, path: Path, entry: Mapping[str, Any]) -> None:
        image = entry["id"]
        name = str(entry.get("file_name") or str(entry.get("coco_url") or "").rpartition("/")[2])
        before = self.images.get(image) or name
        # COCO's own pictures keep their ids from year to year.
        same = before == name or coco_id(name) is not None and coco_id(name) == coco_id(before)
        if name and not same:
            raise ValueError(
                f"{path}: image {image} is {name}, but {before} in another file: annotations whose "
                "ids count other pictures can't be merged"
            )
        self.images[image] = before


def _entries(
    path: Path, content: Mapping[str, Any], part: str, fields: Iterable[str]
) -> list[dict[str, Any]]:
    """The entries of a part of a file, each with what is looked up by."""
    entries = [] if content.get(part) is None else content[part]
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no COCO instances or captions file: its {part} is no list")
    for number, entry in enumerate(entries):
        for name in fields:
            value = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ValueError(
                    f"{path} is no COCO instances or captions file: {part}[{number}] has no {name}"
                )
    return entries
