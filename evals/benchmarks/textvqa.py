"""TextVQA: questions whose answer is written in the image, each answered by ten people.

arXiv:1904.08920. An answer earns what part of three people agree with it, see
`regaze.evals.benchmarks.vqa_text.consensus`, after both were made alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from regaze.evals.benchmarks import vqa_text
from regaze.evals.benchmarks.data import Row, images_in, read_json, read_records
from regaze.evals.benchmarks.hub import Hub
from regaze.evals.benchmarks.questions import EarningQuestions
from regaze.evals.benchmarks.rows import require, texts
from regaze.evals.task import Item

ENDING = "\nAnswer the question using a single word or phrase."

_FIELDS = ("question_id", "image_id", "question", "answers")
_HINTED = "prompt with hints"


@dataclass(frozen=True)
class Profile:
    """Rules of how questions are written and answers made alike.

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


HUB = Hub("lmms-lab-encoder/textvqa", ("validation",), key=lambda row: str(row["image_id"]))


@dataclass
class TextVqa(EarningQuestions):
    """The task. An item's id is its question_id, its target the ten answers.

    Records have ``question_id``, ``image_id`` (the key of the image), ``question`` and ``answers``.
    """

    profile: str = "official"
    max_new_tokens: int = 128
    name: str = "textvqa"
    title = "TextVQA"
    profiles = PROFILES
    hub = HUB

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        prompts: Path | str | None = None,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> TextVqa:
        """Read TextVQA's own files.

        Args:
            data: ``TextVQA_0.5.1_val.json``.
            images: Folder ``train_images``, which holds the validation images too.
            prompts: LLaVA's ``llava_textvqa_val_v051_ocr.jsonl``, which hints at the answer with
                the words an OCR system read: LLaVA's published figures are with it. Questions are
                found by image and text. Default: without hints.
            profile: Decides how questions are written and answers read.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A file of something else, a malformed or repeated question, one that
                ``prompts`` lacks, unknown profile.
            OSError: A file can't be read.
        """
        rows = _read(Path(data))
        if prompts is not None:
            rows = _hinted(rows, _prompts(Path(prompts)))
        return cls._build(rows, images_in(images, ".jpg"), profile, max_new_tokens)

    @classmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        return ((place, _item(place, row, PROFILES[profile].ask)) for place, row in rows)

    def earned(self, item: Item, text: str) -> float:
        """The score that one answer earns."""
        alike = PROFILES[self.profile].alike
        return vqa_text.consensus(alike(text), [alike(answer) for answer in item.target])


def _item(place: str, row: Row, ask: Callable[[str], str]) -> Item:
    require(place, row, _FIELDS, "TextVQA")
    answers = texts(place, row, "answers", "list of ten")
    if not answers:
        raise ValueError(f"{place}: answers must be a list of ten, not {answers!r:.60}")
    prompt = row.get(_HINTED) or ask(str(row["question"])) + ENDING
    return Item(str(row["question_id"]), str(row["image_id"]), prompt, target=answers)


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    wanted = "TextVQA_0.5.1_val.json is one JSON object with its questions under 'data'"
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error} ({wanted})") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f"{path} is no TextVQA file: {wanted}")
    return ((f"{path}:{number}", row) for number, row in enumerate(content["data"], 1))


def _hinted(
    rows: Iterable[tuple[str, Row]], written: Mapping[tuple[str, str], str]
) -> Iterator[tuple[str, Row]]:
    for place, row in rows:
        require(place, row, _FIELDS, "TextVQA")
        question, image = str(row["question"]), str(row["image_id"])
        if (image, question.lower()) not in written:
            raise ValueError(
                f"{place}: the prompts file has no question {question!r:.80} about image {image}"
            )
        yield place, {**row, _HINTED: written[image, question.lower()]}


def _prompts(path: Path) -> dict[tuple[str, str], str]:
    """LLaVA's prompts by image and lower-case question, which is their first line."""
    found = {}
    for place, row in read_records(path):
        require(place, row, ("question_id", "text"), "LLaVA TextVQA")
        lines = str(row["text"]).split("\n")
        first = lines[1] if lines[0].startswith("Reference OCR token:") else lines[0]
        found[str(row["question_id"]), first.lower()] = str(row["text"])
    return found
