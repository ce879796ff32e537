"""POPE: is there a dog in the image? Yes/no questions about present and absent objects.

arXiv:2305.10355; RUCAIBox/POPE@3df3ba1. The three subsets (random, popular, adversarial) ask about
the same images with the same positives, so they are scored apart and averaged, never pooled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.data import fingerprint, open_image, read_records
from regaze.evals.pope_profiles import PROFILES, find_profile
from regaze.evals.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Task

HUB_ID = "lmms-lab/POPE"
SUBSETS = ("random", "popular", "adversarial")

Record = Mapping[str, Any]
_FIELDS = ("question_id", "image", "text", "label")


@dataclass
class Pope(Task):
    """The task. An item's id is ``subset/question_id``, its target the label.

    Attributes:
        items: All questions; those about one image are neighbours.
        open: Gives the image of a key, as RGB.
        profile: How answers are read, see `regaze.evals.pope_profiles`.
        max_new_tokens: Longest answer to generate.
    """

    items: Sequence[Item]
    open: Callable[[str], Image.Image]
    profile: str = "official"
    max_new_tokens: int = 10
    name: str = "pope"
    headline: tuple[str, ...] = ("accuracy", "f1", "yes_ratio", "words")
    yes_no: bool = True

    def __post_init__(self) -> None:
        find_profile(self.profile)
        if not self.items:
            raise ValueError("POPE has no questions: the files or records are empty")

    @classmethod
    def from_files(
        cls,
        questions: Iterable[Path | str],
        images: Path | str,
        *,
        profile: str = "official",
        max_new_tokens: int | None = None,
    ) -> Pope:
        """Read question files (JSON lines, or one JSON array each) and images from a folder.

        The subset is a question's ``category``, or else what the file's name tells.

        Args:
            questions: The files, e.g. the three ``coco_pope_*.json``.
            images: Folder of the images; a missing image is reported when it is loaded.
            profile: Decides how the prompt ends and how answers are read.
            max_new_tokens: Default: what the profile's own runner uses.

        Raises:
            ValueError: Malformed or incomplete line (with file and line number), wrong label,
                repeated question, no question at all, unknown profile.
            OSError: A file can't be read.
        """
        folder = Path(images)
        records = (
            (f"{path}:{line}", _subset(path), record)
            for path in map(Path, questions)
            for line, record in read_records(path)
        )
        return cls._build(records, lambda name: open_image(folder / name), profile, max_new_tokens)

    @classmethod
    def from_records(
        cls,
        records: Iterable[Record],
        load_image: Callable[[str], Image.Image],
        *,
        profile: str = "official",
        max_new_tokens: int | None = None,
    ) -> Pope:
        """Take questions from memory.

        Args:
            records: ``question_id``, ``image``, ``text``, ``label`` and, optionally, ``category``.
            load_image: Gives the image of a record's ``image`` field.
            profile: As in `from_files`.
            max_new_tokens: As in `from_files`.

        Raises:
            ValueError: As in `from_files`.
        """
        named = ((f"record {i}", "all", record) for i, record in enumerate(records))
        return cls._build(named, load_image, profile, max_new_tokens)

    @classmethod
    def from_hub(
        cls,
        dataset_id: str = HUB_ID,
        *,
        split: str = "test",
        profile: str = "official",
        max_new_tokens: int | None = None,
    ) -> Pope:
        """Load a data set with the fields of ``lmms-lab/POPE``, images included.

        Raises:
            ImportError: The package ``datasets`` isn't installed.
            ValueError: As in `from_files`.
        """
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                "reading POPE from the Hub needs the package datasets: pip install 'regaze[hub]'"
            ) from error
        rows = datasets.load_dataset(dataset_id, split=split)
        names = _image_names(rows, datasets)
        first = {name: row for row, name in reversed(list(enumerate(names)))}
        texts = rows.remove_columns("image")
        records = (
            {**row, "image": name, "text": row.get("question"), "label": row.get("answer")}
            for row, name in zip(texts, names, strict=True)
        )
        return cls.from_records(
            records,
            lambda name: rows[first[name]]["image"].convert("RGB"),
            profile=profile,
            max_new_tokens=max_new_tokens,
        )

    @classmethod
    def _build(
        cls,
        records: Iterable[tuple[str, str, Record]],
        load: Callable[[str], Image.Image],
        profile: str,
        max_new_tokens: int | None,
    ) -> Pope:
        rules = find_profile(profile)
        by_image: dict[str, list[Item]] = {}
        seen: dict[str, str] = {}
        for place, subset, record in records:
            item = _item(place, subset, record, rules.suffix)
            if item.id in seen:
                raise ValueError(f"{place}: question {item.id} is already at {seen[item.id]}")
            seen[item.id] = place
            by_image.setdefault(str(item.image), []).append(item)
        items = tuple(item for group in by_image.values() for item in group)
        return cls(items, load, profile, max_new_tokens or rules.max_new_tokens)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of the questions, their labels and the names of their images."""
        return fingerprint(self.items)

    def load_image(self, item: Item) -> Image.Image:
        """The item's image as RGB.

        Raises:
            OSError: Missing or unreadable; the message names the file.
        """
        return self.open(str(item.image))

    def counts(self, item: Item, text: str) -> Counts:
        """Confusion cell of one answer, and its length.

        ``other`` marks an answer that says neither yes nor no (only some profiles know it),
        ``positives`` a label yes. ``words`` are separated by white space.
        """
        said = PROFILES[self.profile].verdict(text, item.target)
        cell = {("yes", "yes"): "tp", ("yes", "no"): "fp", ("no", "no"): "tn", ("no", "yes"): "fn"}
        found = cell.get((said, item.target), "other")
        return {
            **{name: int(name == found) for name in ("tp", "fp", "tn", "fn", "other")},
            "n": 1,
            "positives": int(item.target == "yes"),
            "correct": int(said == item.target),
            "words": len(text.split()),
            "empty": int(not text.strip()),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Accuracy, precision, recall, F1, yes ratio, mean words and share of empty answers.

        NaN where a denominator is zero; there the official script raises ZeroDivisionError, and
        lmms-eval and VLMEvalKit print 0. The yes ratio is (TP + FP) / N, but ``lmms`` computes it
        from the labels, so it says nothing about the answers.
        """
        profile = PROFILES[self.profile]
        tp, fp, n = sums["tp"], sums["fp"], sums["n"]
        precision = ratio(tp, tp + fp)
        recall = ratio(tp, sums["positives"] if profile.other_missed else tp + sums["fn"])
        return {
            "accuracy": ratio(sums["correct"], n - sums["other"] if profile.other_excluded else n),
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall),
            "yes_ratio": ratio(sums["positives"] if profile.yes_ratio_of_labels else tp + fp, n),
            "words": ratio(sums["words"], n),
            "empty": ratio(sums["empty"], n),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("accuracy", "precision", "recall", "f1"), 1)
        return {**scores, "yes_ratio": 0, "words": 0, "empty": -1}


def _subset(path: Path) -> str:
    return next((subset for subset in SUBSETS if subset in path.stem), path.stem)


def _item(place: str, subset: str, record: Record, suffix: str) -> Item:
    if missing := [field for field in _FIELDS if record.get(field) is None]:
        raise ValueError(
            f"{place}: no POPE question, it lacks {', '.join(missing)} "
            f"(it has {', '.join(map(str, record)) or 'nothing'})"
        )
    if record["label"] not in ("yes", "no"):
        raise ValueError(f"{place}: label must be 'yes' or 'no', not {record['label']!r}")
    subset = str(record.get("category") or subset)
    return Item(
        id=f"{subset}/{record['question_id']}",
        image=str(record["image"]),
        prompt=f"{record['text']}{suffix}",
        group=subset,
        target=record["label"],
    )


def _image_names(rows: Any, datasets: Any) -> list[str]:
    """The rows' image names; where there are none, a hash of the image file tells images apart."""
    if "image_source" in rows.column_names:
        return [str(name) for name in rows["image_source"]]
    files = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    return [hashlib.sha256(row["image"]["bytes"]).hexdigest()[:16] for row in files]
