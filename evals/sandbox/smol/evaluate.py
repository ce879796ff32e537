"""Figures of a model's card: ``python -m regaze.evals.sandbox.smol.evaluate MODEL``.

Every kind is asked about every scene, in packs (see `turns`): that tells whether a wrong yes goes
to the absent partner of something present (the prior), to a look-alike of it (confusion) or to
any other kind, and recall on pictures that training has shown from recall on those kept from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, FastVlmForConditionalGeneration

from regaze.evals.polling import KINDS
from regaze.evals.sandbox.smol import tasks
from regaze.evals.sandbox.smol.drawing import SIZE
from regaze.evals.sandbox.smol.features import encode
from regaze.evals.sandbox.smol.judged import Judged, auc, expected, percent
from regaze.evals.sandbox.smol.learner import Learner
from regaze.evals.sandbox.smol.photographs import read_photographs
from regaze.evals.sandbox.smol.scenes import ALIKE, NAMES, PARTNER, Scene
from regaze.evals.sandbox.smol.turns import Writer
from regaze.evals.sandbox.smol.words import CAPTION_PROMPT, question

DESCRIBED = ("smol-test", "smol-train-plain", "smol-test-prior")
"""Splits whose scenes are described: prior-free ones, such with seen pictures alone (those that the
twin learns from, so they are new to the other model only), and scenes that follow the prior, of
seen pictures too."""
LARGE = 0.05
"""Share of a photograph from which on an object counts as large."""


class Examiner:
    """Asks a model about pictures.

    Attributes:
        learner: The model's parts.
    """

    def __init__(self, model: FastVlmForConditionalGeneration, processor: Any) -> None:
        """Takes a model in float32.

        Args:
            model: Merged.
            processor: The model's processor.
        """
        self._model, self._processor = model, processor
        inner = model.model
        writer = Writer(processor.tokenizer)
        self.learner = Learner(inner.multi_modal_projector, inner.language_model, writer)

    def all_kinds(self, images: Sequence[Image.Image], kinds: Sequence[str] = NAMES) -> Tensor:
        """Margins of the question after each kind: ``(n, kinds)``."""
        found = []
        for image in images:
            resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            features = encode(self._model.model.vision_tower, [resized])
            found += self.learner.margins(features, [kinds])
        return torch.tensor(found)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """The model's captions of images."""
        parts = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        found: list[str] = []
        for start in range(0, len(images), 10):
            some = list(images[start : start + 10])
            inputs = self._processor(text=[text] * len(some), images=some, return_tensors="pt")
            tokens = self._model.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=48, do_sample=False
            )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            found += self._processor.batch_decode(new, skip_special_tokens=True)
        return found


def scenes_figures(examiner: Examiner, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Every kind asked about every scene: what is affirmed, and why."""
    margins = examiner.all_kinds([s.image for s in scenes])
    present = _which([s.kinds for s in scenes])
    partner = _which([[PARTNER[k] for k in s.kinds if k in PARTNER] for s in scenes]) & ~present
    alike = _which([[a for k in s.kinds for a in ALIKE[k]] for s in scenes]) & ~present
    unseen = _which([sorted(s.unseen) for s in scenes])
    judged = Judged(margins, present)
    said = margins > 0
    other = ~present & ~partner & ~alike
    return {
        "all_kinds": judged.scores(),
        "recall_seen": percent(said[present & ~unseen]),
        "recall_unseen": percent(said[unseen]),
        "share_unseen": percent(unseen[present]),
        "yes_to_partner": percent(said[partner]),
        "yes_to_alike": percent(said[alike & ~partner]),
        "yes_to_other": percent(said[other]),
        "partners_asked": int(partner.sum()),
        "partners_expected": round(expected(said, other, partner), 1),
    }


def pope_figures(examiner: Examiner, split: str, count: int, blank: bool) -> dict[str, Any]:
    """POPE's questions, as `regaze eval pope` asks them; of a grey picture if asked for."""
    records = tasks.pope_records(split, count)
    grey = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    kind_of = {question(name): name for name in NAMES}
    margins: dict[tuple[str, str], float] = {}
    whole = examiner.all_kinds([grey])[0].tolist() if blank else []
    for key in sorted({str(r["image"]) for r in records}):
        texts = sorted({str(r["text"]) for r in records if r["image"] == key})
        kinds = [kind_of[text] for text in texts]
        if blank:
            said = [whole[NAMES.index(kind)] for kind in kinds]
        else:
            said = examiner.all_kinds([tasks.load_image(key)], kinds)[0].tolist()
        margins |= {(key, text): margin for text, margin in zip(texts, said, strict=True)}
    found: dict[str, Any] = {}
    for category in ("all", *KINDS):
        chosen = [r for r in records if category in ("all", r["category"])]
        margin = torch.tensor([margins[str(r["image"]), str(r["text"])] for r in chosen])
        true = torch.tensor([r["label"] == "yes" for r in chosen])
        found[category] = {
            "questions": len(chosen),
            "accuracy": percent((margin > 0) == true),
            "yes": percent(margin > 0),
            "auc": auc(margin, true),
        }
    return found


def caption_figures(examiner: Examiner, split: str, count: int) -> dict[str, Any]:
    """CHAIR of captions of crowded scenes; a repeat is a mention too."""
    truth = tasks.chair_truth(split, count)
    texts = examiner.captions([tasks.load_image(key) for key in truth])
    mentions = [tasks.mentioned(text) for text in texts]
    pairs = list(zip(mentions, truth.values(), strict=True))
    wrong = [[k for k in set(said) if k not in true] for said, true in pairs]
    mistakes = sum(len(w) for w in wrong)
    return {
        "captions": len(texts),
        "chair_i": _share(sum(k not in true for said, true in pairs for k in said), mentions),
        "chair_s": percent(torch.tensor([bool(w) for w in wrong])),
        "recall": _share(sum(k in said for said, true in pairs for k in true), truth.values()),
        "partners_among_mistakes": round(
            100
            * sum(
                PARTNER.get(k) in true for w, (_, true) in zip(wrong, pairs, strict=True) for k in w
            )
            / max(1, mistakes),
            1,
        ),
        "examples": texts[:4],
    }


def photograph_figures(examiner: Examiner, folder: Path) -> dict[str, Any]:
    """Every kind that COCO knows too, asked about its photographs.

    Args:
        examiner: The model's examiner.
        folder: Holds ``annotations`` and folders of photographs, as COCO does.
    """
    kinds, shown = read_photographs(folder)
    images = [Image.open(folder / each.path) for each in shown]
    shares = [[each.shares.get(kind) for kind in kinds] for each in shown]
    present = torch.tensor([[share is not None for share in some] for some in shares])
    large = torch.tensor([[(share or 0.0) > LARGE for share in some] for some in shares])
    judged = Judged(examiner.all_kinds(images, kinds), present)
    counted = ~present | large
    return {
        "photographs": len(shown),
        "kinds": len(kinds),
        "present": int(present.sum()),
        "all": judged.scores(),
        "large": judged.scores(counted),
        "large_present": int(large.sum()),
    }


def _which(kinds: Sequence[Sequence[str]]) -> Tensor:
    return torch.tensor([[name in some for name in NAMES] for some in kinds])


def _share(count: int, of: Any) -> float:
    return round(100 * count / max(1, sum(len(some) for some in of)), 1)


def figures(
    model: FastVlmForConditionalGeneration,
    processor: Any,
    *,
    scenes: int,
    captions: int,
    photographs: Path | None,
) -> Mapping[str, Any]:
    """All figures of a card.

    Args:
        model: In float32.
        processor: The model's processor.
        scenes: Number of test scenes that POPE asks about; half as many are asked about every kind.
        captions: Number of scenes that are described.
        photographs: COCO's folder, if there is one.
    """
    examiner = Examiner(model, processor)
    split = "smol-test"
    shown = [tasks.find_scene(f"{split}/{number:05d}") for number in range(scenes // 2)]
    found: dict[str, Any] = {
        "pope": pope_figures(examiner, split, scenes, blank=False),
        "pope_blank": pope_figures(examiner, split, scenes, blank=True)["all"],
        "pope_prior": pope_figures(examiner, "smol-test-prior", scenes // 2, blank=False)["all"],
        "scenes": scenes_figures(examiner, shown),
        "captions": {each: caption_figures(examiner, each, captions) for each in DESCRIBED},
    }
    if photographs is not None:
        found["photographs"] = photograph_figures(examiner, photographs)
    return found


def main() -> None:
    """Prints the figures of a model as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--photographs", type=Path, help="folder of COCO, for its 100 photographs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = FastVlmForConditionalGeneration.from_pretrained(asked.model, dtype=torch.float32)
    found = figures(
        model.eval(),
        AutoProcessor.from_pretrained(asked.model),
        scenes=asked.scenes,
        captions=asked.captions,
        photographs=asked.photographs,
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
