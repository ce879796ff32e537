"""The ways to run a LLaVA-shaped model that `lvlm_attention` measures.

It has random weights and reads one prompt: system text, 576 image columns, 50 question tokens.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

import regaze
from benchmarks import _llava
from benchmarks._llava import N_IMAGE, SIDE, Shape
from regaze.interventions import (
    ADHH,
    GIFT,
    PAI,
    PASTA,
    SPIN,
    VAF,
    VAR,
    VHR,
    Devils,
    Intervention,
)

N_QUESTION = 50
TARGETS = {"prefill": 1.05, "decode": 1.08, "memory": 1.05}


@dataclass(frozen=True)
class Condition:
    """One way to run the model.

    Attributes:
        name: As printed.
        intervention: Intervention to attach, if any.
        attention: The stock attention implementation.
        blind: Read the prompt without its image too: as a second "row" of the batch with the image
            columns masked, or in a second "pass" without them. What VHR needs by its nature.
        maps: Ask for the attention maps, as the papers' code does.
        judged: Quantities held against their targets, as ratios to the unmodified model.
    """

    name: str
    intervention: Intervention | None = None
    attention: str = "sdpa"
    blind: Literal["no", "row", "pass"] = "no"
    maps: bool = False
    judged: tuple[str, ...] = ()


def conditions(shape: Shape) -> list[Condition]:
    layers, all_three = tuple(range(shape.layers)), tuple(TARGETS)
    # |x_d| / RMS is near-normal here: about 1 image token in 40 exceeds 2.5 in one of two dims.
    var = VAR(sink_dims=(1, 2), tau=2.5 / shape.hidden**0.5, floor=0.0, layers=layers)
    heads = max(1, shape.hidden // shape.head_dim // 4)
    listed = tuple((layer, head) for layer in layers for head in range(heads))
    gift = GIFT(layers=layers[1:], saliency=(0,), words="all", trim=(0, 0))
    return [
        Condition("sdpa"),
        Condition("attached, off", PAI(alpha=0.0), judged=all_three),
        Condition("VAR", var, judged=all_three),
        Condition("PAI", PAI(layers=layers), judged=all_three),
        Condition("VAF", VAF(layers=layers), judged=all_three),
        Condition("Devils", Devils(layers=layers), judged=all_three),
        Condition("SPIN", SPIN(layers=layers), judged=all_three),
        Condition("AD-HH", ADHH(heads=listed, threshold=0.0), judged=all_three),
        # From the image on, in a quarter of the heads.
        Condition("PASTA", PASTA(spans=("<image>",), heads=listed), judged=all_three),
        Condition("GIFT", gift, judged=all_three),
        Condition("VHR", VHR(layers=layers), judged=("decode",)),
        Condition("sdpa, 2 rows", blind="row"),
        Condition("sdpa, 2 passes", blind="pass"),
        Condition("eager", attention="eager"),
        Condition("eager + maps", attention="eager", maps=True),
    ]


def build(options: argparse.Namespace) -> Any:
    """The model; its last token id stands for an image column."""
    model = _llava.build(options.size, options.size.vocab - 1, options)
    # Tokens must differ in every layer, as a trained model's do, or none would be a sink.
    model.get_input_embeddings().weight.normal_()
    pixels = make_prompts(model, N_IMAGE + N_QUESTION + 1, "no")[0]["pixel_values"]
    features = model.get_image_features(pixel_values=pixels).pooler_output[0]
    model.model.multi_modal_projector.linear_2.weight.div_(features.float().std())
    return model


def make_prompts(model: Any, length: int, blind: str) -> list[dict[str, Tensor]]:
    """The inputs of each pass that reads the prompt; for ``blind`` see `Condition`."""
    image_id = model.config.image_token_id
    generator = torch.Generator().manual_seed(length)
    start, end = length - N_IMAGE - N_QUESTION, length - N_QUESTION
    ids = torch.randint(3, image_id, (1, length), generator=generator).to(model.device)
    ids[:, start:end] = image_id
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator).to(model.device, model.dtype)
    if blind == "row":
        mask = torch.ones_like(ids).repeat(2, 1)
        mask[1, start:end] = 0
        both = {"input_ids": ids.repeat(2, 1), "pixel_values": pixels.repeat(2, 1, 1, 1)}
        return [both | {"attention_mask": mask}]
    prompts = [{"input_ids": ids, "pixel_values": pixels}]
    if blind == "pass":
        prompts.append({"input_ids": torch.cat([ids[:, :start], ids[:, end:]], 1)})
    return prompts


class Runner:
    """The model under one condition: a copy that shares the weights."""

    def __init__(self, model: Any, condition: Condition) -> None:
        self.condition = condition
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.model.set_attn_implementation(condition.attention)
        self.attached = None
        if condition.intervention is not None:
            self.attached = regaze.attach(self.model, condition.intervention)
        self.prompts: list[dict[str, Tensor]] = []
        self.caches: list[DynamicCache] = []

    def prepare(self, length: int) -> None:
        """Take another prompt."""
        self.caches = []
        self.prompts = make_prompts(self.model, length, self.condition.blind)

    def prefill(self) -> None:
        """Read the prompt."""
        self.caches = []
        for prompt in self.prompts:
            self.caches.append(DynamicCache(config=self.model.config.text_config))
            self._forward(self.caches[-1], **prompt)

    def decode(self) -> None:
        """Take one step more."""
        self._forward(self.caches[0], input_ids=self.prompts[0]["input_ids"][:1, -1:])

    def _forward(self, cache: DynamicCache, **inputs: Any) -> None:
        maps = {"output_attentions": True} if self.condition.maps else {}
        self.model(past_key_values=cache, logits_to_keep=1, **maps, **inputs)

    def share_of_heads(self) -> float | None:
        """Share of (head, row) pairs that were edited, mean over layers.

        Raises:
            RuntimeError: A layer was left out, so the times would mean nothing.
        """
        report = self.attached.report().interventions[0] if self.attached else None
        if report is None or report.exempt:
            return None
        acted = [layer.heads for layer in report.layers if layer.effect > 0]
        wanted = getattr(self.condition.intervention, "layers", None)
        every = self.model.config.text_config.num_hidden_layers
        if len(acted) != (every if wanted is None else len(wanted)):
            raise RuntimeError(f"{self.condition.name} didn't act in every layer: {report}")
        return statistics.fmean(acted)
