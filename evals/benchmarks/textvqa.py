"""TextVQA: questions whose answer is written in the image, each answered by ten people.

arXiv:1904.08920. An answer earns what part of three people agree with it, see
`regaze.evals.benchmarks.vqa_text.consensus`, after both were made alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks import vqa_text
from regaze.evals.benchmarks.data import open_image, read_json, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.questions import Loader, Questions, Row, arrange, numbered, require
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums
from regaze.interventions.base import unknown

ENDING = "\nAnswer the question using a single word or phrase."

_FIELDS = ("question_id", "image_id", "question", "answers")


@dataclass(frozen=True)
class Profile:
    """How questions are written and answers made alike.

    Attributes:
        source: Repository@commit and file.
        alike: Makes answers comparable.
        ask: Writes the question.
    """

    source: str
    alike: Callable[[str], str]
    ask: Callable[[str], str] = str


PROFILES: Mapping[str, Profile] = {
    "official": Profile("haotian-liu/LLaVA@c121f04 llava/eval/eval_textvqa.py", vqa_text.m4c),
    "lmms": Profile(
        "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/textvqa, without OCR",
        vqa_text.m4c,
        # Also makes the rest of the question lower case, names in it too.
        str.capitalize,
    ),
    "vlmevalkit": Profile(
        "open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/utils/vqa_eval.py", vqa_text.vlmevalkit
    ),
}


@dataclass
class TextVqa(Questions):
    """The task. An item's id is its question_id, its target the ten answers."""

    profile: str = "official"
    max_new_tokens: int = 128
    name: str = "textvqa"
    headline: tuple[str, ...] = ("accuracy", "words")

    def __post_init__(self) -> None:
        super().__post_init__()
        _find(self.profile)

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        prompts: Path | str | None = None,
        profile: str = "official",
        max_new_tokens: int = 128,
    ) -> TextVqa:
        """Read TextVQA's own files.

        Args:
            data: ``TextVQA_0.5.1_val.json``.
            images: Folder ``train_images``, which holds the validation images too.
            prompts: LLaVA's ``llava_textvqa_val_v051_ocr.jsonl``, which hints at the answer with
                the words an OCR system read: LLaVA's published figures are with it. Questions are
                found by image and text. Default: without hints.
            profile: Decides how questions are written and answers read.
            max_new_tokens: Longest answer to generate.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, one that
                ``prompts`` lacks, unknown profile.
            OSError: A file can't be read.
        """
        path, folder = Path(data), Path(images)
        written = None if prompts is None else _prompts(Path(prompts))
        return cls._build(
            _read(path),
            lambda key: open_image(folder / f"{key}.jpg"),
            profile,
            max_new_tokens,
            written,
        )

    @classmethod
    def from_records(
        cls,
        records: Iterable[Row],
        load_image: Loader,
        *,
        profile: str = "official",
        max_new_tokens: int = 128,
    ) -> TextVqa:
        """Take questions from memory.

        Args:
            records: ``question_id``, ``image_id``, ``question`` and ``answers``.
            load_image: Gives the image of an ``image_id``.
            profile: As in `from_files`.
            max_new_tokens: As in `from_files`.

        Raises:
            ValueError: As in `from_files`.
        """
        return cls._build(numbered(records), load_image, profile, max_new_tokens, None)

    @classmethod
    def _build(
        cls,
        rows: Iterable[tuple[str, Row]],
        load: Loader,
        profile: str,
        max_new_tokens: int,
        written: Mapping[tuple[str, str], str] | None,
    ) -> TextVqa:
        ask = _find(profile).ask
        items = ((place, _item(place, row, ask, written)) for place, row in rows)
        return cls(arrange(items), load, profile, max_new_tokens)

    def under(self, profile: str) -> TextVqa:
        """The same questions, their answers read under another profile.

        Raises:
            ValueError: Unknown profile.
        """
        return replace(self, profile=profile)

    def counts(self, item: Item, text: str) -> Counts:
        """What one answer earns; it counts as ``correct`` if it earns more than half."""
        alike = PROFILES[self.profile].alike
        earned = vqa_text.consensus(alike(text), [alike(answer) for answer in item.target])
        return {
            "n": 1,
            "earned": earned,
            "correct": int(earned > 0.5),
            "words": len(text.split()),
            "empty": int(not text.strip()),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Mean of what answers earn, words and share of empty answers."""
        return {
            "accuracy": ratio(sums["earned"], sums["n"]),
            "words": ratio(sums["words"], sums["n"]),
            "empty": ratio(sums["empty"], sums["n"]),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        return {"accuracy": 1, "words": 0, "empty": -1}


HUB = Hub("lmms-lab-encoder/textvqa", ("validation",), key=lambda row: str(row["image_id"]))


def _find(profile: str) -> Profile:
    if profile not in PROFILES:
        raise ValueError(unknown("TextVQA profile", profile, PROFILES))
    return PROFILES[profile]


def _item(
    place: str,
    row: Row,
    ask: Callable[[str], str],
    written: Mapping[tuple[str, str], str] | None,
) -> Item:
    require(place, row, _FIELDS, "TextVQA")
    question, image = str(row["question"]), str(row["image_id"])
    answers = row["answers"]
    if isinstance(answers, str) or not answers:
        raise ValueError(f"{place}: answers must be a list of ten, not {answers!r:.60}")
    prompt = ask(question) + ENDING
    if written is not None:
        if (image, question.lower()) not in written:
            raise ValueError(
                f"{place}: the prompts file has no question {question!r:.80} about image {image}"
            )
        prompt = written[image, question.lower()]
    return Item(str(row["question_id"]), image, prompt, target=list(map(str, answers)))


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    wanted = "TextVQA_0.5.1_val.json is one JSON object with its questions under 'data'"
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} ({wanted})") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f"{path} is no TextVQA file: {wanted}")
    return ((f"{path}:{number}", row) for number, row in enumerate(content["data"], 1))


def _prompts(path: Path) -> dict[tuple[str, str], str]:
    """LLaVA's prompts by image and lower-case question, which is their first line."""
    found = {}
    for number, row in read_records(path):
        require(f"{path}:{number}", row, ("question_id", "text"), "LLaVA TextVQA")
        lines = str(row["text"]).split("\n")
        first = lines[1] if lines[0].startswith("Reference OCR token:") else lines[0]
        found[str(row["question_id"]), first.lower()] = str(row["text"])
    return found
