"""V*Bench: small things in large images, asked as multiple choice.

arXiv:2312.14135; penghao-wu/vstar@4ede664 ``vstar_bench_eval.py``. The authors take the likeliest
of the options, which are whole sentences; others ask for a letter, with options in the order that
the release's ``test_questions.jsonl`` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_json, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.letters import vlmevalkit_letter
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require, texts
from regaze.evals.task import Counts, Item, Sums, Total

HUB = Hub("lmms-lab-encoder/vstar-bench", ("test",))

CATEGORIES = ("direct_attributes", "relative_position")
QUESTIONS = "test_questions.jsonl"

_ENDING = "Answer with the option's letter from the given choices directly."
_LETTERS = "ABCD"
_SUFFIXES = (".jpg", ".png", ".jpeg")


def lmms_letter(text: str) -> str:
    """The letter by lmms-eval's rules for V*Bench, or ``""``.

    EvolvingLMMs-Lab/lmms-eval@75571cf ``lmms_eval/tasks/vstar_bench/utils.py``. In this order, in
    any case: the first character (so "cat" names C); after "answer", "choice" or "option"; in
    parentheses; before a full stop or closing bracket (so "I see." names nothing, "I nod." names
    D); standing alone; the only such letter anywhere.
    """
    text = text.strip().upper()
    for pattern in (
        r"^([A-D])",
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    ):
        if found := re.search(pattern, text):
            return found[1]
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else ""


@dataclass(frozen=True)
class Profile:
    """A way to ask questions and to read answers.

    Attributes:
        source: Repository@commit and file.
        prompt: Question and, for letters, options in one text.
        letter: The letter that an answer names, given the options; None: options by likelihood.
    """

    source: str
    prompt: str
    letter: Callable[[str, Mapping[str, str]], str] | None


PROFILES: Mapping[str, Profile] = {
    "likelihood": Profile("penghao-wu/vstar@4ede664 vstar_bench_eval.py", "{question}", None),
    "letter": Profile(
        "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/vstar_bench",
        "{question}\n{options}\n" + _ENDING,
        lambda text, options: lmms_letter(text),
    ),
    "vlmevalkit": Profile(
        "open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/image_mcq.py, without a judge",
        "Question: {question}\nOptions:\n{options}\n"
        "Please select the correct answer from the options above. \n",
        vlmevalkit_letter,
    ),
}
"""``likelihood`` is the authors' rule on the plain image, without the visual search that their own
model adds."""


@dataclass
class VStar(ProfiledQuestions):
    """The task. An item's group is its category, its target the options and the right one.

    Records have ``question_id``, ``category``, ``image`` (a key) and, for letters, ``text`` (the
    question and its options from "(A)" on) and ``label``, for likelihoods ``question`` and
    ``options``, the first of which is right.
    """

    profile: str = "letter"
    max_new_tokens: int = 16
    name: str = "vstar"
    title = "V*Bench"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("accuracy", "first_ratio", "words")

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> VStar:
        """Read the release's folder (``craigwu/vstar_bench``), which holds the images too.

        Args:
            data: The folder. Letters are asked for by its ``test_questions.jsonl``, likelihoods by
                the JSON file beside each image of ``direct_attributes`` and ``relative_position``.
            profile: Decides what is asked and how answers are read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A folder of something else, a malformed or repeated question, unknown
                profile.
            OSError: A file can't be read.
        """
        profile = cls._known(profile or cls.profile)
        rows = _released(Path(data)) if PROFILES[profile].letter else _annotations(Path(data))
        return cls._build(rows, images_in(data), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        rules = PROFILES[profile]
        make = _lettered if rules.letter else _likely
        items = [(place, make(place, row, rules.prompt)) for place, row in rows]
        if rules.letter and len(items) > 1 and not any(i.target["right"] for _, i in items):
            raise ValueError(
                "option A is right in all V*Bench questions, so they tell nothing: their options "
                f"must be in the order of {QUESTIONS}"
            )
        return items

    @staticmethod
    def _asked(rules: Profile) -> object:
        return rules.prompt

    def counts(self, item: Item, text: str) -> Counts:
        """Flags of one answer, right and first of the options, and its length."""
        options: list[str] = item.target["options"]
        letter = PROFILES[self.profile].letter
        if letter is None:
            said = options.index(text) if text in options else -1
        else:
            named = letter(text, dict(zip(_LETTERS, options, strict=False)))
            said = _LETTERS.find(named) if named else -1
        return {
            "n": 1,
            "correct": int(said == item.target["right"]),
            "first": int(said == 0),
            "other": int(said < 0),
            **length(text),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Accuracy, share of first options and of answers that name none, words, empty answers.

        With likelihoods the first option is always the right one, as the authors list them.
        """
        return shares(sums, accuracy="correct", first_ratio="first", other="other")

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """All questions pooled, as the authors quote it."""
        return self.pooled(groups)

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        return {"accuracy": 1, "first_ratio": 0, "other": -1, "words": 0, "empty": -1}


def _likely(place: str, row: Row, prompt: str) -> Item:
    fields = ("question_id", "category", "image", "question", "options")
    require(place, row, fields, "V*Bench")
    options = texts(place, row, "options")
    if len(options) < 2:
        raise ValueError(f"{place}: at least two options are needed, not {options!r:.80}")
    return _item(row, prompt.format(question=row["question"]), options, 0, tuple(options))


def _lettered(place: str, row: Row, prompt: str) -> Item:
    require(place, row, ("question_id", "category", "image", "text", "label"), "V*Bench")
    text = str(row["text"]).replace(_ENDING, "").strip()
    question, *options = re.split(r"\s*\([A-D]\)\s*", text)
    right = _LETTERS.find(str(row["label"]).strip().upper() or "?")
    if len(options) < 2 or not 0 <= right < len(options):
        raise ValueError(
            f"{place}: text must be a question and options from '(A)' on, and label one of their "
            f"letters, not {text!r:.80} and {row['label']!r}"
        )
    lines = "\n".join(f"{a}. {b}" for a, b in zip(_LETTERS, options, strict=False))
    return _item(row, prompt.format(question=question, options=lines), options, right, ())


def _item(row: Row, prompt: str, options: list[str], right: int, choices: tuple[str, ...]) -> Item:
    category = str(row["category"])
    return Item(
        id=f"{category}/{row['question_id']}",
        image=str(row["image"]),
        prompt=prompt,
        group=category,
        target={"options": options, "right": right},
        choices=choices,
    )


def _annotations(folder: Path) -> Iterator[tuple[str, Row]]:
    paths = [p for category in CATEGORIES for p in sorted((folder / category).glob("*.json"))]
    if not paths:
        raise ValueError(f"{folder} holds none of V*Bench's folders {' and '.join(CATEGORIES)}")
    for path in paths:
        row = read_json(path)
        if not isinstance(row, dict):
            raise ValueError(f"{path}: expected a JSON object, found {row!r:.60}")
        names = [path.with_suffix(suffix) for suffix in _SUFFIXES]
        image = next((name for name in names if name.is_file()), names[0])
        category = path.parent.name
        place = {"category": category, "image": f"{category}/{image.name}"}
        yield str(path), {**row, "question_id": path.stem, **place}


def _released(folder: Path) -> Iterator[tuple[str, Row]]:
    path = folder / QUESTIONS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: letters are asked for in the order of options that this file of "
            "craigwu/vstar_bench gives"
        )
    return read_records(path)
