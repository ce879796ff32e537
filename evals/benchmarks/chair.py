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

from regaze.evals.benchmarks.chair_files import annotated_pictures, drawn, finder, label
from regaze.evals.benchmarks.chair_synonyms import SynonymFinder
from regaze.evals.benchmarks.chair_words import Caption, Mention, ObjectFinder
from regaze.evals.benchmarks.coco import read_annotations
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
            ``official`` with the sentence rule that stands in for missing NLTK data, ``own`` a
            table of one's own, see `chair_synonyms`.
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
        synonyms: Path | str | None = None,
        profile: str | None = None,
        count: int | None = None,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = 512,
    ) -> Chair:
        """Describe images of a folder, scored against annotations in COCO's format.

        Args:
            annotations: COCO's instances and captions files of the images' split, or of several;
                of 2014 or 2017. Or such files of one's own: with ``synonyms`` their classes may
                have any name, and captions may be missing.
            images: Folder of the images, all of them annotated, see `coco.find_pictures`.
            words: CHAIR's word table, see `chair_words.load_table`; or a mapping from
                word to class.
            synonyms: A word table of one's own in its place, see `chair_synonyms`.
            profile: ``official`` (the default) or ``opera`` (what LVLM papers mostly report); with
                ``synonyms`` it is ``own``.
            count: Images to draw; default: 500, or all where there are fewer, which is logged.
            seed: Seed of the draw.
            prompt: The prompt to ask.
            max_new_tokens: Longest caption to generate.

        Raises:
            ValueError: Not the official word table, no COCO files, an image or class that they or
                the table don't know, too few images, unknown profile.
            OSError: A file is missing or can't be read, or the profile's NLTK data is missing.
        """
        folder, known = Path(images), read_annotations(annotations)
        find = finder(words, synonyms, profile, known)
        shown = annotated_pictures(folder, known)
        items = []
        for name in drawn(list(shown), count, seed, folder):
            image = shown[name]
            objects = known.objects.get(image, ())
            if strange := [entry for entry in objects if entry not in find.classes]:
                raise ValueError(
                    f"image {name}: class {strange[0]!r} is not in CHAIR's word table; for classes "
                    "of your own give a table of your own: --synonyms FILE"
                )
            target = {
                "objects": sorted({find.classes[entry] for entry in objects}),
                "captions": list(known.captions.get(image, ())),
            }
            items.append(Item(str(image), name, prompt, target=target))
        return cls(items, images_in(folder), label(find), max_new_tokens, find=find)

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
            profile: The name of these rules in reports.
            prompt: The prompt to ask.
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
        if isinstance(self.find, SynonymFinder) and profile == SynonymFinder.profile:
            return self
        if not isinstance(self.find, ObjectFinder):
            raise ValueError(f"this CHAIR task has only the profile {self.profile!r}")
        find = replace(self.find, profile=profile)
        return replace(self, find=find, profile=label(find))

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
        """The counts of `count_mentions`, and whether the caption is ``empty``."""
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
        caption: The caption's tokens and mentions.
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
