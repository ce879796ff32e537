"""AMBER, discriminative part: does the object exist, in that state and number, touching that one?

arXiv:2311.07397; junyangwang0410/AMBER@534babf. "No" is the positive class: precision and recall
say how well a model denies what isn't there. Its descriptions are the task in `amber_generative`;
the paper's AMBER score is the mean of ``1 - chair`` there and the F1 of all questions here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_records
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.benchmarks.yes_no import Verdict, exact, first, words
from regaze.evals.scoring.statistics import Array, ratio
from regaze.evals.task import Counts, Item, Sums, Total, add_up, mean_of
from regaze.hooks.checks import unknown

GENERATIVE = "generative"
GROUPS: Mapping[str, str] = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""Names of AMBER's types in its tables; it labels its relations of truth no ``relation``."""

_ATTRIBUTES = ("state", "number", "action")
_DIMENSIONS = ("existence", "attribute", "relation")
START = 0.001
"""First values of the official script's counters, instead of zero."""


@dataclass(frozen=True)
class Profile:
    """Rules of how answers are read and added up.

    Attributes:
        verdict: A function that reads the verdict of an answer.
        suffix: Text added to each question.
        official: Use the official script's arithmetic: see `Amber.metrics`.
    """

    verdict: Callable[[str], Verdict]
    suffix: str = ""
    official: bool = False


PROFILES: Mapping[str, Profile] = {
    "yesno": Profile(first),
    "strict": Profile(exact, official=True),
    "vlmevalkit": Profile(words, suffix="\nPlease answer yes or no."),
}
"""``strict`` is the official script, under which a sentence is wrong whatever it says; ``yesno``
reads sentences; ``vlmevalkit`` is VLMEvalKit@e8e78f0, which quotes the mean accuracy."""


@dataclass
class Amber(ProfiledQuestions):
    """The task. An item's id is AMBER's, its group the kind of question, its target yes or no.

    Records have ``id``, ``image``, ``query``, ``type`` and ``truth``.
    """

    profile: str = "yesno"
    max_new_tokens: int = 10
    name: str = "amber"
    title = "AMBER"
    profiles = PROFILES
    headline: tuple[str, ...] = ("accuracy", "f1", "yes_ratio", "words")
    yes_no: bool = True

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Amber:
        """Read AMBER's own files.

        Args:
            data: The folder ``data`` of AMBER's repository.
            images: Folder of ``AMBER_1.jpg`` and the others.
            profile: Decides how the prompt ends and how answers are read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: Files of something else, a question without annotation, repeated ids, no
                question, unknown profile.
            OSError: A file can't be read.
        """
        rows = ((p, row) for p, row in read_rows(Path(data)) if row["type"] != GENERATIVE)
        return cls._build(rows, images_in(images), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        suffix = PROFILES[profile].suffix
        return ((place, _item(place, row, suffix)) for place, row in rows)

    def counts(self, item: Item, text: str) -> Counts:
        """One answer's verdict, ``denied`` (said no), ``absent`` (truth no), and its length."""
        said = PROFILES[self.profile].verdict(text)
        denied, absent = said == "no", item.target == "no"
        return {
            "n": 1,
            "correct": int(said == item.target),
            "denied": int(denied),
            "absent": int(absent),
            "rightly_denied": int(denied and absent),
            "existence": int(item.group == "existence"),
            "yes": int(said == "yes"),
            "other": int(said == "other"),
            **length(text),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Accuracy, precision, recall and F1 of "no", and what else the answers are like.

        ``other`` is the share that says neither yes nor no. NaN where a denominator is zero. Under
        ``strict`` the first four are the official script's: every denominator is too large by
        0.001, percentages are rounded to one decimal, and F1 comes from the rounded two with
        0.0001 (for existence 0.001) added to its denominator.
        """
        return self._metrics(sums, 1)

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """Attributes together, and all questions pooled, as AMBER's tables have them.

        Under ``vlmevalkit`` the last one is the unweighted mean over the three dimensions instead.
        """
        totals: dict[str, Total] = {}
        # The official script adds up counters that start at 0.001 each.
        if len(kinds := [name for name in _ATTRIBUTES if name in groups]) > 1:
            sums = add_up([groups[name] for name in kinds])
            totals["attribute"] = Total(tuple(kinds), self._metrics(sums, 3))
        totals.update(self.pooled(groups))
        if self.profile == "vlmevalkit" and len(groups) > 1:
            each = {name: self.metrics(sums) for name, sums in groups.items()}
            each |= {name: dict(total.metrics) for name, total in totals.items()}
            if len(kinds) == 1:
                each["attribute"] = each[kinds[0]]
            shown = [each[name] for name in _DIMENSIONS if name in each]
            totals[f"mean of {len(shown)} dimensions"] = Total(tuple(groups), mean_of(shown))
        return totals

    def _metrics(self, sums: Sums, counters: int) -> dict[str, NDArray[np.float64]]:
        if PROFILES[self.profile].official:
            scores = _official(sums, counters * START)
        else:
            precision = ratio(sums["rightly_denied"], sums["denied"])
            recall = ratio(sums["rightly_denied"], sums["absent"])
            scores = {
                "accuracy": ratio(sums["correct"], sums["n"]),
                "precision": precision,
                "recall": recall,
                "f1": ratio(2 * precision * recall, precision + recall),
            }
        return {**scores, **shares(sums, yes_ratio="yes", other="other")}

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("accuracy", "precision", "recall", "f1"), 1)
        return {**scores, "yes_ratio": 0, "other": -1, "words": 0, "empty": -1}


def read_rows(data: Path) -> Iterator[tuple[str, Row]]:
    """AMBER's queries with their annotations, each with the place it was read from.

    Raises:
        ValueError: These aren't AMBER's files, or a query has no annotation.
        OSError: A file is missing or can't be read.
    """
    annotations, queries = data / "annotations.json", data / "query" / "query_all.json"
    for path in (annotations, queries):
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}: give the folder data of AMBER's repository, which holds "
                "annotations.json and query/query_all.json"
            )
    known = {}
    for place, row in read_records(annotations):
        require(place, row, ("id", "type", "truth"), "annotated AMBER")
        known[row["id"]] = row
    for place, row in read_records(queries):
        require(place, row, ("id", "image", "query"), "AMBER")
        if row["id"] not in known:
            raise ValueError(f"{place}: question {row['id']} is not in {annotations}")
        yield place, {**known[row["id"]], **row}


def official_share(numerator: Array, denominator: Array, start: float = START) -> Array:
    """A share as the official script prints it, with one decimal in percent."""
    return one_decimal(official_percent(numerator, denominator, start)) / 100


def official_percent(numerator: Array, denominator: Array, start: float = START) -> Array:
    """A percentage as the official script computes it: its counters start above zero."""
    return np.asarray(numerator, np.float64) / (denominator + start) * 100


def one_decimal(percent: Array) -> Array:
    """Python's rounding, which ``numpy.round`` doesn't equal where the next decimal is a 5."""
    flat = [round(value, 1) for value in np.ravel(percent).tolist()]
    return np.array(flat, np.float64).reshape(np.shape(percent))


def _official(sums: Sums, start: float) -> dict[str, Array]:
    precision = official_share(sums["rightly_denied"], sums["denied"], start)
    recall = official_share(sums["rightly_denied"], sums["absent"], start)
    extra = np.where((sums["existence"] > 0) & (sums["existence"] == sums["n"]), 0.001, 0.0001)
    return {
        "accuracy": official_share(sums["correct"], sums["n"], start),
        "precision": precision,
        "recall": recall,
        "f1": one_decimal(2 * precision * recall / (precision + recall + extra) * 100) / 100,
    }


def _item(place: str, row: Row, suffix: str) -> Item:
    require(place, row, ("id", "image", "query", "type", "truth"), "AMBER")
    if row["type"] not in GROUPS:
        raise ValueError(f"{place}: {unknown('type of AMBER question', str(row['type']), GROUPS)}")
    if row["truth"] not in ("yes", "no"):
        raise ValueError(f"{place}: truth must be 'yes' or 'no', not {row['truth']!r}")
    return Item(
        id=str(row["id"]),
        image=str(row["image"]),
        prompt=f"{row['query']}{suffix}",
        group=GROUPS[row["type"]],
        target=row["truth"],
    )
