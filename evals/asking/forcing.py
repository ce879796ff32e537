"""The loss of given answers under a model, by generation that is made to say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

# An answer may go on after an end token, as chat templates write it; nothing may stop it there.
_NO_TOKEN = 2**31 - 1


def forced(
    model: PreTrainedModel, inputs: Mapping[str, Any], answers: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """Loss of given answers to a batch of prompts.

    Every token is a decode step of ``generate``, so an intervention sees exactly what it would see
    if the model had chosen these tokens itself.

    Args:
        model: An image-text-to-text model.
        inputs: Model inputs of the prompts, left-padded.
        answers: Token ids of each prompt's answer, at least one each.

    Returns:
        For each answer its mean token cross-entropy in nats, and whether each of its tokens is the
        most likely one.

    Raises:
        ValueError: An answer has no tokens.
    """
    if not all(answers):
        raise ValueError("an answer has no tokens, so it has no likelihood")
    pad = model.generation_config.pad_token_id or 0
    force = _Force(answers, inputs["input_ids"].shape[1], pad)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max(map(len, answers)),
        pad_token_id=pad,
        eos_token_id=_NO_TOKEN,
    )
    with torch.inference_mode():
        cast(Any, model).generate(**inputs, generation_config=config, logits_processor=[force])
    losses = [sum(row) / len(row) for row in force.losses]
    return list(zip(losses, force.greedy, strict=True))


class _Force(LogitsProcessor):
    """Lets only the wanted token through, and notes what it would have cost."""

    def __init__(self, answers: Sequence[Sequence[int]], n_prompt: int, pad: int) -> None:
        self.losses: list[list[float]] = [[] for _ in answers]
        self.greedy = [True] * len(answers)
        self._answers, self._n_prompt, self._pad = answers, n_prompt, pad

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._n_prompt
        logs = scores.float().log_softmax(-1)
        only = torch.full_like(scores, -torch.inf)
        for row, answer in enumerate(self._answers):
            token = answer[step] if step < len(answer) else self._pad
            only[row, token] = 0
            if step < len(answer):
                self.losses[row].append(-logs[row, token].item())
                self.greedy[row] &= bool(scores[row].argmax() == token)
        return only
