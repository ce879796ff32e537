"""OPOPE: POPE's objects looked up in a caption instead of asked for.

HALC, arXiv:2403.00425; BillChan226/HALC@12ea8b5 ``eval/opope_eval.py``. An image's caption says yes
to an object if it contains any word of the object's name. A caption can't mention everything, so
the paper quotes F with beta 0.2, which is nearly precision; its script prints F1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.coco import draw_images
from regaze.evals.benchmarks.data import Loader, images_in, read_records
from regaze.evals.benchmarks.questions import Questions, length, shares
from regaze.evals.benchmarks.rows import require, texts
from regaze.evals.polling import KINDS, draw_objects
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums

PROMPT = "Please describe this image in detail."
BETA = 0.2

_PER_IMAGE = 3
_SCORES = ("f_beta", "precision", "recall", "accuracy", "f1")


@dataclass
class Opope(Questions):
    """The task: one caption per image.

    An item's target holds the objects that are in the image (``present``) and, for each kind of
    negative, as many that are not.
    """

    profile: str = "official"
    max_new_tokens: int = 64
    name: str = "opope"
    headline: tuple[str, ...] = ("f_beta", "precision", "accuracy", "words")

    @classmethod
    def from_files(
        cls,
        objects: Path | str,
        images: Path | str,
        *,
        count: int | None = 500,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = 64,
    ) -> Opope:
        """Describe images of a folder whose objects are known.

        Args:
            objects: POPE's ``coco_ground_truth_segmentation.json``: lines with ``image`` and
                ``objects``.
            images: Folder of the images; those with at least three objects can be drawn.
            count: Images to draw; None takes all.
            seed: Seed of the draw and of the random objects, which the published script draws anew
                in every run.
            prompt: The prompt to ask.
            max_new_tokens: Longest caption to generate.

        Raises:
            ValueError: A file of something else, an image that is in it twice, too few images.
            OSError: A file can't be read.
        """
        path, folder = Path(objects), Path(images)
        known: dict[str, list[str]] = {}
        for place, row in read_records(path):
            require(place, row, ("image", "objects"), "OPOPE")
            image = str(row["image"])
            if image in known:
                raise ValueError(f"{place}: the image {image} is in the file twice")
            known[image] = list(dict.fromkeys(texts(place, row, "objects")))
        usable = {
            name: known[name]
            for name in draw_images(folder, None, seed)
            if len(known.get(name, ())) >= _PER_IMAGE
        }
        if not usable:
            raise ValueError(f"no image of {folder} has {_PER_IMAGE} objects or more in {path}")
        return cls.from_truth(
            usable,
            images_in(folder),
            count=count,
            seed=seed,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
        )

    @classmethod
    def from_truth(
        cls,
        truth: Mapping[str, Iterable[str]],
        load_image: Loader,
        *,
        count: int | None = None,
        seed: int = 0,
        prompt: str = PROMPT,
        max_new_tokens: int = 64,
    ) -> Opope:
        """Describe images whose objects are given.

        Args:
            truth: Objects by image key, at least three each.
            load_image: Gives the image of a key.
            count: As in `from_files`.
            seed: As in `from_files`.
            prompt: As in `from_files`.
            max_new_tokens: As in `from_files`.

        Raises:
            ValueError: Too few images or objects.
        """
        lists = {image: list(names) for image, names in truth.items()}
        targets: dict[str, dict[str, list[str]]] = {}
        for kind in KINDS:
            # The same seed draws the same images, and with them the same present objects.
            for image, present, absent, _ in draw_objects(lists, kind, images=count, seed=seed):
                target = targets.setdefault(image, {"present": [], **{k: [] for k in KINDS}})
                if kind == KINDS[0]:
                    target["present"].append(present)
                target[kind].append(absent)
        items = [Item(image, image, prompt, target=target) for image, target in targets.items()]
        return cls(items, load_image, "official", max_new_tokens)

    def counts(self, item: Item, text: str) -> Counts:
        """Objects found in one caption, by kind; ``correct`` if all of POPE's are right."""
        found = sum(mentions(text, name) for name in item.target["present"])
        wrong = {kind: sum(mentions(text, n) for n in item.target[kind]) for kind in KINDS}
        asked = len(item.target["present"])
        return {
            "n": 1,
            "asked": asked,
            "tp": found,
            **{f"fp_{kind}": number for kind, number in wrong.items()},
            "correct": int(found == asked and not any(wrong.values())),
            **length(text),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """F-beta, precision, recall, accuracy and F1: the mean of the three kinds, then each.

        Recall is the same for all kinds, which share the objects that are there.
        """
        kinds = {kind: _scores(sums["tp"], sums[f"fp_{kind}"], sums["asked"]) for kind in KINDS}
        return {
            **{name: np.mean([kinds[kind][name] for kind in KINDS], axis=0) for name in _SCORES},
            **{
                f"{kind}_{name}": kinds[kind][name]
                for kind in KINDS
                for name in _SCORES
                if name != "recall"
            },
            **shares(sums),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        each = (f"{kind}_{name}" for kind in KINDS for name in _SCORES if name != "recall")
        return {**dict.fromkeys((*_SCORES, *each), 1), "words": 0, "empty": -1}


def mentions(caption: str, name: str) -> bool:
    """True if a caption contains any word of an object's name, as the published script looks.

    As a substring and in its case: "catch" mentions a cat, "dog" a hot dog, "Dog" no dog.
    """
    return any(word in caption for word in name.split(" "))


def _scores(
    tp: NDArray[np.float64], fp: NDArray[np.float64], asked: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Scores of a kind that asks for as many absent as present objects."""
    precision, recall = ratio(tp, tp + fp), ratio(tp, asked)
    return {
        "f_beta": _f(precision, recall, BETA),
        "precision": precision,
        "recall": recall,
        "accuracy": ratio(tp + asked - fp, 2 * asked),
        "f1": _f(precision, recall, 1),
    }


def _f(
    precision: NDArray[np.float64], recall: NDArray[np.float64], beta: float
) -> NDArray[np.float64]:
    return ratio((1 + beta**2) * precision * recall, beta**2 * precision + recall)
