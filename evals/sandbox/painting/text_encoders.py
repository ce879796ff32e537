"""The second stage: text encoders that tell prompts apart before any picture is painted.

Trained from the start together with the denoiser, text encoders stay nearly constant and the
denoiser learns to do without them. So they first learn to name words and objects, with each token
position centred over the prompts: a common offset would hide the differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from regaze.evals.sandbox.painting.build import TEXT_WIDTHS, TOKENS, build_text_encoders
from regaze.evals.sandbox.painting.prompts import COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, Wanted
from regaze.evals.sandbox.painting.stages import Plan, Stage, scenes_at

P_EMPTY = 0.1
"""Share of prompts replaced by the empty one, which guidance needs."""

_COLOURS, _SHAPES = (*COLOURS, None), (*SHAPES, None)
_RELATIONS = (*RELATIONS, None)
_CLASSES = (*(len(_COLOURS), len(_SHAPES)) * MAX_OBJECTS, len(_RELATIONS))


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids padded to ``(prompts, TOKENS)``."""
    padded = tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True)
    return torch.tensor(padded["input_ids"])


def features(encoders: nn.ModuleList, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """The features that the pipelines hand to the denoiser.

    Returns:
        Per token, ``(prompts, TOKENS, width)``: of one encoder the last layer, as Stable Diffusion
        takes it; of two the last layer but one, joined, as Stable Diffusion 3 does. And of two the
        joined projections of the end token, ``(prompts, width)``.
    """
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    if len(outputs) == 1:
        return outputs[0].last_hidden_state, None
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return tokens, torch.cat([output.text_embeds for output in outputs], -1)


class TextStage(Stage):
    """Learns to read off each token its word and the two before, off the end all objects."""

    name = "text"

    def __init__(self, architecture: str, tokenizer: CLIPTokenizer, plan: Plan, seed: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer = tokenizer
        self.encoders = build_text_encoders(architecture, len(tokenizer))
        width = sum(TEXT_WIDTHS[architecture])
        heads = {
            "word": nn.Linear(width, 3 * len(tokenizer)),
            "objects": nn.Linear(width, sum(_CLASSES)),
            "pooled": nn.Linear(width, sum(_CLASSES)),
        }
        super().__init__(nn.ModuleDict({"encoders": self.encoders, **heads}), plan, seed)

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropies and the centring of each position."""
        wanted = [s.wanted for s in scenes_at(self.step, self.plan.batch)]
        empty = (torch.rand(len(wanted), generator=generator) < P_EMPTY).tolist()
        prompts = ["" if no else w.prompt for w, no in zip(wanted, empty, strict=True)]
        objects = torch.tensor(
            [_classes(None if no else w) for w, no in zip(wanted, empty, strict=True)]
        )
        ids = tokenize(self.tokenizer, prompts)
        tokens, pooled = features(self.encoders, ids)

        words = self.modules["word"](tokens).unflatten(-1, (3, -1))
        word_loss = sum(
            F.cross_entropy(words[:, back:, back].flatten(0, 1), ids[:, : TOKENS - back].flatten())
            for back in range(3)
        )
        # The end token and all the padding behind it, which is the same token.
        ends = ids == self.tokenizer.eos_token_id
        owner = ends.nonzero()[:, 0]
        loss, accuracy = _objects_loss(self.modules["objects"](tokens[ends]), objects[owner])
        if pooled is not None:
            loss = loss + _objects_loss(self.modules["pooled"](pooled), objects)[0]
        spread = (tokens.var(0) + 1e-6).sqrt()
        centring = 2 * tokens.mean(0).pow(2).mean() + 0.2 * (spread - 1).pow(2).mean()
        return {
            "loss": loss + word_loss + centring,
            "accuracy": accuracy,
            "end_spread": spread[-1].mean(),
        }


def _classes(wanted: Wanted | None) -> list[int]:
    kinds = wanted.kinds if wanted else ()
    slots = [(k.colour, k.shape) for k in kinds] + [(None, None)] * (MAX_OBJECTS - len(kinds))
    named = [i for c, s in slots for i in (_COLOURS.index(c), _SHAPES.index(s))]
    return [*named, _RELATIONS.index(wanted.relation if wanted else None)]


def _objects_loss(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    parts = logits.split(_CLASSES, -1)
    losses = [F.cross_entropy(part, classes[:, i]) for i, part in enumerate(parts)]
    right = [part.argmax(-1) == classes[:, i] for i, part in enumerate(parts)]
    return torch.stack(losses).mean(), torch.stack(right).all(0).float().mean()
