"""GenEval 2: does a picture show every atom of its prompt, as a vision-language model sees it?

Kamath et al., arXiv 2512.16853; facebookresearch/GenEval2@a6e82d2 ``evaluation.py``. Each prompt
has questions with known answers ("How many cows are in the image?", "three"). A question's score is
the probability that the model's first word is the answer; a picture's is their mean (Soft-TIFA AM)
or geometric mean (GM), which one missing atom pulls down. Probabilities of another model, or in
another precision, are other scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from regaze.evals.asking.models import load
from regaze.evals.benchmarks.data import read_records
from regaze.evals.pictures.scorers.base import (
    IMAGES,
    Images,
    Ready,
    Scorer,
    check_lengths,
    file_sha256,
    register,
)
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Metrics, Sums

SKILLS = ("object", "attribute", "count", "position", "verb")
ENDING = " Answer in one word."
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNTS = "How many"

Probability = Callable[[Image.Image, str, Sequence[str]], float]
"""Gives the probability that an answer about a picture begins as one of some words does."""


@dataclass(frozen=True)
class Atom:
    """One question about a picture.

    Attributes:
        question: As it is asked, less `ENDING`.
        answer: The right answer: a number in words, or yes.
        skill: One of `SKILLS`.
    """

    question: str
    answer: str
    skill: str

    @property
    def spellings(self) -> list[str]:
        """The ways to begin the right answer, of which the probabilities are summed."""
        if not self.question.startswith(_COUNTS):
            return ["Yes", "yes", " yes", " Yes"]
        digits = str(NUMBERS.index(self.answer) + 1)
        words = (self.answer, self.answer.capitalize(), digits)
        return [blank + word for word in words for blank in ("", " ")]


@register
@dataclass(frozen=True)
class GenEval2(Scorer):
    """Soft-TIFA, in [0, 1]: of whole pictures, and the mean of each skill's atoms.

    Attributes:
        data: ``geneval2_data.jsonl`` of the repository, which gives the questions of each prompt;
            its prompts are painted with ``--prompts`` and the same file. It is CC BY-NC 4.0, so it
            doesn't come with regaze.
        model: A vision-language model: folder or Hub id. The paper's figures are by this one.
        dtype: The model's precision; ``auto`` is the checkpoint's own, as in the paper's code.
    """

    name: ClassVar[str] = "geneval2"
    summary: ClassVar[str] = "Soft-TIFA of GenEval 2: whether each atom of the prompt is shown"
    paper: ClassVar[str] = "arXiv 2512.16853"
    directions: ClassVar = {
        "soft_tifa_gm": 1,
        "soft_tifa_am": 1,
        **{f"tifa_{skill}": 1 for skill in SKILLS},
    }
    headline: ClassVar = ("soft_tifa_gm", "soft_tifa_am", "tifa_count", "tifa_position")

    data: str = ""
    model: str = "Qwen/Qwen3-VL-8B-Instruct"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError(
                "geneval2 needs its questions: --score geneval2:data=geneval2_data.jsonl, from "
                "github.com/facebookresearch/GenEval2"
            )

    def load(self, device: str) -> Ready:
        """Load the questions and the model."""
        questions = read_atoms(Path(self.data))
        loaded = load(self.model, dtype=self.dtype, device=device)
        probability = answer_probability(loaded.model, loaded.processor)

        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            check_lengths(images, prompts)
            return [
                soft_tifa(image, atoms_of(prompt, questions, self.data), probability)
                for image, prompt in zip(images, prompts, strict=True)
            ]

        identity = self.identity("transformers", data_sha256=file_sha256(Path(self.data)))
        return Ready(score, {**identity, "judge": dict(loaded.identity)})

    def check(self, prompts: Sequence[str]) -> None:
        """Check that every prompt has questions."""
        questions = read_atoms(Path(self.data))
        for prompt in prompts:
            atoms_of(prompt, questions, self.data)

    def metrics(self, sums: Sums) -> Metrics:
        """Means over pictures, and over the atoms of each skill."""
        return {
            **{name: ratio(sums[name], sums[IMAGES]) for name in ("soft_tifa_gm", "soft_tifa_am")},
            **{f"tifa_{s}": ratio(sums[f"{s}_sum"], sums[f"{s}_atoms"]) for s in SKILLS},
        }

    def told(self, counts: Counts) -> str:
        """A picture's score in words."""
        skills = (
            f"{skill} {counts[f'{skill}_sum'] / counts[f'{skill}_atoms']:.2f}"
            for skill in SKILLS
            if counts[f"{skill}_atoms"]
        )
        return f"Soft-TIFA GM {counts['soft_tifa_gm']:.3f} ({', '.join(skills)})"


def soft_tifa(image: Image.Image, atoms: Sequence[Atom], probability: Probability) -> Counts:
    """Both means over a picture's atoms, and the sum and number of each skill's.

    The geometric mean is 0 as soon as one probability is.
    """
    scores = [probability(image, atom.question + ENDING, atom.spellings) for atom in atoms]
    found = {
        "soft_tifa_gm": math.exp(math.fsum(map(math.log, scores)) / len(scores))
        if all(scores)
        else 0.0,
        "soft_tifa_am": math.fsum(scores) / len(scores),
    }
    for skill in SKILLS:
        own = [one for one, atom in zip(scores, atoms, strict=True) if atom.skill == skill]
        found |= {f"{skill}_sum": math.fsum(own), f"{skill}_atoms": float(len(own))}
    return found


def answer_probability(model: Any, processor: Any) -> Probability:
    """Probability, by a model, that its answer's first token begins one of some words.

    The softmax is over the whole vocabulary, in float32, as it is before any sampling. A token that
    two spellings begin with counts once: with Qwen3-VL's tokenizer no two of a question do, so
    this is what the paper's code gives, which would count it twice.
    """
    tokenizer = processor.tokenizer

    @torch.inference_mode()
    def probability(image: Image.Image, question: str, spellings: Sequence[str]) -> float:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        logits = model(**inputs, use_cache=False).logits[0, -1].float()
        begun = (tokenizer.encode(word, add_special_tokens=False)[:1] for word in spellings)
        ids = {token for first in begun for token in first if token != tokenizer.unk_token_id}
        if not ids:
            raise ValueError(
                f"the model's tokenizer knows no way to write {spellings[0]!r}, the answer to "
                f"{question!r}: give another model"
            )
        return float(logits.softmax(-1)[sorted(ids)].sum())

    return probability


def atoms_of(prompt: str, questions: Mapping[str, Sequence[Atom]], data: str) -> Sequence[Atom]:
    """A prompt's questions.

    Raises:
        ValueError: The file has none.
    """
    if prompt not in questions:
        raise ValueError(
            f"{data} has no questions about {prompt!r:.80}: geneval2 scores its own prompts; paint "
            f"them with --prompts {data}"
        )
    return questions[prompt]


def read_atoms(path: Path) -> dict[str, list[Atom]]:
    """Every prompt's questions.

    Raises:
        ValueError: A file of something else, or a malformed line; the message names it.
        OSError: The file can't be read.
    """
    found: dict[str, list[Atom]] = {}
    for place, row in read_records(path):
        prompt, asked, skills = (row.get(name) for name in ("prompt", "vqa_list", "skills"))
        if not isinstance(prompt, str) or not isinstance(asked, list) or not asked:
            raise ValueError(
                f"{place}: no line of GenEval 2, which has prompt, vqa_list and skills; it has "
                f"{', '.join(row) or 'nothing'}"
            )
        if not isinstance(skills, list) or len(skills) != len(asked):
            raise ValueError(
                f"{place}: skills must name the skill of each of {len(asked)} questions"
            )
        key = " ".join(prompt.split())
        atoms = [_atom(place, *pair) for pair in zip(asked, skills, strict=True)]
        if found.setdefault(key, atoms) != atoms:
            raise ValueError(f"{place}: the prompt {key!r:.60} has other questions further up")
    if not found:
        raise ValueError(f"{path} holds no prompts of GenEval 2")
    return found


def _atom(place: str, pair: object, skill: object) -> Atom:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(e, str) for e in pair):
        raise ValueError(f"{place}: expected a question and its answer, found {pair!r:.60}")
    question, answer = pair
    if skill not in SKILLS:
        raise ValueError(f"{place}: unknown skill {skill!r}: {', '.join(SKILLS)} are known")
    counts = question.startswith(_COUNTS)
    if answer not in (NUMBERS if counts else ("Yes",)):
        raise ValueError(
            f"{place}: the answer to {question!r} must be "
            + ("a number from one to ten" if counts else "Yes")
            + f", not {answer!r}"
        )
    return Atom(question, answer, str(skill))
