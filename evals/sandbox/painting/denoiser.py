"""The third stage: the denoiser, with the text encoders learning on slowly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from regaze.evals.sandbox.painting.autoencoder import encode
from regaze.evals.sandbox.painting.build import build_denoiser, build_scheduler
from regaze.evals.sandbox.painting.stages import Plan, Stage, pixels, scenes_at
from regaze.evals.sandbox.painting.text_encoders import P_EMPTY, features, tokenize

LONGEST_T5 = 256
"""Tokens that Stable Diffusion 3 asks of its third text encoder unless told otherwise."""

_TEXT_SHARE = 0.2
_P_UNIFORM = 0.15
_KERNEL = "scaled_dot_product_attention"


class DenoiserStage(Stage):
    """Learns to remove noise from the latents of a fixed set of training scenes.

    Attributes:
        architecture: ``"mmdit"`` or ``"unet"``.
        denoiser: The model.
        encoders: The pipeline's text encoders.
        latents: The scenes' latents, scaled: ``(scenes, 4, 16, 16)``, float16.
    """

    name = "denoiser"

    def __init__(
        self,
        architecture: str,
        autoencoder: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        encoders: nn.ModuleList,
        plan: Plan,
        seed: int,
        scenes: int = 40_000,
        compiled: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        self.architecture, self.encoders = architecture, encoders
        self.denoiser = build_denoiser(architecture).to(memory_format=torch.channels_last)
        self._forward = torch.compile(self.denoiser) if compiled else self.denoiser
        self._schedule = build_scheduler(architecture)
        super().__init__(
            nn.ModuleDict({"denoiser": self.denoiser, "encoders": encoders}), plan, seed
        )
        self.keep_means()
        drawn = scenes_at(0, scenes)
        self.latents = (
            torch.cat(
                [
                    encode(autoencoder, pixels([s.image for s in drawn[i : i + 1000]])).half()
                    for i in range(0, scenes, 1000)
                ]
            )
            * autoencoder.config.scaling_factor
        )
        self._ids = tokenize(tokenizer, [s.wanted.prompt for s in drawn])
        self._empty = tokenize(tokenizer, [""])
        self._attention = TrainingAttention()

    def groups(self) -> list[dict[str, object]]:
        """Text encoders learn slower and without decay."""
        return [
            {"params": list(self.denoiser.parameters()), "share": 1.0},
            {"params": list(self.encoders.parameters()), "share": _TEXT_SHARE, "weight_decay": 0.0},
        ]

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the velocity."""
        count = self.plan.batch
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        clean = self.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator)
        empty = torch.rand(count, 1, generator=generator) < P_EMPTY
        ids = torch.where(empty, self._empty, self._ids[chosen])
        learn = self._flow if self.architecture == "mmdit" else self._diffusion
        with torch.autocast("cpu", torch.bfloat16):
            predicted, target = learn(clean, noise, ids, generator)
        return {"loss": F.mse_loss(predicted.float(), target)}

    def _flow(
        self, clean: Tensor, noise: Tensor, ids: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Flow matching at logit-normal times, some of them uniform (arXiv:2403.03206, 3.1)."""
        count = len(clean)
        time = torch.randn(count, generator=generator).sigmoid()
        uniform = torch.rand(2, count, generator=generator)
        time = torch.where(uniform[0] < _P_UNIFORM, uniform[1], time)
        tokens, pooled = features(self.encoders, ids)
        # The third text encoder gives nothing but zeros, as many as the caller asks for.
        tokens = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
        weight = torch.rand(count, generator=generator) * math.log(LONGEST_T5)
        part = time[:, None, None, None]
        noisy = (1 - part) * clean + part * noise
        with self._attention.used(weight):
            output = self._forward(noisy, tokens, pooled, time * 1000, return_dict=False)[0]
        return output, noise - clean

    def _diffusion(
        self, clean: Tensor, noise: Tensor, ids: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Velocity prediction at uniform times (arXiv:2202.00512, appendix D)."""
        schedule = self._schedule
        time = torch.randint(
            schedule.config.num_train_timesteps, (len(clean),), generator=generator
        )
        tokens, _ = features(self.encoders, ids)
        noisy = schedule.add_noise(clean, noise, time).to(memory_format=torch.channels_last)
        with self._attention.used(None):
            output = self._forward(noisy, time, tokens, return_dict=False)[0]
        return output, schedule.get_velocity(clean, noise, time)


class TrainingAttention:
    """Attention in bfloat16 by plain products: on CPUs the fused kernel's backward is slow.

    Its last key may stand for several equal ones: n equal keys with equal values weigh as one
    whose logit has log n added.
    """

    def __init__(self) -> None:
        self._log_count: Tensor | None = None

        # A function, not a bound method or callable object: torch.compile traces no others here.
        def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
                scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
                if self._log_count is not None:
                    last = F.pad(self._log_count[:, None], (key.shape[-2] - 1, 0))
                    scores = scores + last[:, None, None].bfloat16()
                return scores.softmax(-1) @ value

        self._attention = attention

    @contextmanager
    def used(self, log_count: Tensor | None) -> Iterator[None]:
        """Takes the place of `scaled_dot_product_attention`, without masks.

        Args:
            log_count: Per row, the logarithm of how many keys the last one stands for.
        """
        stock, self._log_count = getattr(F, _KERNEL), log_count
        setattr(F, _KERNEL, self._attention)
        try:
            yield
        finally:
            setattr(F, _KERNEL, stock)
