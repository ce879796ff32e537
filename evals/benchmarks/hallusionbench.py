"""HallusionBench: illusions, and figures whose edited copy changes the answer; yes or no.

arXiv:2310.14566; tianyi-lab/HallusionBench@744007c. Visual-dependent questions (VD) need the
figure; visual-supplement ones (VS) are asked without it, with it and with an edited one. The
authors let GPT-4 judge free answers; here yes or no is read from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Loader, Row, images_in, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.benchmarks.yes_no import Verdict, first, words
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Total, add_up

_KEY = ("category", "subcategory", "set_id", "figure_id", "question_id")
_FIELDS = (*_KEY, "visual_input", "question", "gt_answer")
_EDITED = "2"


def image_key(row: Row) -> str | None:
    """The key of a record's image, or None where there is none."""
    if str(row["visual_input"]) == "0":
        return None
    return "{category}/{subcategory}/{set_id}_{figure_id}.png".format(**row)


HUB = Hub("lmms-lab-encoder/HallusionBench", ("image", "non_image"), key=image_key)


@dataclass(frozen=True)
class Profile:
    """Rules of how answers are read.

    Attributes:
        verdict: A function that reads the verdict of an answer.
        only_images: Questions without image don't count; where they do, saying neither yes nor no
            to one is right, as in the official script, since nobody can know.
    """

    verdict: Callable[[str], Verdict]
    only_images: bool


PROFILES: Mapping[str, Profile] = {
    "yesno": Profile(first, only_images=False),
    "vlmevalkit": Profile(words, only_images=True),
}
"""``yesno`` is the official arithmetic over all 1,129 questions with yes or no read from the text
in GPT-4's place; ``vlmevalkit`` is VLMEvalKit@e8e78f0 without a judge, over the 951 with an image.
"""


@dataclass
class HallusionBench(ProfiledQuestions):
    """The task.

    An item's id is ``category/subcategory/set/figure/question``, its group the first two of these,
    its cluster the first three, its target yes or no. Records are those of its file.

    Attributes:
        edited: Ids of the questions about an edited figure, which the authors call hard.
    """

    profile: str = "yesno"
    max_new_tokens: int = 128
    edited: frozenset[str] = field(default=frozenset(), repr=False)
    name: str = "hallusionbench"
    title = "HallusionBench"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("accuracy", "f_acc", "q_acc", "yes_ratio")
    yes_no: bool = True

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> HallusionBench:
        """Read the benchmark's own files.

        Args:
            data: ``HallusionBench.json``.
            images: The unpacked ``hallusion_bench``, with folders ``VD`` and ``VS``.
            profile: Decides how answers are read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, unknown profile.
            OSError: A file can't be read.
        """
        return cls._build(read_records(Path(data)), images_in(images), profile, max_new_tokens)

    @classmethod
    def _build(
        cls,
        rows: Iterable[tuple[str, Row]],
        load: Loader,
        profile: str | None,
        max_new_tokens: int | None,
    ) -> HallusionBench:
        known = list(rows)
        task = super()._build(known, load, profile, max_new_tokens)
        edited = (row for _, row in known if str(row["visual_input"]) == _EDITED)
        return replace(task, edited=frozenset("/".join(_parts(row)) for row in edited))

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        return ((place, _item(place, row)) for place, row in rows)

    def counts(self, item: Item, text: str) -> Counts:
        """One answer's verdict and length; all zero if the profile leaves the question out."""
        profile = PROFILES[self.profile]
        said = profile.verdict(text)
        counts = {
            "n": 1,
            "correct": int(said == item.target or (said == "other" and item.image is None)),
            "yes": int(said == "yes"),
            "other": int(said == "other"),
            **length(text),
        }
        left_out = profile.only_images and item.image is None
        return dict.fromkeys(counts, 0) if left_out else counts

    def tally(self, items: Sequence[Item], counts: Sequence[Counts]) -> Counts:
        """Adds how many ``figures`` and ``questions`` there are, and of how many all is right.

        A question is the same text about all figures of its set; ``easy`` and ``hard`` are those
        of its parts that ask about no or the original figure, and about an edited one.
        """
        asked = [(i, each) for i, each in zip(items, counts, strict=True) if each["n"]]
        right: dict[str, dict[str, bool]] = {
            k: {} for k in ("figures", "questions", "easy", "hard")
        }
        for item, each in asked:
            *_, figure, question = item.id.split("/")
            names = {"questions": question, "hard" if item.id in self.edited else "easy": question}
            if item.image is not None:
                names["figures"] = figure
            for kind, name in names.items():
                right[kind][name] = right[kind].get(name, True) and each["correct"] > 0
        sizes = {kind: len(found) for kind, found in right.items()}
        wholes = {f"{kind}_right": sum(found.values()) for kind, found in right.items()}
        return {**super().tally(items, counts), **sizes, **wholes}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """The three accuracies, their mean, those of easy and hard, and what answers are like.

        ``accuracy``: questions right, the authors' aAcc; ``f_acc``: figures with all questions
        right; ``q_acc``: questions right about all figures of their set; ``average``: VLMEvalKit's
        overall score. ``easy`` and ``hard`` are what the authors print as easy and hard aAcc.
        """
        accuracy = ratio(sums["correct"], sums["n"])
        f_acc = ratio(sums["figures_right"], sums["figures"])
        q_acc = ratio(sums["questions_right"], sums["questions"])
        return {
            "accuracy": accuracy,
            "f_acc": f_acc,
            "q_acc": q_acc,
            "average": (accuracy + f_acc + q_acc) / 3,
            "easy": ratio(sums["easy_right"], sums["easy"]),
            "hard": ratio(sums["hard_right"], sums["hard"]),
            **shares(sums, yes_ratio="yes", other="other"),
        }

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """VD, VS and all questions, each pooled."""
        members = {
            category: tuple(name for name in groups if name.startswith(f"{category}/"))
            for category in dict.fromkeys(name.partition("/")[0] for name in groups)
        }
        totals = {
            name: Total(found, self.metrics(add_up([groups[each] for each in found])))
            for name, found in members.items()
            if len(found) > 1
        }
        return {**totals, **self.pooled(groups)}

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("accuracy", "f_acc", "q_acc", "average", "easy", "hard"), 1)
        return {**scores, "yes_ratio": 0, "other": -1, "words": 0, "empty": -1}


def _item(place: str, row: Row) -> Item:
    require(place, row, _FIELDS, "HallusionBench")
    answer = {"0": "no", "1": "yes"}.get(str(row["gt_answer"]))
    if answer is None:
        raise ValueError(f"{place}: gt_answer must be 0 or 1, not {row['gt_answer']!r}")
    parts = _parts(row)
    return Item(
        id="/".join(parts),
        image=image_key(row),
        prompt=str(row["question"]),
        group="/".join(parts[:2]),
        target=answer,
        cluster="/".join(parts[:3]),
    )


def _parts(row: Row) -> list[str]:
    return [str(row[name]) for name in _KEY]
