"""MMHal-Bench: 96 open questions about what models like to make up, rated by a judge.

LLaVA-RLHF, arXiv:2309.14525; llava-rlhf/LLaVA-RLHF ``Eval/eval_gpt_mmhal.py``. GPT-4 compares an
answer with a human's and with the objects of the image and rates it from 0 to 6; below 3 it says
that the answer hallucinates. Nothing here calls a judge: `export` writes the file that the authors'
script sends to one, and `read_verdicts` reads what it brings back. Figures of different judges, or
of one judge at different dates, can't be compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_json, read_records
from regaze.evals.benchmarks.questions import Questions, length, shares
from regaze.evals.benchmarks.rows import arrange, require
from regaze.evals.runs import files
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Total

_FIELDS = ("question_type", "image_src", "image_content", "question", "gt_answer")


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        rating: From 0 to 6; 0 if the text doesn't hold exactly one rating, as in the authors'
            script.
        clear: True if it holds exactly one.
        judge: The judge's model, as its reply names it.
        text: The whole reply.
    """

    rating: int
    clear: bool
    judge: str
    text: str


Verdicts = Mapping[tuple[str, str], Verdict]
"""By item id and `answer_key`, so that the same answer has one verdict whoever gave it."""


@dataclass
class MmHal(Questions):
    """The task. An item's id is its place, its group the question's type, its target the row.

    Attributes:
        verdicts: Known verdicts; answers without one are left out of the scores.
    """

    profile: str = "official"
    max_new_tokens: int = 1024
    verdicts: Verdicts = field(default_factory=dict, repr=False)
    name: str = "mmhal"
    headline: tuple[str, ...] = ("rating", "hallucination_rate", "unrated", "words")
    absolute: tuple[str, ...] = ("rating", "words")

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        verdicts: Iterable[tuple[Path | str, Path | str]] = (),
        max_new_tokens: int = 1024,
    ) -> MmHal:
        """Read the benchmark's own file.

        Args:
            data: ``response_template.json``.
            images: Folder of the images, named as at the end of ``image_src``.
            verdicts: Pairs of a file that `export` wrote and what the authors' script made of it.
            max_new_tokens: Longest answer to generate.

        Raises:
            ValueError: A file of something else, a malformed question.
            OSError: A file can't be read.
        """
        rows = enumerate(read_records(Path(data)), 1)
        items = arrange((place, _item(place, number, row)) for number, (place, row) in rows)
        known: dict[tuple[str, str], Verdict] = {}
        for answers, replies in verdicts:
            known.update(read_verdicts(Path(answers), Path(replies)))
        return cls(items, images_in(images), "official", max_new_tokens, known)

    def counts(self, item: Item, text: str) -> Counts:
        """The judge's verdict on one answer; it counts as ``correct`` without hallucination."""
        verdict = self.verdicts.get((item.id, answer_key(text)))
        rating = verdict.rating if verdict else 0
        return {
            "n": 1,
            "rated": int(verdict is not None),
            "rating": rating,
            "hallucinated": int(verdict is not None and rating < 3),
            "correct": int(verdict is not None and rating >= 3),
            "unclear": int(verdict is not None and not verdict.clear),
            **length(text),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Mean rating, share with hallucination, of unclear and missing verdicts, words, empty."""
        return {
            "rating": ratio(sums["rating"], sums["rated"]),
            "hallucination_rate": ratio(sums["hallucinated"], sums["rated"]),
            "unclear": ratio(sums["unclear"], sums["rated"]),
            "unrated": 1 - ratio(sums["rated"], sums["n"]),
            **shares(sums),
        }

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """All questions pooled, as the authors quote it."""
        return self.pooled(groups)

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        worse = dict.fromkeys(("hallucination_rate", "unclear", "unrated"), -1)
        return {"rating": 1, **worse, "words": 0, "empty": -1}


def answer_key(text: str) -> str:
    """The key of a verdict: a hash of the answer."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def export(task: MmHal, answers: Mapping[str, str], path: Path) -> None:
    """Write what the authors' script takes as ``--response``: the rows and ``model_answer``.

    Args:
        task: The questions.
        answers: Text by item id; all questions must be answered, as the script wants 96.
        path: The file to write, whole or not at all.

    Raises:
        ValueError: Some questions have no answer.
        OSError: The file can't be written.
    """
    if missing := [item.id for item in task.items if item.id not in answers]:
        raise ValueError(
            f"{len(missing)} of {len(task.items)} questions have no answer yet, e.g. {missing[0]}: "
            "the judge's script wants them all"
        )
    rows = sorted(task.items, key=lambda item: int(item.id))
    files.write_json(path, [{**item.target, "model_answer": answers[item.id]} for item in rows])


def read_verdicts(answers: Path, replies: Path) -> dict[tuple[str, str], Verdict]:
    """The judge's verdicts on a file of answers.

    Args:
        answers: The file that `export` wrote.
        replies: The file that the authors' script wrote to ``--evaluation``: the judge's replies in
            the same order, each an OpenAI chat completion.

    Raises:
        ValueError: Not such files, or of different length.
        OSError: A file can't be read.
    """
    rows, said = list(read_records(answers)), read_json(replies)
    if not isinstance(said, list) or len(said) != len(rows):
        found = f"{len(said)} replies" if isinstance(said, list) else "no list of replies"
        raise ValueError(f"{replies} holds {found}, {answers} has {len(rows)} answers")
    verdicts = {}
    for number, ((place, row), reply) in enumerate(zip(rows, said, strict=True), 1):
        require(place, row, ("question", "model_answer"), "answered MMHal-Bench")
        key = str(number), answer_key(str(row["model_answer"]))
        verdicts[key] = _verdict(f"{replies}:{number}", reply)
    return verdicts


def _verdict(place: str, reply: Any) -> Verdict:
    try:
        text = str(reply["choices"][0]["message"]["content"])
        judge = str(reply.get("model", "an unnamed judge"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{place}: no chat completion, it lacks choices[0].message.content: "
            f"{json.dumps(reply)[:60]}"
        ) from error
    found = set(re.findall(r"rating: ([0-6])", text.lower()))
    clear = len(found) == 1
    return Verdict(int(found.pop()) if clear else 0, clear, judge, text)


def _item(place: str, number: int, row: Row) -> Item:
    require(place, row, _FIELDS, "MMHal-Bench")
    given = {key: value for key, value in row.items() if key != "model_answer"}
    return Item(
        id=str(number),
        image=str(row["image_src"]).rpartition("/")[2],
        prompt=str(row["question"]),
        group=str(row["question_type"]),
        target=given,
    )
