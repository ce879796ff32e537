"""Ask a model one question, with methods or without, as a person does who tries them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from regaze.evals.asking.encoding import Encoded, Refused
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.models import Loaded
from regaze.evals.asking.preparing import preparer, resolve, split
from regaze.evals.asking.prompts import Question
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.hooks.host import find_host
from regaze.hooks.report import Report
from regaze.hooks.text_capture import Capture
from regaze.interventions.base import Intervention

Told = Callable[[str, int], None]
"""Called with the answer so far and its number of tokens; what it raises ends the answer."""


@dataclass(frozen=True)
class Asked:
    """An answer, and how it came about.

    Attributes:
        answer: The answer; its margin is that of yes over no.
        picture: The picture that the model was shown: a method may crop the one given.
        report: The report on the methods.
        tokens: The answer's token ids.
        inputs: The model's inputs.
        seen: Attention of the rows that chose the answer's tokens, head by head; None where it
            wasn't looked at.
    """

    answer: Generated
    picture: Image.Image | None
    report: Report
    tokens: tuple[int, ...]
    inputs: Encoded
    seen: Capture | None


def check(loaded: Loaded, picture: Image.Image | None, specs: Sequence[Intervention]) -> None:
    """Check that methods can act on a model and on what is asked.

    Raises:
        ValueError: One can't.
    """
    _, asking = split(specs)
    if asking is not None and picture is None:
        raise ValueError(f"{asking.name} changes what is asked about a picture: give one")
    resolve(specs, loaded.model, loaded.processor)


def ask(
    loaded: Loaded,
    prompt: str,
    picture: Image.Image | None,
    specs: Sequence[Intervention] = (),
    *,
    max_new_tokens: int = 64,
    look: bool = False,
    told: Told = lambda text, tokens: None,
) -> Asked:
    """Answer a question greedily.

    Args:
        loaded: The model; left as it was found.
        prompt: The question.
        picture: The picture asked about; None for none.
        specs: Methods, in the order in which they act; one may change the question.
        max_new_tokens: Longest answer.
        look: Capture attention, head by head.
        told: Told of every token.

    Raises:
        ValueError: A method doesn't fit the model or its settings, or the question can't be asked.
    """
    check(loaded, picture, specs)
    model, processor = loaded.model, loaded.processor
    answerer = Answerer(model, processor, max_new_tokens)
    attached, asking = split(specs)
    question = Question(prompt, picture, key="picture")
    with (
        torch.inference_mode(),
        attach(model, *attached, processor=processor) as run,
        answerer.meter.running(),
    ):
        changes = []
        if asking is not None:
            changer = preparer(asking.resolve(find_host(model, processor)), answerer, False)
            (found,) = changer.prepare([question])
            if isinstance(found, Refused):
                raise ValueError(found.reason)
            question = found.question
            changes.append(changer.report())
        encoded, refused = answerer.encoded([question], share=False)
        if refused:
            raise ValueError(refused[0].reason)
        follow = _Follow(answerer, encoded[0].inputs["input_ids"].shape[1], told)
        if look:
            with capture(model, processor=processor) as seen:
                (answer,) = answerer.answer(encoded[0], stop=follow)
        else:
            seen = None
            (answer,) = answerer.answer(encoded[0], stop=follow)
    report = Report((*run.report().interventions, *changes))
    tokens = tuple(follow.tokens[: answer.n_new_tokens])
    return Asked(answer, question.image, report, tokens, encoded[0], seen)


class _Follow(StoppingCriteria):
    """Tells of every token; never stops by itself."""

    def __init__(self, answerer: Answerer, n_prompt: int, told: Told) -> None:
        self.tokens: list[int] = []
        self._tokenizer: Any = answerer.prompter.tokenizer
        self._n_prompt, self._told = n_prompt, told

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.tokens = input_ids[0, self._n_prompt :].tolist()
        text = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        self._told(text, len(self.tokens))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
