"""Conversations as a model's prompts, each with its own pictures and nobody else's.

Processors hand out a batch's pictures to the placeholders in its texts, in order. A text that holds
one placeholder more would so be given the picture of the next request. What a template writes for a
picture is found by filling it in with and without one; a message may not hold it, and a prompt must
hold as many as it has pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.models import Loaded
from regaze.hooks.host import find_text
from regaze.interventions.lvlm.turns import Turns
from regaze.serving.asked import ImagePart, Message
from regaze.serving.errors import bad


@dataclass(frozen=True)
class Prompt:
    """A conversation in a model's chat template, and its pictures in order."""

    text: str
    images: tuple[Image.Image, ...]


class Prompts:
    """Makes a model's inputs of conversations.

    Attributes:
        tokenizer: The model's.
        context: Columns that the model reads; None: not known.
        ends: Token ids that end an answer.
        marks: The tokens that stand for a picture in the template; where there are none, prompts
            with pictures go through the model one by one.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._turns = Turns(loaded.processor)
        self._model = loaded.model
        self.tokenizer: Any = self._turns.tokenizer
        tower: Any = find_text(loaded.model)[0]
        self.context: int | None = getattr(tower.config, "max_position_embeddings", None)
        ends = Decoding().config(loaded.model, 1).eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.marks = self._find_marks()

    def check(self, messages: Sequence[Message]) -> None:
        """Check that no text stands for a picture.

        Raises:
            ApiError: One does.
        """
        for message in messages:
            for part in message.parts:
                held = (
                    [] if isinstance(part, ImagePart) else [m for m in self.marks if m in part.text]
                )
                if held:
                    raise bad(
                        f"a message holds {held[0]!r}, which stands for a picture in this model's "
                        "prompts: leave it out, pictures are put in where their parts are",
                        "messages",
                    )

    def prompt(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Prompt:
        """Fill in the template.

        Raises:
            ApiError: The template can't take the conversation, or leaves pictures out.
        """
        try:
            text = self._fill(messages)
        except Exception as error:  # Templates raise what they like.
            said = " ".join(str(error).split())
            raise bad(f"this model's chat template can't take that: {said}", "messages") from error
        for mark, each in self.marks.items():
            if text.count(mark) != each * len(images):
                raise bad(
                    f"this model's chat template doesn't show all of the {len(images)} pictures "
                    "where they stand",
                    "messages",
                )
        return Prompt(text, tuple(images))

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Left-padded inputs, on the model's device.

        Raises:
            ApiError: The processor can't take one.
        """
        try:
            made: Mapping[str, Tensor] = self._turns.inputs(
                [one.text for one in prompts], [one.images for one in prompts]
            )
        except Exception as error:  # Processors raise anything at all.
            said = " ".join(str(error).split()) or type(error).__name__
            raise bad(
                f"this model's processor can't take the prompt: {said}", "messages"
            ) from error
        moved = BatchFeature(dict(made)).to(self._model.device, dtype=self._model.dtype)
        return dict(moved)

    def _fill(self, messages: Sequence[Message]) -> str:
        turns = [
            {
                "role": "system" if one.role == "developer" else one.role,
                "content": [
                    {"type": "image"}
                    if isinstance(part, ImagePart)
                    else {"type": "text", "text": part.text}
                    for part in one.parts
                ],
            }
            for one in messages
        ]
        made: str = self._turns.processor.apply_chat_template(turns, add_generation_prompt=True)
        return made

    def _find_marks(self) -> dict[str, int]:
        """Added tokens that one picture more brings into a prompt, and how many of each."""
        bare, one, two = (self._turns.text("", images=n) for n in (0, 1, 2))
        known = {str(token) for token in self.tokenizer.get_added_vocab()}
        found = {token: one.count(token) - bare.count(token) for token in known}
        return {
            token: count
            for token, count in found.items()
            if count > 0 and two.count(token) - bare.count(token) == 2 * count
        }
