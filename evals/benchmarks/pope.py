"""POPE: is there a dog in the image? Yes/no questions about present and absent objects.

arXiv:2305.10355; RUCAIBox/POPE@3df3ba1. The three subsets (random, popular, adversarial) ask about
the same images with the same positives, so they are scored apart and averaged, never pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import ForeignFileError, Loader, Row, images_in, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.pope_profiles import PROFILES
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums

HUB = Hub(
    "lmms-lab-encoder/POPE",
    ("test",),
    key=lambda row: row.get("image_source"),
    renamed={"question": "text", "answer": "label"},
)
SUBSETS = ("random", "popular", "adversarial")
SOURCES = ("aokvqa", "gqa")
"""Source of the images in files that aren't about COCO's own objects."""

_FIELDS = ("question_id", "image", "text", "label")


@dataclass
class Pope(ProfiledQuestions):
    """The task. An item's id is ``subset/question_id``, its target the label.

    Records have ``question_id``, ``image``, ``text``, ``label`` and, optionally, ``category``, the
    subset. Profiles: `regaze.evals.benchmarks.pope_profiles`; unless told otherwise, answers are as
    long as the profile's own runner lets them be.
    """

    profile: str = "official"
    max_new_tokens: int = 10
    name: str = "pope"
    title = "POPE"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("accuracy", "f1", "yes_ratio", "words")
    yes_no: bool = True

    @classmethod
    def from_files(
        cls,
        questions: Iterable[Path | str],
        images: Path | str,
        *,
        profile: str | None = None,
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
        rows = (
            (place, {**row, "category": row.get("category") or _subset(path)})
            for path in map(Path, questions)
            for place, row in _records(path)
        )
        return cls._build(rows, images_in(images), profile, max_new_tokens)

    @classmethod
    def _build(
        cls,
        rows: Iterable[tuple[str, Row]],
        load: Loader,
        profile: str | None,
        max_new_tokens: int | None,
    ) -> Pope:
        longest = PROFILES[cls._known(profile or cls.profile)].max_new_tokens
        return super()._build(rows, load, profile, max_new_tokens or longest)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        suffix = PROFILES[profile].suffix
        return ((place, _item(place, row, suffix)) for place, row in rows)

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
            **length(text),
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
            **shares(sums),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("accuracy", "precision", "recall", "f1"), 1)
        return {**scores, "yes_ratio": 0, "words": 0, "empty": -1}


def _records(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        yield from read_records(path)
    except ForeignFileError as error:
        raise ValueError(
            f"{error}: POPE's questions are JSON lines. From annotations of pictures they can be "
            "built: regaze build pope --annotations FILE --images DIR --out QUESTIONS.json"
        ) from error


def _subset(path: Path) -> str:
    """``adversarial`` for COCO's file, ``aokvqa/adversarial`` for A-OKVQA's."""
    subset = next((name for name in SUBSETS if name in path.stem), path.stem)
    source = next((name for name in SOURCES if name in path.stem), None)
    return f"{source}/{subset}" if source else subset


def _item(place: str, row: Row, suffix: str) -> Item:
    require(place, row, _FIELDS, "POPE")
    if row["label"] not in ("yes", "no"):
        raise ValueError(f"{place}: label must be 'yes' or 'no', not {row['label']!r}")
    subset = row.get("category") or "all"
    if not isinstance(subset, str):
        raise ValueError(f"{place}: category must be text, not {subset!r:.60}")
    return Item(
        id=f"{subset}/{row['question_id']}",
        image=str(row["image"]),
        prompt=f"{row['text']}{suffix}",
        group=subset,
        target=row["label"],
    )
