"""MME: two yes/no questions about each image, in 14 subsets of perception and cognition.

arXiv:2306.13394. A subset's score is accuracy in percent plus the percentage of images with both
questions right (acc+), so at most 200 points; guessing earns 75. Papers on hallucination quote four
subsets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.data import Row, images_in, read_text
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.questions import ProfiledQuestions, length, shares
from regaze.evals.benchmarks.rows import require
from regaze.evals.benchmarks.yes_no import Verdict, opening, stripped_opening, words
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Total, mean_of
from regaze.hooks.checks import unknown

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
SUBSETS = (*PERCEPTION, *COGNITION)

_ASKS = " Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")
_FIELDS = ("question_id", "category", "question", "answer")


def image_key(row: Row) -> str:
    """The key of a record's image; it begins with the subset."""
    name, subset = str(row["question_id"]), str(row["category"])
    return name if name.startswith(f"{subset}/") else f"{subset}/{name}"


HUB = Hub("lmms-lab-encoder/MME", ("test",), key=image_key)


@dataclass(frozen=True)
class Profile:
    """Rules of how questions end and answers are read.

    Attributes:
        source: Repository@commit and file.
        verdict: A function that reads the verdict of an answer.
        ending: Replaces the questions' own "Please answer yes or no."; None keeps it.
    """

    source: str
    verdict: Callable[[str], Verdict]
    ending: str | None = None


PROFILES: Mapping[str, Profile] = {
    "official": Profile("MME's tool, by zjunlp/Deco@a3ccc15 eval_tool/calculation.py", opening),
    "lmms": Profile(
        "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/mme",
        stripped_opening,
        "\nAnswer the question using a single word or phrase.",
    ),
    "vlmevalkit": Profile(
        "open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/utils/yorn.py, without a judge", words
    ),
}


@dataclass
class Mme(ProfiledQuestions):
    """The task. An item's id is ``subset/image/1`` or ``/2``, its target yes or no.

    Records have ``question_id`` (the image's name, the same for both of its questions),
    ``category`` (the subset), ``question`` and ``answer``; images go by `image_key`.
    """

    profile: str = "lmms"
    max_new_tokens: int = 16
    name: str = "mme"
    title = "MME"
    profiles = PROFILES
    hub = HUB
    headline: tuple[str, ...] = ("score", "accuracy", "acc_plus", "yes_ratio")
    absolute: tuple[str, ...] = ("score", "words")
    yes_no: bool = True

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Mme:
        """Read MME's release: a folder per subset with images and a text file for each of them.

        Both lie in the subset's folder, or in ``images`` and ``questions_answers_YN`` below it. A
        text file has two lines, each a question, a tab and Yes or No. Subsets that aren't there are
        left out.

        Args:
            data: The folder of the subsets.
            profile: Decides how questions end and how answers are read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: No subset, a malformed text file (with its line), a text file without image,
                unknown profile.
            OSError: A file can't be read.
        """
        return cls._build(_read(Path(data)), images_in(data), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        asked: Counter[str] = Counter()
        items = []
        for place, row in rows:
            require(place, row, _FIELDS, "MME")
            key = image_key(row)
            asked[key] += 1
            items.append((place, _item(place, row, asked[key], PROFILES[profile].ending)))
        for key, times in asked.items():
            if times != 2:
                raise ValueError(f"MME asks two questions about an image, not {times} as of {key}")
        return items

    def counts(self, item: Item, text: str) -> Counts:
        """The verdict of one answer, and its length."""
        said = PROFILES[self.profile].verdict(text)
        return {
            "n": 1,
            "correct": int(said == item.target),
            "yes": int(said == "yes"),
            "other": int(said == "other"),
            **length(text),
        }

    def tally(self, items: Sequence[Item], counts: Sequence[Counts]) -> Counts:
        """Adds ``images`` and ``both`` (all right); an image with one answer is no image."""
        whole = len(items) == 2
        right = all(each["correct"] for each in counts)
        return {**super().tally(items, counts), "images": int(whole), "both": int(whole and right)}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Score in points, accuracy, acc+, yes ratio, share of neither, words, empty answers."""
        accuracy = ratio(sums["correct"], sums["n"])
        acc_plus = ratio(sums["both"], sums["images"])
        return {
            "score": 100 * (accuracy + acc_plus),
            "accuracy": accuracy,
            "acc_plus": acc_plus,
            **shares(sums, yes_ratio="yes", other="other"),
        }

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """Cognition (800 points), the hallucination subsets (800) and perception (2000).

        Each where all its subsets are there: scores are added up, the other metrics are unweighted
        means.
        """
        sets = {
            "cognition": COGNITION,
            "hallucination subsets": HALLUCINATION,
            "perception": PERCEPTION,
        }
        totals = {}
        for name, subsets in sets.items():
            if all(subset in groups for subset in subsets):
                each = [self.metrics(groups[subset]) for subset in subsets]
                means = mean_of(each)
                means["score"] = np.sum([metrics["score"] for metrics in each], axis=0)
                totals[name] = Total(subsets, means)
        return totals

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        scores = dict.fromkeys(("score", "accuracy", "acc_plus"), 1)
        return {**scores, "yes_ratio": 0, "other": -1, "words": 0, "empty": -1}


def _item(place: str, row: Row, number: int, ending: str | None) -> Item:
    subset, key = str(row["category"]), image_key(row)
    if subset not in SUBSETS:
        raise ValueError(f"{place}: {unknown('subset of MME', subset, SUBSETS)}")
    answer = str(row["answer"]).strip().rstrip(".").lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"{place}: the answer must be Yes or No, not {row['answer']!r}")
    prompt = str(row["question"]).strip()
    if ending is not None:
        prompt = prompt.replace(_ASKS, "") + ending
    return Item(f"{key}/{number}", key, prompt, group=subset, target=answer)


def _read(folder: Path) -> Iterator[tuple[str, Row]]:
    subsets = [name for name in SUBSETS if (folder / name).is_dir()]
    if not subsets:
        raise ValueError(f"{folder} holds none of MME's folders: {', '.join(SUBSETS)}")
    for subset in subsets:
        split = (folder / subset / "questions_answers_YN").is_dir()
        texts = folder / subset / "questions_answers_YN" if split else folder / subset
        images = folder / subset / "images" if split else folder / subset
        for path in sorted(texts.glob("*.txt")):
            names = [images / f"{path.stem}{suffix}" for suffix in _SUFFIXES]
            image = next((name for name in names if name.is_file()), None)
            if image is None:
                raise ValueError(f"{path} has no image {names[0]} (or {', '.join(_SUFFIXES[1:])})")
            key = image.relative_to(folder).as_posix()
            for number, line in _lines(path):
                question, tab, answer = line.strip().partition("\t")
                if not tab:
                    raise ValueError(
                        f"{path}:{number}: no MME question, it isn't a question, a tab and Yes or "
                        f"No: {line.strip()!r:.60}"
                    )
                row = {"question_id": key, "category": subset}
                yield f"{path}:{number}", {**row, "question": question, "answer": answer}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    lines = enumerate(read_text(path).split("\n"), 1)
    return ((number, line) for number, line in lines if line.strip())
