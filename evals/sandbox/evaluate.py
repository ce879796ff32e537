"""Scores of a sandbox model, for its training log: yes/no questions and captions, greedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from regaze.evals.polling import KINDS
from regaze.evals.sandbox.drawing import COLOURS, SIZE
from regaze.evals.sandbox.scenes import SHAPES
from regaze.evals.sandbox.tasks import chair_truth, load_image, pope_records
from regaze.evals.sandbox.text import CAPTION_PROMPT

Loader = Callable[[str], Image.Image]
_PHRASE = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def blank_image(key: str) -> Image.Image:
    """A control: one grey for every key, so that only the prior is left to answer from."""
    return Image.new("RGB", (SIZE, SIZE), (96, 96, 96))


def other_image(key: str) -> Image.Image:
    """A control: the image of another scene of the same split, far from those asked about."""
    split, _, index = key.rpartition("/")
    return load_image(f"{split}/{int(index) + 100_000}")


def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    split: str,
    n_images: int,
    load: Loader = load_image,
) -> dict[str, dict[str, float]]:
    """Scores per POPE category and for captions.

    Args:
        model: In float32.
        processor: The model's processor.
        split: The split whose scenes to ask about.
        n_images: Number of images of each task.
        load: Gives the image of a key; another one than the scene's makes a control.
    """
    records = pope_records(split, n_images)
    asked = sorted({(str(r["image"]), str(r["text"])) for r in records})
    replies = dict(zip(asked, _answer(model, processor, asked, load, 2), strict=True))
    scores: dict[str, dict[str, float]] = {}
    for category in KINDS:
        pairs = [
            (replies[str(r["image"]), str(r["text"])] != "no", r["label"] == "yes")
            for r in records
            if r["category"] == category
        ]
        scores[category] = _binary_scores(pairs)

    truth = chair_truth(split, n_images)
    captions = _answer(model, processor, [(key, CAPTION_PROMPT) for key in truth], load, 32)
    scores["captions"] = _caption_scores(captions, list(truth.values()))
    return scores


@torch.inference_mode()
def _answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Sequence[tuple[str, str]],
    load: Loader,
    max_new_tokens: int,
    batch_size: int = 100,
) -> list[str]:
    replies: list[str] = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        inputs = processor(
            images=[load(key) for key, _ in batch],
            text=[f"USER: <image>\n{text} ASSISTANT:" for _, text in batch],
            padding=True,
            return_tensors="pt",
        )
        tokens = model.generate(  # type: ignore[misc]
            **inputs, max_new_tokens=max_new_tokens, do_sample=False
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        replies += processor.batch_decode(new, skip_special_tokens=True)
    return replies


def _binary_scores(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Scores of (said yes, is yes) pairs."""
    said, true = (sum(column) for column in zip(*pairs, strict=True))
    hits = sum(a and b for a, b in pairs)
    return {
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "precision": hits / max(1, said),
        "recall": hits / max(1, true),
        "f1": 2 * hits / max(1, said + true),
        "yes_rate": said / len(pairs),
    }


def _caption_scores(captions: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """CHAIR (arXiv:1809.02156) with colour and shape both counting; a repeat is a mention too."""
    mentions = [[" ".join(match) for match in _PHRASE.findall(text)] for text in captions]
    wrong = [
        sum(phrase not in truth for phrase in found)
        for found, truth in zip(mentions, truths, strict=True)
    ]
    covered = sum(len(set(a) & set(b)) for a, b in zip(mentions, truths, strict=True))
    total = sum(len(found) for found in mentions)
    return {
        "chair_s": sum(n > 0 for n in wrong) / len(captions),
        "chair_i": sum(wrong) / max(1, total),
        "recall": covered / sum(len(truth) for truth in truths),
        "mentions": total / len(captions),
        "repeats": (total - sum(len(set(found)) for found in mentions)) / len(captions),
    }
