"""NaturalBench: two questions about two images, each with opposite answers on the two.

arXiv:2410.14669; Baiqi-Li/NaturalBench@9967605 ``naturalbench_vqa.py``. A model that doesn't look
can't answer a question right on both images, nor one that leans to yes; so scores are of pairs and
of all four answers. No judge is needed: yes or no, A or B, are read from the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_json, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.benchmarks.yes_no import first
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Total
from regaze.hooks.checks import unknown

YES_NO, CHOICE = "yes_no", "multiple_choice"
ENDINGS: Mapping[str, str] = {
    YES_NO: "Please answer Yes or No.",
    CHOICE: "Please output the letter corresponding to the correct option.",
}
"""The request behind each type of question."""

_TYPES = {YES_NO: YES_NO, CHOICE: CHOICE, "mcq": CHOICE}
_ANSWERS = {YES_NO: ("yes", "no"), CHOICE: ("a", "b")}
_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Question and image of a group's four answers, in the order of its files."""

_GROUPED = ("Question_0", "Question_1", "Image_0", "Image_1", "Question_Type")
_SINGLE = ("Question", "Image", "Answer", "Question_Type")

HUB = Hub("BaiqiL/NaturalBench", ("train",), images=("Image_0", "Image_1"))


@dataclass(frozen=True)
class Profile:
    """A way to ask questions; answers are read alike.

    Attributes:
        source: Repository@commit and file.
        joint: Text between a question and its ending.
    """

    source: str
    joint: str


PROFILES: Mapping[str, Profile] = {
    "official": Profile("Baiqi-Li/NaturalBench@9967605 naturalbench_vqa.py", ""),
    "lmms": Profile("EvolvingLMMs-Lab/lmms-eval@091256e lmms_eval/tasks/naturalbench", " "),
}
"""The official script puts the ending right behind the question; lmms-eval and VLMEvalKit put a
blank between them."""


@dataclass
class NaturalBench(ProfiledQuestions):
    """The task. An item's id is ``group/q0_i1``, its cluster the group, its group the type.

    Records are groups as on the Hub (``Question_0``, ``Question_1``, ``Image_0``, ``Image_1``,
    ``Question_Type``, the answers ``Image_0_Question_0`` and so on, ``Index`` if there is one); or,
    four a group in a row, single questions as in lmms-eval's copy (``Question``, ``Image``,
    ``Answer``, ``Question_Type``).
    """

    profile: str = "official"
    max_new_tokens: int = 16
    name: str = "naturalbench"
    title = "NaturalBench"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("g_acc", "q_acc", "i_acc", "accuracy")
    units: str = "groups"

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> NaturalBench:
        """Read groups or single questions from a file.

        Args:
            data: JSON lines or a JSON list of records, in which images are names of files; or the
                repository's ``test_set.json``, a list of question, image, answer and type.
            images: Their folder.
            profile: Decides how questions are asked.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, an incomplete
                group, unknown profile.
            OSError: A file can't be read.
        """
        return cls._build(_read(Path(data)), images_in(images), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        joint = PROFILES[profile].joint
        for place, group, number, row in _singles(rows):
            yield place, _item(place, f"{group}/q{number[0]}_i{number[1]}", group, row, joint)

    @staticmethod
    def _asked(rules: Profile) -> object:
        return rules.joint

    def counts(self, item: Item, text: str) -> Counts:
        """The verdict of one answer, and its length. The first yes or no, A or B decides."""
        said = first(text) if item.group == YES_NO else _letter(text)
        return {
            "n": 1,
            "correct": int(said == item.target),
            "yes": int(said == "yes"),
            "yes_no": int(item.group == YES_NO),
            "other": int(said == "other"),
            **length(text),
        }

    def tally(self, items: Sequence[Item], counts: Sequence[Counts]) -> Counts:
        """Adds the group's pairs and whether all is right; four answers make a group."""
        right = {
            item.id.rpartition("/")[2]: each["correct"] > 0
            for item, each in zip(items, counts, strict=True)
        }
        whole = len(right) == len(_PLACES)
        pairs = {"questions": ("q{}_i0", "q{}_i1"), "images": ("q0_i{}", "q1_i{}")}
        found = {
            kind: sum(all(right[name.format(k)] for name in names) for k in (0, 1)) if whole else 0
            for kind, names in pairs.items()
        }
        return {
            **super().tally(items, counts),
            "groups": int(whole),
            "groups_right": int(whole and all(right.values())),
            **found,
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Groups, questions, images and answers right, and what answers are like.

        ``g_acc``: all four answers right; ``q_acc``: questions right on both images; ``i_acc``:
        images with both questions right; ``accuracy``: answers right. ``yes_ratio`` is of the
        yes/no questions, ``other`` the share of answers that name neither option.
        """
        return {
            "g_acc": ratio(sums["groups_right"], sums["groups"]),
            "q_acc": ratio(sums["questions"], 2 * sums["groups"]),
            "i_acc": ratio(sums["images"], 2 * sums["groups"]),
            "accuracy": ratio(sums["correct"], sums["n"]),
            "yes_ratio": ratio(sums["yes"], sums["yes_no"]),
            **shares(sums, other="other"),
        }

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """All groups pooled, as published figures are."""
        return self.pooled(groups)

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("g_acc", "q_acc", "i_acc", "accuracy"), 1)
        return {**scores, "yes_ratio": 0, "other": -1, "words": 0, "empty": -1}


def _letter(text: str) -> str:
    found = re.search(r"\b([ab])\b", text, re.IGNORECASE)
    return found[1].lower() if found else "other"


def _item(place: str, key: str, group: str, row: Row, joint: str) -> Item:
    kind = _TYPES.get(str(row["Question_Type"]))
    if kind is None:
        said = unknown("type of NaturalBench question", str(row["Question_Type"]), _TYPES)
        raise ValueError(f"{place}: {said}")
    answer = str(row["Answer"]).strip().rstrip(".").lower()
    if answer not in _ANSWERS[kind]:
        raise ValueError(
            f"{place}: the answer to a question of type {kind} is {' or '.join(_ANSWERS[kind])}, "
            f"not {row['Answer']!r:.60}"
        )
    question = str(row["Question"]).strip().removesuffix(ENDINGS[kind]).rstrip()
    return Item(
        key, str(row["Image"]), f"{question}{joint}{ENDINGS[kind]}", kind, answer, (), group
    )


def _singles(
    rows: Iterable[tuple[str, Row]],
) -> Iterator[tuple[str, str, tuple[int, int], Mapping[str, Any]]]:
    """Place, group, question and image, and the fields of each single question."""
    block: list[tuple[str, Row]] = []
    for number, (place, row) in enumerate(rows):
        if "Question" not in row:
            require(place, row, (*_GROUPED, *map(_answer, _PLACES)), "NaturalBench")
            group = str(row.get("Index", number))
            for q, i in _PLACES:
                fields = {
                    "Question": _text(place, row, f"Question_{q}"),
                    "Image": _text(place, row, f"Image_{i}"),
                    "Answer": row[_answer((q, i))],
                    "Question_Type": row["Question_Type"],
                }
                yield place, group, (q, i), fields
            continue
        require(place, row, _SINGLE, "NaturalBench")
        block.append((place, row))
        if len(block) == len(_PLACES):
            _check_block(block)
            group = str(number // len(_PLACES))
            for spot, (where, one) in zip(_PLACES, block, strict=True):
                yield where, group, spot, one
            block = []
    if block:
        raise ValueError(
            f"{block[0][0]}: NaturalBench's questions come in fours, here are {len(block)} more"
        )


def _check_block(block: Sequence[tuple[str, Row]]) -> None:
    """Four questions must be two about each of two images."""
    (place, a), (_, b), (_, c), (_, d) = block
    asked = [_text(where, row, "Question") for where, row in block]
    shown = [_text(where, row, "Image") for where, row in block]
    same = (asked[0] == asked[1], asked[2] == asked[3], shown[0] == shown[2], shown[1] == shown[3])
    if not all(same):
        raise ValueError(
            f"{place}: these four are not two questions about two images, in the order question 0 "
            "about image 0 and 1, question 1 about image 0 and 1"
        )
    kinds = {str(row["Question_Type"]) for row in (a, b, c, d)}
    if len(kinds) > 1:
        raise ValueError(f"{place}: a group has one type of question, not {sorted(kinds)}")


def _answer(place: tuple[int, int]) -> str:
    return f"Image_{place[1]}_Question_{place[0]}"


def _text(place: str, row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name} must be text, not {value!r:.60}")
    return value


def _read(path: Path) -> Iterable[tuple[str, Row]]:
    try:
        content = read_json(path)
    except ValueError:
        return read_records(path)
    if not (isinstance(content, list) and content and isinstance(content[0], list)):
        return read_records(path)
    rows = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, list) or len(entry) != len(_SINGLE):
            raise ValueError(
                f"{path}:{number}: expected question, image, answer and type, found {entry!r:.60}"
            )
        rows.append((f"{path}:{number}", dict(zip(_SINGLE, entry, strict=True))))
    return rows
