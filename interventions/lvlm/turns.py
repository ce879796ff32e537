"""User turns as a model's processor makes them: chat template, token ids, images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import BatchFeature


class Turns:
    """Makes a model's inputs of what a user says and shows.

    Attributes:
        processor: The model's processor, with a chat template.
        tokenizer: Tokenizer of the processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        # The same questions are asked under each condition, and a template is slow to fill in.
        self._filled = lru_cache(maxsize=10_000)(self._fill)
        self._known_ids = lru_cache(maxsize=10_000)(self._ids)

    def text(self, prompt: str, *, images: int, answer: str | None = None) -> str:
        """One user turn in the model's chat template, and the answer to it or its beginning."""
        return self._filled(prompt, images, answer)

    def _fill(self, prompt: str, images: int, answer: str | None) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] * images
        content = [*content, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        made: str = self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None
        )
        return made

    def inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Tensor]:
        """Left-padded model inputs on the CPU: a text in the chat template and its images per row.

        Raises:
            Exception: Whatever the processor says of an image or text it can't take.
        """
        shown = [list(row) for row in images if row]
        found = self.processor(
            text=list(texts),
            images=shown or None,
            add_special_tokens=self._special(texts[0]),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(found)

    def model_inputs(
        self, model: Any, prompt: str, images: Sequence[Image.Image]
    ) -> dict[str, Any]:
        """A model's inputs for one user turn, on its device and in its dtype.

        Raises:
            ValueError: The processor has no chat template.
        """
        if not getattr(self.processor, "chat_template", None):
            raise ValueError("the processor has no chat template, so no question can be asked")
        made = BatchFeature(self.inputs([self.text(prompt, images=len(images))], [images]))
        return dict(made.to(model.device, dtype=model.dtype))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in the chat template, its images as bare placeholders."""
        return [*self._known_ids(text)]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=self._special(text))["input_ids"])

    def _special(self, text: str) -> bool:
        # Some templates write the BOS token themselves; it must not come twice.
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))
