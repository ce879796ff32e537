"""A-OKVQA: questions that need knowledge, as multiple choice or answered directly.

arXiv:2206.01718; allenai/aokvqa@83786de ``evaluation/eval_predictions.py``. The profile decides
what is asked: the four choices by likelihood (``official``), a letter (``letter``,
``vlmevalkit``), or an answer in own words (``direct``, ``direct/vqa``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals.benchmarks import vqa_text
from regaze.evals.benchmarks.data import Row, images_in, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.letters import vlmevalkit_letter
from regaze.evals.benchmarks.questions import EarningQuestions
from regaze.evals.benchmarks.rows import require, texts
from regaze.evals.task import Item

HUB = Hub("HuggingFaceM4/A-OKVQA", ("validation",))

_FIELDS = ("question_id", "question", "choices", "correct_choice_idx")
_LETTERS = "ABCD"
_ASKS_SHORT = "{question}\nAnswer the question using a single word or phrase."
_ASKS_LETTER = (
    "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
)
_ASKS_VLMEVALKIT = (
    "Question: {question}\nOptions:\n{options}\n"
    "Please select the correct answer from the options above. \n"
)

Target = Mapping[str, Any]


@dataclass(frozen=True)
class Profile:
    """A way to ask and the credit of an answer.

    Attributes:
        prompt: The question, with ``{options}`` or without.
        earned: A function that gives an answer's credit, 0 to 1, for the item's target.
        choices: True if the model chooses among the choices by likelihood.
        direct: True if it answers in own words; difficult questions are then left out.
    """

    prompt: str
    earned: Callable[[str, Target], float]
    choices: bool = False
    direct: bool = False


def llava_letter(text: str, letters: str = _LETTERS) -> str:
    """The letter by LLaVA's rule for multiple choice, or ``""``.

    haotian-liu/LLaVA@c121f04 ``llava/eval/eval_science_qa.py``: the answer is a letter, or begins
    with one, a full stop and a blank, or says "The answer is X" and one character more just once.
    """
    if len(text) == 1 and text in letters:
        return text
    if len(text) > 2 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 and found[0] in letters else ""


def _exact(text: str, target: Target) -> float:
    return float(text == target["choices"][target["right"]])


def _llava(text: str, target: Target) -> float:
    return float(llava_letter(text.strip()) == _LETTERS[target["right"]])


def _vlmevalkit(text: str, target: Target) -> float:
    options = dict(zip(_LETTERS, target["choices"], strict=True))
    return float(vlmevalkit_letter(text, options) == _LETTERS[target["right"]])


def _direct(text: str, target: Target) -> float:
    # Nothing is made alike, so "Cab" and "cab." earn nothing where people said "cab".
    return min(1.0, list(target["answers"]).count(text) / 3)


def _vqa(text: str, target: Target) -> float:
    given = [vqa_text.m4c(answer) for answer in target["answers"]]
    return min(1.0, given.count(vqa_text.m4c(text)) / 3)


PROFILES: Mapping[str, Profile] = {
    "official": Profile("{question}", _exact, choices=True),
    "letter": Profile(_ASKS_LETTER, _llava),
    "vlmevalkit": Profile(_ASKS_VLMEVALKIT, _vlmevalkit),
    "direct": Profile(_ASKS_SHORT, _direct, direct=True),
    "direct/vqa": Profile(_ASKS_SHORT, _vqa, direct=True),
}
"""``official`` and ``direct`` are the official script's two settings, which want one of the choices
word for word, and one of the ten answers word for word. ``letter`` asks and reads as LLaVA does
for multiple choice, ``vlmevalkit`` as VLMEvalKit@e8e78f0 does without a judge. ``direct/vqa`` is of
no script: ``direct`` after both answers were made alike, see `vqa_text.m4c`.
"""


@dataclass
class AOkvqa(EarningQuestions):
    """The task. An item's id is its question_id, its target choices, right one and answers.

    Records are those of A-OKVQA's file, each with ``image``, the key of its image.
    """

    profile: str = "letter"
    max_new_tokens: int = 16
    name: str = "aokvqa"
    title = "A-OKVQA"
    profiles = PROFILES
    hub = HUB

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> AOkvqa:
        """Read A-OKVQA's own file.

        Args:
            data: ``aokvqa_v1p0_val.json``; the test file holds no answers.
            images: Folder of COCO 2017's images of that split.
            profile: Decides what is asked and how answers are read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, unknown profile.
            OSError: A file can't be read.
        """
        rows = (
            (place, {**row, "image": _coco_name(row)}) for place, row in read_records(Path(data))
        )
        return cls._build(rows, images_in(images), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        asked = PROFILES[profile]
        items = ((place, _item(place, row, asked)) for place, row in rows)
        return (
            (place, item)
            for place, item in items
            if not (asked.direct and item.target["difficult"])
        )

    @staticmethod
    def _asked(rules: Profile) -> object:
        return rules.prompt, rules.choices

    def earned(self, item: Item, text: str) -> float:
        """The score that one answer earns."""
        return PROFILES[self.profile].earned(text, item.target)


def _coco_name(row: Row) -> str | None:
    image = row.get("image_id")
    return f"{image:012}.jpg" if isinstance(image, int) else None


def _item(place: str, row: Row, asked: Profile) -> Item:
    require(place, row, (*_FIELDS, "image"), "A-OKVQA")
    choices, right = texts(place, row, "choices"), row["correct_choice_idx"]
    if len(choices) != len(_LETTERS) or right not in range(len(choices)) or right is True:
        raise ValueError(
            f"{place}: four choices and a correct_choice_idx from 0 to 3 are needed, not "
            f"{choices!r:.80} and {right!r}"
        )
    answers = _answers(place, row.get("direct_answers") or [])
    if asked.direct and not answers:
        raise ValueError(f"{place}: no direct_answers to compare with")
    options = "\n".join(f"{a}. {b}" for a, b in zip(_LETTERS, choices, strict=True))
    return Item(
        id=str(row["question_id"]),
        image=str(row["image"]),
        prompt=asked.prompt.format(question=row["question"], options=options),
        target={
            "choices": choices,
            "right": int(right),
            "answers": answers,
            "difficult": bool(row.get("difficult_direct_answer")),
        },
        choices=tuple(choices) if asked.choices else (),
    )


def _answers(place: str, given: Any) -> list[str]:
    try:  # The Hub's copy holds the list as text.
        answers = ast.literal_eval(given) if isinstance(given, str) else given
        return [str(answer) for answer in answers]
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: direct_answers must be a list, not {given!r:.60}") from error
