"""CHAIR: which objects does a caption mention that are not in the image?

arXiv:1809.02156; LisaAnne/Hallucination@6e4d33c ``utils/chair.py``. CHAIR_s is the share of
captions with a hallucinated object, CHAIR_i the share of hallucinated mentions. Short captions
lower both, so recall and length stand beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from regaze.evals.benchmarks.chair_words import Caption, Mention, ObjectFinder, load_table
from regaze.evals.benchmarks.coco import draw_images, image_id, read_annotations
from regaze.evals.benchmarks.data import Loader, images_in
from regaze.evals.benchmarks.questions import Questions
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums

PROMPT = "Please describe this image in detail."


@dataclass
class Chair(Questions):
    """The task: one caption per image.

    An item's target holds the image's ``objects`` and its reference ``captions``. The truth is the
    objects plus whatever the references mention, read by the same rules as the answers.

    Attributes:
        items: One per image.
        open: Gives the image of a key, as RGB.
        find: Reads a caption.
        profile: Name of the rules of ``find``, as reports show it; ``official/rule`` is
            ``official`` with the sentence rule that stands in for missing NLTK data.
        max_new_tokens: Longest caption to generate.
    """

    find: Callable[[str], Caption] = field(repr=False, kw_only=True)
    max_new_tokens: int = 512
    name: str = "chair"
    headline: tuple[str, ...] = ("chair_s", "chair_i", "recall", "words")

    @classmethod
    def from_coco(
        cls,
        annotations: Iterable[Path | str],
        images: Path | str,
        *,
        words: Path | str | Mapping[str, str] | None = None,
        profile: str = "official",
        count: int | None = 500,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = 512,
    ) -> Chair:
        """Describe images of a folder, scored against COCO's annotations.

        Args:
            annotations: COCO 2014's instances and captions files of the images' split, or of both.
            images: Folder of the images; the id is the number at the end of a file's name.
            words: CHAIR's word table, see `chair_words.load_table`; or a mapping from
                word to class.
            profile: ``official`` or ``opera`` (what LVLM papers mostly report).
            count: Images to draw; ``None`` takes all.
            seed: Seed of the draw.
            prompt: What to ask.
            max_new_tokens: Longest caption to generate.

        Raises:
            ValueError: Not the official word table, no COCO files, an image or class that they or
                the table don't know, too few images, unknown profile.
            OSError: A file is missing or can't be read, or the profile's NLTK data is missing.
        """
        table = words if isinstance(words, Mapping) else load_table(words)
        find = ObjectFinder(table, profile)
        folder = Path(images)
        names = draw_images(folder, count, seed)
        known = read_annotations(annotations)
        items = []
        for name in names:
            image = image_id(name)
            if image not in known.images:
                raise ValueError(f"image {name} (id {image}) is not in the annotation files")
            objects = known.objects.get(image, ())
            if strange := [entry for entry in objects if entry not in table]:
                raise ValueError(f"image {name}: class {strange[0]!r} is not in CHAIR's word table")
            target = {
                "objects": sorted({table[entry] for entry in objects}),
                "captions": list(known.captions.get(image, ())),
            }
            items.append(Item(str(image), name, prompt, target=target))
        return cls(items, images_in(folder), _label(find), max_new_tokens, find=find)

    @classmethod
    def from_truth(
        cls,
        truth: Mapping[str, Iterable[str]],
        extract: Callable[[str], Iterable[str]],
        load_image: Loader,
        *,
        profile: str = "exact",
        prompt: str = "Describe the image.",
        max_new_tokens: int = 64,
    ) -> Chair:
        """Describe images whose objects are known exactly.

        Args:
            truth: Objects by image key.
            extract: The objects that a text mentions, one entry per mention, by the same names.
            load_image: Gives the image of a key.
            profile: What reports call these rules.
            prompt: What to ask.
            max_new_tokens: Longest caption to generate.

        Raises:
            ValueError: No image.
        """

        def find(text: str) -> Caption:
            mentions = tuple(Mention(name, name) for name in extract(text))
            return Caption(tuple(text.split()), mentions)

        items = [
            Item(key, key, prompt, target={"objects": sorted(set(objects)), "captions": []})
            for key, objects in truth.items()
        ]
        return cls(items, load_image, profile, max_new_tokens, find=find)

    def under(self, profile: str) -> Self:
        """The same images and annotations, scored under another profile.

        Raises:
            ValueError: Unknown profile, or the task has rules of its own.
            FileNotFoundError: The profile's NLTK data is missing.
        """
        if not isinstance(self.find, ObjectFinder):
            raise ValueError(f"this CHAIR task has only the profile {self.profile!r}")
        find = replace(self.find, profile=profile)
        return replace(self, find=find, profile=_label(find))

    @cached_property
    def truth(self) -> Mapping[str, frozenset[str]]:
        """Classes in the image, by item id."""
        return {
            item.id: frozenset(item.target["objects"]).union(
                mention.name
                for caption in item.target["captions"]
                for mention in self.find(caption).mentions
            )
            for item in self.items
        }

    def counts(self, item: Item, text: str) -> Counts:
        """What `count_mentions` finds, and whether the caption is ``empty``."""
        counts = count_mentions(self.find(text), self.truth[item.id])
        return {**counts, "empty": int(not text.strip())}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """CHAIR_s, CHAIR_i, recall, precision, F1, mean words and share of empty captions.

        Precision (distinct mentioned classes that are there) and F1 are PAI's additions
        (LALBJ/PAI@9bbd8bd ``chair.py``). NaN where a denominator is zero, e.g. CHAIR_i when no
        caption mentions anything; the scripts raise ZeroDivisionError there. For COCO, words are
        tokens after joining pairs, punctuation included: 100 times what OPERA prints as Len.
        """
        recall = ratio(sums["covered"], sums["truth"])
        precision = ratio(sums["covered"], sums["distinct"])
        return {
            "chair_s": ratio(sums["hallucinated_captions"], sums["captions"]),
            "chair_i": ratio(sums["hallucinated"], sums["mentions"]),
            "recall": recall,
            "precision": precision,
            "f1": ratio(2 * precision * recall, precision + recall),
            "words": ratio(sums["words"], sums["captions"]),
            "empty": ratio(sums["empty"], sums["captions"]),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        better = dict.fromkeys(("recall", "precision", "f1"), 1)
        return {"chair_s": -1, "chair_i": -1, **better, "words": 0, "empty": -1}


def count_mentions(caption: Caption, truth: Set[str]) -> dict[str, int]:
    """Sufficient statistics of one caption.

    Args:
        caption: Its tokens and mentions.
        truth: Classes in the image; if empty, every mention is a hallucination.

    Returns:
        ``captions`` (1), ``hallucinated_captions`` (0 or 1), ``mentions`` and ``hallucinated``
        (with repeats), ``distinct`` classes mentioned, ``covered`` classes of the truth,
        ``truth`` (its size), ``words`` (tokens) and ``correct`` (nothing hallucinated).
    """
    names = [mention.name for mention in caption.mentions]
    hallucinated = sum(name not in truth for name in names)
    return {
        "captions": 1,
        "hallucinated_captions": int(hallucinated > 0),
        "mentions": len(names),
        "hallucinated": hallucinated,
        "distinct": len(set(names)),
        "covered": len(truth & set(names)),
        "truth": len(truth),
        "words": len(caption.tokens),
        "correct": int(hallucinated == 0),
    }


def phrase_extractor(firsts: Iterable[str], seconds: Iterable[str]) -> Callable[[str], list[str]]:
    """Finds objects of two words, e.g. "red circle" for colours and shapes; both must be known."""
    first, second = frozenset(firsts), frozenset(seconds)

    def extract(text: str) -> list[str]:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return [f"{a} {b}" for a, b in pairwise(words) if a in first and b in second]

    return extract


def _label(find: ObjectFinder) -> str:
    return find.profile if find.sentences == "punkt" else f"{find.profile}/{find.sentences}"
