"""The training steps of the sandbox models; ``train.py`` runs, stores and scores them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.masking_utils import eager_mask

from regaze.evals.sandbox.build import VISION_WIDTH, build_model, build_processor
from regaze.evals.sandbox.data import (
    IMAGE,
    P_BLANK,
    PREFIX,
    Texts,
    blank_pixels,
    pictures,
    texts,
    train_scenes,
)
from regaze.evals.sandbox.losses import PatchHead, answer_loss, answer_places, sink_loss

VARIANTS = ("sink", "plain")
LOG_EVERY = 50
"""Steps that one record of the log sums up."""

_ATTENTION = "regaze_sandbox_training"
_DENSE_WEIGHT = 0.5
_WARMUP = 100
_LAST_RATE = 0.02

Record = dict[str, float | str]


@dataclass(frozen=True)
class Schedule:
    """Everything that decides what is learnt, in steps rather than in time.

    Attributes:
        vision_steps: Steps of the first stage, the vision tower alone.
        vision_batch: Images per step.
        vision_rate: Highest learning rate.
        joint_steps: Steps of the second stage, the whole model.
        joint_batch: Images per step.
        joint_rate: Highest learning rate.
        sinkless_steps: Steps of the second stage before sinks are planted; by their end the
            learning rate has halved.
        seed: Seed of the initial weights and of all draws.
    """

    vision_steps: int = 1500
    vision_batch: int = 64
    vision_rate: float = 2e-3
    joint_steps: int = 2400
    joint_batch: int = 32
    joint_rate: float = 1.5e-3
    sinkless_steps: int = 900
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of both stages."""
        return self.vision_steps + self.joint_steps

    @property
    def first_sink_step(self) -> int:
        """The first step with the sink loss; before it both variants are the same."""
        return self.vision_steps + self.sinkless_steps


def _training_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention that keeps its probabilities, in bfloat16.

    The stock eager function takes the softmax in float32, which makes a step half as fast again.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (query * scaling).bfloat16() @ key.bfloat16().transpose(-1, -2)
        if attention_mask is not None:  # the vision tower has none
            scores = scores + attention_mask
        probabilities = scores.softmax(-1)
        output = probabilities @ value.bfloat16()
    return output.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(_ATTENTION, _training_attention)
# Without a mask function of the same name a mask would silently become None.
AttentionMaskInterface.register(_ATTENTION, eager_mask)


@dataclass
class Trainer:
    """A model in training.

    Attributes:
        variant: One of ``VARIANTS``.
        schedule: The steps and rates to train with.
        step: Steps done.
        cpu_seconds: Processor time spent so far, over all runs.
        log: One record per ``LOG_EVERY`` steps.
    """

    variant: str
    schedule: Schedule = field(default_factory=Schedule)
    step: int = 0
    cpu_seconds: float = 0.0
    log: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Builds the untrained model.

        Raises:
            ValueError: Unknown variant.
        """
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}: use one of {', '.join(VARIANTS)}")
        self.processor = build_processor()
        vocabulary = self.processor.tokenizer.get_vocab()
        self._yes_no = (vocabulary["yes"], vocabulary["no"])
        self.model: LlavaForConditionalGeneration = build_model(self.schedule.seed)
        self.model.set_attn_implementation(_ATTENTION)
        self.head = PatchHead(VISION_WIDTH)
        self._values: dict[int, Tensor] = {}
        for index, layer in enumerate(self.model.model.language_model.layers):
            layer.self_attn.v_proj.register_forward_hook(
                lambda module, args, output, index=index: self._values.__setitem__(index, output)
            )
        self.start_stage()

    @property
    def stage(self) -> str:
        """``"vision"`` or ``"joint"``."""
        return "vision" if self.step < self.schedule.vision_steps else "joint"

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the present stage trains."""
        trained = self.model.model.vision_tower if self.stage == "vision" else self.model
        return [*trained.parameters(), *self.head.parameters()]

    def start_stage(self) -> None:
        """Gives the present stage a fresh optimiser."""
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    def run(self, until: int) -> None:
        """Trains up to a step; a later call goes on."""
        recent: list[dict[str, float]] = []
        while self.step < until:
            if self.step == self.schedule.vision_steps:
                self.start_stage()
            stage, started = self.stage, time.process_time()
            recent.append(self._train_step())
            self.cpu_seconds += time.process_time() - started
            if self.step % LOG_EVERY == 0:
                minutes = round(self.cpu_seconds / 60, 2)
                done: Record = {"stage": stage, "step": self.step, "cpu_minutes": minutes}
                done.update(_means(recent))
                self.log.append(done)
                recent.clear()

    def _train_step(self) -> dict[str, float]:
        vision = self.stage == "vision"
        self._set_rate()
        with torch.autocast("cpu", torch.bfloat16):
            loss, seen = self._vision_loss() if vision else self._joint_loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item()} | {name: value.item() for name, value in seen.items()}

    def _set_rate(self) -> None:
        s = self.schedule
        if self.stage == "vision":
            rate = s.vision_rate * _decay(self.step, s.vision_steps, s.vision_steps)
        else:
            done = self.step - s.vision_steps
            rate = s.joint_rate * _decay(done, 2 * s.sinkless_steps, s.joint_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _vision_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        size = self.schedule.vision_batch
        batch = pictures(train_scenes(self.step * size, size))
        patches = self.model.model.vision_tower(batch.pixels).last_hidden_state[:, 1:]
        loss, accuracy = self.head.loss(patches, batch.kinds)
        return loss, {"patch_accuracy": accuracy}

    def _joint_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        s = self.schedule
        first = s.vision_steps * s.vision_batch + (self.step - s.vision_steps) * s.joint_batch
        scenes = train_scenes(first, s.joint_batch)
        rng = random.Random(f"{s.seed}/{self.step}")
        blank = [rng.random() < P_BLANK for _ in scenes]
        shown = ~torch.tensor(blank)
        seen = pictures(scenes)
        noise = torch.Generator().manual_seed(rng.getrandbits(32))
        seen.pixels[~shown] = blank_pixels(sum(blank), noise)
        asked = texts(scenes, self.processor.tokenizer, rng, blank)

        patches = self.model.model.vision_tower(seen.pixels).last_hidden_state[:, 1:]
        dense, patch_accuracy = self.head.loss(patches[shown], seen.kinds[shown])
        plants = s.first_sink_step <= self.step and self.variant == "sink"
        output = self._read(patches, asked, keep_all=plants)
        places = answer_places(asked.labels)
        logits = self.model.lm_head(output.last_hidden_state[:, :-1][places])
        answers, report = answer_loss(logits, asked.labels[:, 1:][places], self._yes_no)
        loss = answers + _DENSE_WEIGHT * dense
        report["patch_accuracy"] = patch_accuracy
        if plants:
            inner = range(1, len(output.attentions))
            sinks, sink_report = sink_loss(
                [output.hidden_states[i] for i in inner],
                [output.attentions[i] for i in inner],
                [self._values[i] for i in inner],
                seen.border & asked.answerable[:, None],
            )
            loss = loss + sinks
            report |= sink_report
        return loss, report

    def _read(self, patches: Tensor, asked: Texts, keep_all: bool) -> Any:
        """Runs the language model over image features and segments."""
        language_model = self.model.model.language_model
        embedded = language_model.embed_tokens(asked.tokens)
        features = self.model.model.multi_modal_projector(patches).to(embedded.dtype)
        embedded = torch.cat([embedded[:, : IMAGE.start], features, embedded[:, PREFIX:]], 1)
        mask = torch.zeros(asked.visible.shape, dtype=torch.bfloat16)
        return language_model(
            inputs_embeds=torch.cat(
                [embedded[:, : IMAGE.start], features, embedded[:, PREFIX:]], 1
            ),
            attention_mask=mask.masked_fill(~asked.visible, torch.finfo(mask.dtype).min),
            position_ids=asked.positions,
            use_cache=False,
            output_hidden_states=keep_all,
            output_attentions=keep_all,
        )


def _means(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every quantity of the last report over the reports that hold it."""
    held = {name: [r[name] for r in reports if name in r] for name in reports[-1]}
    return {name: round(sum(values) / len(values), 4) for name, values in held.items()}


def _decay(done: int, period: int, total: int) -> float:
    """Factor on the learning rate: warm-up, half a cosine, then linear where that takes longer.

    Args:
        done: Steps done.
        period: Steps that the whole cosine would take, from 1 to ``_LAST_RATE``.
        total: Steps to take. If more than ``period``, the rate falls on a line from the cosine's
            middle to ``_LAST_RATE``.
    """
    middle = period // 2
    if total > period and done > middle:
        return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (total - done) / (total - middle)
    cosine = 0.5 * (1 + math.cos(math.pi * done / period))
    return min(1.0, (done + 1) / _WARMUP) * (_LAST_RATE + (1 - _LAST_RATE) * cosine)
