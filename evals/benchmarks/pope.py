"""POPE: is there a dog in the image? Yes/no questions about present and absent objects.

arXiv:2305.10355; RUCAIBox/POPE@3df3ba1. The three subsets (random, popular, adversarial) ask about
the same images with the same positives, so they are scored apart and averaged, never pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.benchmarks.data import fingerprint, open_image, read_records
from regaze.evals.benchmarks.hub import Hub, read_hub
from regaze.evals.benchmarks.pope_profiles import PROFILES, find_profile
from regaze.evals.benchmarks.questions import require
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Task

HUB_ID = "lmms-lab-encoder/POPE"
SUBSETS = ("random", "popular", "adversarial")
SOURCES = ("aokvqa", "gqa")
"""Where images come from in files that aren't about COCO's own objects."""

Record = Mapping[str, Any]
_FIELDS = ("question_id", "image", "text", "label")


@dataclass
class Pope(Task):
    """The task. An item's id is ``subset/question_id``, its target the label.

    Attributes:
        items: All questions; those about one image are neighbours.
        open: Gives the image of a key, as RGB.
        profile: How answers are read, see `regaze.evals.benchmarks.pope_profiles`.
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

        The subset is a question's ``category``, or else what the file's name tells. POPE ships such
        files for COCO, A-OKVQA (COCO's images too) and GQA; VCD ships other ones for the last two,
        which give other numbers, so a run notes the SHA-256 of the files it read.

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
        """Load a data set with the fields of ``lmms-lab-encoder/POPE``, images included.

        Raises:
            ImportError: The package ``datasets`` isn't installed.
            ValueError: As in `from_files`, or there is no such data set.
            OSError: The Hub can't be reached.
        """
        hub = Hub(dataset_id, (split,), key=lambda row: row.get("image_source"))
        rows, load = read_hub(hub)
        records = ({**row, "text": row.get("question"), "label": row.get("answer")} for row in rows)
        return cls.from_records(records, load, profile=profile, max_new_tokens=max_new_tokens)

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

    def under(self, profile: str) -> Pope:
        """The same questions, their answers read under another profile.

        Raises:
            ValueError: Unknown profile.
        """
        return replace(self, profile=profile)

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
    """``adversarial`` for COCO's file, ``aokvqa/adversarial`` for A-OKVQA's."""
    subset = next((name for name in SUBSETS if name in path.stem), path.stem)
    source = next((name for name in SOURCES if name in path.stem), None)
    return f"{source}/{subset}" if source else subset


def _item(place: str, subset: str, record: Record, suffix: str) -> Item:
    require(place, record, _FIELDS, "POPE")
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
