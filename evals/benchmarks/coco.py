"""COCO annotation files and image folders."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regaze.evals.benchmarks.data import read_json

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class Annotations:
    """What COCO says about its images.

    Attributes:
        images: Ids of all images of the files, also of those without objects.
        objects: Class names of an image's instances, each once, in order of annotation.
        captions: An image's reference captions.
    """

    images: frozenset[int]
    objects: Mapping[int, tuple[str, ...]]
    captions: Mapping[int, tuple[str, ...]]


def read_annotations(paths: Iterable[Path | str]) -> Annotations:
    """Merge instance and caption files, e.g. the four of COCO 2014.

    Raises:
        ValueError: Not a COCO file, or instances or captions are missing altogether.
        OSError: A file can't be read.
    """
    images: set[int] = set()
    objects: defaultdict[int, dict[str, None]] = defaultdict(dict)
    captions: defaultdict[int, list[str]] = defaultdict(list)
    for path in map(Path, paths):
        content = read_json(path)
        try:
            images.update(image["id"] for image in content["images"])
            names = {c["id"]: c["name"] for c in content.get("categories", ())}
            for entry in content["annotations"]:
                if "caption" in entry:
                    captions[entry["image_id"]].append(entry["caption"])
                else:
                    objects[entry["image_id"]][names[entry["category_id"]]] = None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no COCO instances or captions file: {error!r} went wrong in it"
            ) from error
    for kind, found in (("instances", objects), ("captions", captions)):
        if not found:
            raise ValueError(f"the annotation files hold no {kind}: CHAIR needs {kind}_*.json too")
    return Annotations(
        frozenset(images),
        {image: tuple(entry) for image, entry in objects.items()},
        {image: tuple(entry) for image, entry in captions.items()},
    )


def draw_images(folder: Path, count: int | None, seed: int) -> list[str]:
    """Names of ``count`` images of a folder, sorted; ``None`` takes all.

    The draw is from the sorted names, so it is the same on every file system.

    Raises:
        ValueError: The folder holds fewer images.
        OSError: The folder can't be read.
    """
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if len(names) < (count or 1):
        raise ValueError(f"{folder} holds {len(names)} images, {count or 'some'} are asked for")
    return names if count is None else sorted(random.Random(seed).sample(names, count))


def image_id(name: str) -> int:
    """The id at the end of a COCO file name: 42 for ``COCO_val2014_000000000042.jpg``.

    Raises:
        ValueError: The name doesn't end with a number.
    """
    digits = re.search(r"\d+$", Path(name).stem)
    if digits is None:
        raise ValueError(f"the image name {name!r} doesn't end with a COCO image id")
    return int(digits.group())
