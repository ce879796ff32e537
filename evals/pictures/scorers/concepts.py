"""Measures of Attend-and-Excite: whether a picture shows every object of its prompt.

Chefer et al., arXiv 2301.13826, section 5: a picture's CLIP similarity to the whole prompt and to
the object that it fits worst, and the similarity of the prompt to a caption of the picture. A-STAR
(arXiv 2306.14544) uses the same. There every text is put into 80 templates ("a photo of a {}", ...)
whose embeddings are averaged; here into those of a file, or none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from regaze.evals.asking.models import identify
from regaze.evals.pictures.scorers.base import (
    Images,
    Ready,
    Scorer,
    check_lengths,
    file_sha256,
    register,
)
from regaze.evals.pictures.scorers.clip import load_model, load_processor, unit
from regaze.evals.task import Counts

CLIP = "openai/clip-vit-base-patch16"
"""The model of the paper's code."""


@register
@dataclass(frozen=True)
class Objects(Scorer):
    """CLIP similarity, in [-1, 1], of a picture to its prompt and to its worst object.

    Attributes:
        model: A CLIP model: folder or Hub id.
        templates: A file of templates, a line each, with ``{}`` for the text; none: the bare text.
    """

    name: ClassVar[str] = "objects"
    summary: ClassVar[str] = "CLIP similarity to the prompt and to the object that fits worst"
    paper: ClassVar[str] = "arXiv 2301.13826"
    directions: ClassVar = {"full_prompt": 1, "minimum_object": 1}
    absolute: ClassVar = ("full_prompt", "minimum_object")

    model: str = CLIP
    templates: str = ""

    def load(self, device: str) -> Ready:
        """Load the model."""
        texts = _Texts(self.model, self.templates, device)
        seer = load_model(transformers.CLIPVisionModelWithProjection, self.model, device)
        processor = load_processor(transformers.CLIPImageProcessor, self.model)

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            check_lengths(images, prompts)
            pixels = processor(images=list(images), return_tensors="pt").pixel_values.to(device)
            seen = unit(seer(pixel_values=pixels).image_embeds)
            found: list[Counts] = []
            for one, prompt in zip(seen, prompts, strict=True):
                whole = float(texts.embed(prompt) @ one)
                worst = min(float(texts.embed(part) @ one) for part in objects_of(prompt))
                found.append({"full_prompt": whole, "minimum_object": worst})
            return found

        return Ready(score, self.identity("transformers", **texts.hashes))


@register
@dataclass(frozen=True)
class Caption(Scorer):
    """CLIP similarity, in [-1, 1], of the prompt and a caption that BLIP gives the picture.

    Attributes:
        captioner: A BLIP captioning model: folder or Hub id.
        model: A CLIP model for the texts.
        templates: As in `Objects`.
    """

    name: ClassVar[str] = "caption"
    summary: ClassVar[str] = "similarity of the prompt and a caption of the picture"
    paper: ClassVar[str] = "arXiv 2301.13826"
    directions: ClassVar = {"text_text": 1}
    absolute: ClassVar = ("text_text",)

    captioner: str = "Salesforce/blip-image-captioning-base"
    model: str = CLIP
    templates: str = ""

    def load(self, device: str) -> Ready:
        """Load the models."""
        texts = _Texts(self.model, self.templates, device)
        blip = load_model(transformers.BlipForConditionalGeneration, self.captioner, device)
        processor = load_processor(transformers.BlipProcessor, self.captioner)

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            check_lengths(images, prompts)
            inputs = processor(images=list(images), return_tensors="pt").to(device)
            ids = blip.generate(**inputs, do_sample=False, max_new_tokens=30)
            captions = processor.batch_decode(ids, skip_special_tokens=True)
            return [
                {"text_text": float(texts.embed(prompt) @ texts.embed(caption.strip()))}
                for prompt, caption in zip(prompts, captions, strict=True)
            ]

        blip_sha256 = str(identify(blip)["weights_sha256"])
        identity = self.identity("transformers", captioner_sha256=blip_sha256, **texts.hashes)
        return Ready(score, identity)


def objects_of(prompt: str) -> list[str]:
    """The objects that a prompt joins by commas, "and" or "with"; the paper's prompts have two."""
    parts = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+|\s+with\s+", prompt.strip())
    return [part for part in parts if part] or [prompt]


class _Texts:
    """A CLIP model that embeds texts."""

    def __init__(self, name: str, templates: str, device: str) -> None:
        self._model = load_model(transformers.CLIPTextModelWithProjection, name, device)
        self._tokenizer = load_processor(transformers.AutoTokenizer, name)
        self._device = device
        self._known: dict[str, Tensor] = {}
        lines = Path(templates).read_text(encoding="utf-8").splitlines() if templates else ["{}"]
        self._templates = [line for line in lines if line.strip()]
        if not self._templates or any("{}" not in line for line in self._templates):
            raise ValueError(f"{templates} must hold a template per line, with {{}} for the text")
        self.hashes = {"weights": str(identify(self._model)["weights_sha256"])}
        if templates:
            self.hashes["templates_sha256"] = file_sha256(Path(templates))

    def embed(self, text: str) -> Tensor:
        """A unit vector: the mean over templates of their unit vectors."""
        if text not in self._known:
            filled = [template.replace("{}", text) for template in self._templates]
            longest = self._model.config.max_position_embeddings
            inputs: Any = self._tokenizer(
                filled, return_tensors="pt", padding=True, truncation=True, max_length=longest
            )
            found = self._model(
                input_ids=inputs.input_ids.to(self._device),
                attention_mask=inputs.attention_mask.to(self._device),
            ).text_embeds
            self._known[text] = unit(unit(found).mean(0, keepdim=True))[0]
        return self._known[text]
