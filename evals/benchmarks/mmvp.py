"""MMVP: pairs of images that CLIP takes for the same, with one question of two options for both.

arXiv:2401.06209; tsb0601/MMVP@7635005. A pair counts if both answers are right. The authors let
GPT-4 judge free answers; here the model is asked for a letter.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_text
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.letters import lmms_letter, vlmevalkit_letter
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums

CORRECTED: Mapping[str, tuple[str, str, str]] = {
    "99": ("tusks", "A", "B"),
    "100": ("tusks", "B", "A"),
    "279": ("elderly", "A", "B"),
    "280": ("elderly", "B", "A"),
}
"""Wrong labels by index: a word of the question, the label as released, the corrected one.

tsb0601/MMVP issue 30; lmms-eval's copy of the data holds the corrected ones.
"""

_FIELDS = ("Index", "Question", "Options", "Correct Answer")
_IMAGES = "MMVP Images"

HUB = Hub("lmms-lab-eval/MMVP", ("train",), key=lambda row: str(row["Index"]))


@dataclass(frozen=True)
class Profile:
    """A way to ask questions and to read answers, and the labels that count.

    Attributes:
        source: Repository@commit and file.
        letter: The letter that an answer names, given the options.
        prompt: Question and options in one text.
        corrected: True if the labels in `CORRECTED` are the corrected ones.
    """

    source: str
    letter: Callable[[str, Mapping[str, str]], str]
    prompt: str
    corrected: bool


_LMMS = "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/mmvp"
_ASKS = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."

PROFILES: Mapping[str, Profile] = {
    "letter": Profile(_LMMS, lambda text, options: lmms_letter(text), _ASKS, True),
    "letter/original": Profile(_LMMS, lambda text, options: lmms_letter(text), _ASKS, False),
    "vlmevalkit": Profile(
        "open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/image_mcq.py, without a judge",
        vlmevalkit_letter,
        "Question: {question}\nOptions:\n{options}\n"
        "Please select the correct answer from the options above. \n",
        False,
    ),
}


@dataclass
class Mmvp(ProfiledQuestions):
    """The task. An item's id is its index, its cluster the pair, its target options and answer.

    Records have ``Index``, which is the image's key too, ``Question``, ``Options``
    ("(a) ... (b) ...") and ``Correct Answer`` ("(a)").
    """

    profile: str = "letter"
    max_new_tokens: int = 16
    name: str = "mmvp"
    title = "MMVP"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("pair_accuracy", "accuracy", "a_ratio")

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str | None = None,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Mmvp:
        """Read MMVP's folder.

        Args:
            data: The folder, or its file ``Questions.csv``.
            images: Folder of ``1.jpg`` to ``300.jpg``; default: ``MMVP Images`` beside that file.
            profile: Decides how questions are asked, answers read and which labels count.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, a question
                without its pair, unknown profile.
            OSError: A file can't be read.
        """
        path = Path(data)
        path = path / "Questions.csv" if path.is_dir() else path
        folder = path.parent / _IMAGES if images is None else images
        return cls._build(_read(path), images_in(folder, ".jpg"), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        pairs: defaultdict[str, list[str]] = defaultdict(list)
        for place, row in rows:
            item = _item(place, row, PROFILES[profile].prompt)
            pairs[item.cluster].append(item.id)
            yield place, item
        if alone := [ids[0] for ids in pairs.values() if len(ids) != 2]:
            raise ValueError(
                f"MMVP's questions come in pairs 1 and 2, 3 and 4, ...: {alone[0]} has none"
            )

    def counts(self, item: Item, text: str) -> Counts:
        """The option that one answer names, and its length."""
        profile = PROFILES[self.profile]
        options, answer = item.target["options"], item.target["answer"]
        word, released, corrected = CORRECTED.get(item.id, ("", "", ""))
        if word and word in item.prompt:
            answer = corrected if profile.corrected else released
        said = profile.letter(text, options)
        return {
            "n": 1,
            "correct": int(said == answer),
            "a": int(said == "A"),
            "other": int(said not in options),
            **length(text),
        }

    def tally(self, items: Sequence[Item], counts: Sequence[Counts]) -> Counts:
        """Adds ``pairs`` and ``both`` (all right); a pair with one answer is no pair."""
        whole = len(items) == 2
        right = all(each["correct"] for each in counts)
        return {**super().tally(items, counts), "pairs": int(whole), "both": int(whole and right)}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Share of pairs and of questions right, of answers A and of none, words, empty answers."""
        return {
            "pair_accuracy": ratio(sums["both"], sums["pairs"]),
            **shares(sums, accuracy="correct", a_ratio="a", other="other"),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("pair_accuracy", "accuracy"), 1)
        return {**scores, "a_ratio": 0, "other": -1, "words": 0, "empty": -1}


def _item(place: str, row: Row, prompt: str) -> Item:
    require(place, row, _FIELDS, "MMVP")
    index = str(row["Index"])
    if not index.isdigit() or int(index) < 1:
        raise ValueError(f"{place}: Index must be a number from 1, not {row['Index']!r}")
    texts = re.split(r"\s*\([a-z]\)\s*", str(row["Options"]).strip())
    if len(texts) != 3 or texts[0]:
        raise ValueError(f"{place}: Options must be '(a) ... (b) ...', not {row['Options']!r}")
    options = {"A": texts[1], "B": texts[2]}
    answer = str(row["Correct Answer"]).strip().strip("()").upper()
    if answer not in options:
        raise ValueError(
            f"{place}: Correct Answer must be (a) or (b), not {row['Correct Answer']!r}"
        )
    lines = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    return Item(
        id=index,
        image=index,
        prompt=prompt.format(question=row["Question"], options=lines),
        target={"options": options, "answer": answer},
        cluster=f"pair {(int(index) + 1) // 2}",
    )


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}") from error
