"""CARVE's and ViCrop's passes: read where a model looks, on its own kernels and cache; ask again.

No attention map is built: of each generated token one row is read, in the layers that count.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regaze.hooks.capture import Capture, capture
from regaze.hooks.host import find_host
from regaze.hooks.targets import split_target
from regaze.interventions.lvlm.carve import CARVE
from regaze.interventions.lvlm.carve_regions import middle
from regaze.interventions.lvlm.gradient_reading import read_gradient
from regaze.interventions.lvlm.looking import Look, Looking
from regaze.interventions.lvlm.turns import Turns
from regaze.interventions.lvlm.vicrop_maps import join


@dataclass(frozen=True, eq=False)
class Reading:
    """The patches a model looked at while it answered.

    Attributes:
        attention: "T L rows cols", of each generated token and layer, mean over heads.
        ended: True if the answer ended by itself, so that there are no more tokens to read.
        text: The answer.
    """

    attention: NDArray[np.float32]
    ended: bool
    text: str = ""

    def suffices(self, tokens: int) -> bool:
        """True if its readings cover that many tokens."""
        return self.ended or len(self.attention) >= tokens


def patch_attention(
    seen: Capture, tokens: int, sample: int, inputs: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Attention of generated tokens to the patches of a prompt's image.

    Args:
        seen: A capture with ``rows="last"``, ``heads="mean"`` of a prompt and its answer.
        tokens: Tokens of the answer, the end token included.
        sample: Batch row.
        inputs: The processor's output for the batch.

    Returns:
        "T L rows cols".

    Raises:
        ValueError: There isn't one image, its grid can't be known, or a layer has lost sight of it.
    """
    count = 0 if seen.tokens is None else seen.tokens.n_images(sample)
    if count != 1:
        raise ValueError(
            f"looking closer takes one image, and this prompt has {count}: ask about one at a time"
        )
    grid = seen.grid(sample, 0, inputs)
    layers: dict[int, list[Tensor]] = {}
    for one in seen.captured:
        columns = grid - one.offset
        if columns.min() < 0:
            raise ValueError(
                f"layer {one.layer} has a sliding window that has moved past the image: choose "
                "layers with full attention"
            )
        layers.setdefault(one.layer, []).append(one.weights[sample, 0, -1, columns])
    rows = torch.stack([torch.stack(layers[layer][:tokens]) for layer in sorted(layers)], 1)
    return rows.numpy()


@dataclass(frozen=True, eq=False)
class Closer(Look):
    """A picture looked at more closely, ready to be asked about again.

    Attributes:
        question: The question.
        before: The model's answer to the picture as it is (its first
            ``spec.max_new_tokens`` tokens).
    """

    question: str
    before: str
    looker: Looker = field(repr=False)

    def answer(self, **options: Any) -> str:
        """Ask again, about what is shown now.

        Args:
            **options: Options of ``model.generate``; greedy and at most 32 new tokens by default.
        """
        looker = self.looker
        inputs = looker.inputs(self.question, self.shown)
        with torch.inference_mode():
            made = looker.model.generate(
                **inputs, **{"max_new_tokens": 32, "do_sample": False, **options}
            )
        return looker.text(made[0, inputs["input_ids"].shape[1] :])


class Looker:
    """Looks closer at pictures for questions about them.

    The general question is asked once per picture, and the vision tower reads a picture once for
    both readings, where the model has a ``get_image_features``.

    Args:
        model: An image-text-to-text model or a pipeline that holds one. What is attached to it
            acts in all passes.
        processor: Processor of the model, with a chat template.
        spec: The settings.

    Attributes:
        model: The model.
        processor: Processor of the model.
        spec: The settings with every field filled in.

    Raises:
        ValueError: The model has no image patches to look at, or no chat template.
    """

    def __init__(self, model: Any, processor: Any, spec: Looking | None = None) -> None:
        found, self.processor = split_target(model, processor)
        self.model: Any = found
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(
                "looking closer asks questions, and the processor has no chat template"
            )
        self.spec = (spec or CARVE()).resolve(find_host(found, self.processor))
        self._turns = Turns(self.processor)
        self._picture = ""
        self._general: Reading | None = None

    def __call__(self, image: Image.Image, question: str) -> Closer:
        """Find what a question is about.

        Args:
            image: One picture.
            question: The user's text.

        Raises:
            TypeError: Several pictures.
            ValueError: The question is the general one, the picture's grid can't be known, or no
                region stands out.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(f"looking closer takes one PIL image, got {type(image).__name__}")
        spec, picture = self.spec, image.convert("RGB")
        spec.check_question(question)
        key = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        if key != self._picture:
            self._picture, self._general = key, None
        # A gradient by the picture goes through the features of its own pass.
        once = features_once(self.model) if spec.gradient is None else nullcontext()
        with once:
            query = self.read(picture, question, spec.reading_tokens)
            # More tokens of the general answer than of this one would be for nothing.
            tokens = len(query.attention)
            if self._general is None or not self._general.suffices(tokens):
                self._general = self.read(picture, spec.general, tokens)
        seen = middle(getattr(self.processor, "image_processor", None), picture.size)
        look = spec.look(picture, query.attention, self._general.attention, seen)
        return Closer(**vars(look), question=question, before=query.text, looker=self)

    def read(self, image: Image.Image, question: str, tokens: int) -> Reading:
        """Answer greedily, and keep where the model looked.

        Args:
            image: The picture, or that of which tiles are read.
            question: The user's text.
            tokens: Most tokens to generate.
        """
        read = [
            [self._read(part, question, tokens) for part in row] for row in self.spec.parts(image)
        ]
        attention = join([[one.attention for one in row] for row in read])
        return replace(read[0][0], attention=attention)

    def _read(self, image: Image.Image, question: str, tokens: int) -> Reading:
        inputs = self.inputs(question, (image,))
        by, layers = self.spec.gradient, self.spec.reading_layers
        if by is not None:
            found, token = read_gradient(self.model, self.processor, layers[0], by, inputs)
            return Reading(found, False, self.text(torch.tensor([token], device="cpu")))
        config = copy.deepcopy(self.model.generation_config)
        config.update(
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_length=None,
            max_new_tokens=tokens,
        )
        with (
            torch.inference_mode(),
            capture(self.model, "last", layers, heads="mean", processor=self.processor) as seen,
        ):
            made = self.model.generate(**inputs, generation_config=config)
            new = made[0, inputs["input_ids"].shape[1] :]
            found = patch_attention(seen, len(new), 0, inputs)
        ends = config.eos_token_id
        ended = int(new[-1]) in (ends if isinstance(ends, list) else [ends])
        return Reading(found, ended, self.text(new))

    def inputs(self, question: str, images: tuple[Image.Image, ...]) -> dict[str, Any]:
        """Model inputs for one user turn."""
        return self._turns.model_inputs(self.model, question, images)

    def text(self, tokens: Tensor) -> str:
        """Decode the generated tokens."""
        said: str = self._turns.tokenizer.decode(tokens, skip_special_tokens=True)
        return said.strip()


def look_closer(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    spec: Looking | None = None,
) -> Closer:
    """Find what a question is about in a picture, and show it magnified.

    Example:
        >>> closer = look_closer(model, processor, image, "What is on the sign?")  # doctest: +SKIP
        >>> closer.crop.save("closer.png")  # doctest: +SKIP
        >>> print(closer.before, "->", closer.answer())  # doctest: +SKIP

    For several questions about a picture make a `Looker`, which asks the general one once.

    Args:
        model: An image-text-to-text model or a pipeline that holds one.
        processor: Processor of the model, with a chat template.
        image: One picture.
        question: The user's text.
        spec: The settings; default: ``CARVE()``.

    Raises:
        TypeError: Not a model, or several pictures.
        ValueError: The model has no image patches to look at, the question is the general one, the
            picture's grid can't be known, or no region stands out.
    """
    return Looker(model, processor, spec)(image, question)


@contextmanager
def features_once(model: Any) -> Iterator[None]:
    """A context in which the vision tower reads an image once, even if shown again and again."""
    owner = getattr(model, "model", model)
    stock = getattr(owner, "get_image_features", None)
    if stock is None:
        yield
        return
    kept: list[Any] = []

    # transformers looks at its signature.
    @functools.wraps(stock)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *(value for _, value in sorted(kwargs.items())))
        if not kept or not _same(kept[0], given):
            kept[:] = given, stock(*args, **kwargs)
        return kept[1]

    owner.get_image_features = remembered
    try:
        yield
    finally:
        del owner.get_image_features


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    if len(one) != len(two):
        return False
    return all(
        a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
        for a, b in zip(one, two, strict=True)
    )
