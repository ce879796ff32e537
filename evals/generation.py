"""Greedy answers to prompts about images, in left-padded batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from transformers import BatchFeature, GenerationConfig, PreTrainedModel

from regaze.hooks.towers import find_tower


@dataclass(frozen=True)
class Generated:
    """One answer, and the sizes that go with it; the fields are those of `Record`."""

    text: str
    n_prompt_tokens: int
    n_image_tokens: int
    n_new_tokens: int
    finish: Literal["eos", "length"]


class Answerer:
    """A model and its processor with fixed decoding settings.

    Attributes:
        model: An image-text-to-text model.
        processor: Its processor, with a chat template.
        decoding: The model's own generation settings without anything random.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, max_new_tokens: int) -> None:
        self.model = model
        self.processor = processor
        self.decoding = _greedy(model, max_new_tokens)
        self._image_ids = torch.tensor(sorted(find_tower(model, processor).image_ids))
        ends = self.decoding.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[Generated]:
        """Answer one batch: one prompt about one image per row."""
        inputs = self.encode(prompts, images)
        with torch.inference_mode():
            sequences = cast(Any, self.model).generate(**inputs, generation_config=self.decoding)
        new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        n_prompt = inputs["attention_mask"].sum(1).tolist()
        n_image = torch.isin(inputs["input_ids"].cpu(), self._image_ids).sum(1).tolist()
        return [self._generated(*row) for row in zip(new, n_prompt, n_image, strict=True)]

    def encode(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
        """Model inputs for one user turn per row, on the model's device."""
        texts = [
            self.processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": prompt}],
                    }
                ],
                add_generation_prompt=True,
            )
            for prompt in prompts
        ]
        # Some templates write the BOS token themselves; it must not come twice.
        bos = self.processor.tokenizer.bos_token
        inputs: BatchFeature = self.processor(
            text=texts,
            images=[[image] for image in images],
            add_special_tokens=not (bos and texts[0].startswith(bos)),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    @property
    def settings(self) -> dict[str, Any]:
        """The decoding settings that differ from transformers' defaults, JSON-able."""
        settings = self.decoding.to_diff_dict()
        return {k: settings[k] for k in settings if k != "transformers_version" and k[0] != "_"}

    def _generated(self, tokens: list[int], n_prompt: int, n_image: int) -> Generated:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        if end is not None:
            tokens = tokens[: end + 1]
        return Generated(
            text=self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
            n_prompt_tokens=n_prompt,
            n_image_tokens=n_image,
            n_new_tokens=len(tokens),
            finish="length" if end is None else "eos",
        )


def _greedy(model: PreTrainedModel, max_new_tokens: int) -> GenerationConfig:
    config = copy.deepcopy(model.generation_config)
    config.update(
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_length=None,
        max_new_tokens=max_new_tokens,
    )
    if config.pad_token_id is None:
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return config
