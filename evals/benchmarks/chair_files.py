"""CHAIR's files: a word table, and the annotated pictures of a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from regaze.evals.benchmarks.chair_synonyms import SynonymFinder, load_synonyms
from regaze.evals.benchmarks.chair_words import ObjectFinder, load_table
from regaze.evals.benchmarks.coco import Annotations, Id, coco_id, draw, find_pictures, pictures_in

_log = logging.getLogger(__name__)

COUNT = 500
"""Images that published figures are over."""


def finder(
    words: Path | str | Mapping[str, str] | None,
    synonyms: Path | str | None,
    profile: str | None,
    known: Annotations,
) -> ObjectFinder | SynonymFinder:
    """A reader of captions by the table that was given.

    Raises:
        ValueError: The table or the profile doesn't fit the annotations.
        OSError: A file is missing or can't be read.
    """
    missing = [name for name in ("objects", "captions") if not getattr(known, name)]
    kinds = {"objects": "instances", "captions": "captions"}
    for name in missing:
        if name == "objects" or synonyms is None:
            raise ValueError(
                f"the annotation files hold no {kinds[name]}: CHAIR needs {kinds[name]}_*.json too"
            )
    if synonyms is None:
        table = words if isinstance(words, Mapping) else load_table(words)
        unseen = sorted(set(table.values()) - set(known.classes))
        if unseen:
            _log.warning(
                "nobody looked for %d of CHAIR's %d classes (%s, ...), so every mention of them "
                "counts as hallucinated: the annotation files' categories lack them",
                *(len(unseen), len(set(table.values())), unseen[0]),
            )
        return ObjectFinder(table, profile or "official")
    if words is not None or profile not in (None, SynonymFinder.profile):
        raise ValueError(
            "a table of synonyms of your own stands in place of CHAIR's words and has one profile, "
            f"{SynonymFinder.profile!r}"
        )
    own = SynonymFinder(load_synonyms(Path(synonyms), known.classes))
    if missing:
        _log.warning(
            "no reference captions, so only annotated objects are true; CHAIR's own truth also "
            "holds what people mention"
        )
    return own


def annotated_pictures(folder: Path, known: Annotations) -> dict[str, Id]:
    """The id of each image of a folder.

    Raises:
        ValueError: One of them isn't annotated.
    """
    paths = pictures_in(folder)
    shown = find_pictures(folder, known.images) if paths else {}
    if strange := [path for path in paths if path not in shown]:
        number = coco_id(strange[0])
        told = (
            f"image {strange[0]} (id {number}) is not in the annotation files"
            if number is not None
            else f"the name {strange[0]!r} doesn't end with a COCO image id, and no annotation "
            "names it"
        )
        raise ValueError(
            f"{told}: {len(strange)} of {len(paths)} images of {folder} can't be scored; give "
            "their annotations too, or a folder without them"
        )
    return shown


def drawn(names: list[str], count: int | None, seed: int, folder: Path) -> list[str]:
    """Some images, or all where there are fewer than usual, which is logged.

    Raises:
        ValueError: There are fewer than were asked for.
    """
    if count is None and 0 < len(names) < COUNT:
        _log.warning("%s holds %d images, fewer than %d: all are taken", folder, len(names), COUNT)
        return names
    return draw(names, COUNT if count is None else count, seed, folder)


def label(find: ObjectFinder | SynonymFinder) -> str:
    """The profile's name as reports show it."""
    return find.profile if find.sentences == "punkt" else f"{find.profile}/{find.sentences}"
