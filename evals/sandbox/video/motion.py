"""The stage that teaches the U-Net painter to move: AnimateDiff's motion modules, alone.

The painter is frozen and every frame has a noise of its own, so that by itself it paints another
picture in each frame; what the modules learn is that frames show the same things, a step further.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.nn import functional as F

from regaze.evals.sandbox.painting.autoencoder import encode
from regaze.evals.sandbox.painting.build import build_scheduler
from regaze.evals.sandbox.painting.denoiser import TrainingAttention
from regaze.evals.sandbox.painting.stages import Plan, Stage, pixels
from regaze.evals.sandbox.painting.text_encoders import P_EMPTY, features, tokenize
from regaze.evals.sandbox.video import FRAMES
from regaze.evals.sandbox.video.world import clips

_HEADS = 4
_AT_ONCE = 100
"""Clips that are encoded at once."""


def build_adapter(unet: Any) -> MotionAdapter:
    """Untrained motion modules behind every block of a U-Net's encoder and decoder.

    They begin as the identity: what they add is projected by zeros.
    """
    adapter: MotionAdapter = MotionAdapter(
        block_out_channels=unet.config.block_out_channels,
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=_HEADS,
        motion_norm_num_groups=unet.config.norm_num_groups,
        motion_max_seq_length=4 * FRAMES,
        use_motion_mid_block=False,
    )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return adapter


def adapter_of(unet: UNetMotionModel) -> MotionAdapter:
    """The motion modules of a U-Net by themselves, as pipelines take them."""
    adapter = build_adapter(unet)
    for own, its in (
        *zip(adapter.down_blocks, unet.down_blocks, strict=True),
        *zip(adapter.up_blocks, unet.up_blocks, strict=True),
    ):
        own.motion_modules.load_state_dict(its.motion_modules.state_dict())
    return adapter


class MotionStage(Stage):
    """Learns to remove noise from the clips of the training split, all frames together.

    Attributes:
        unet: The painter's, with motion modules, which alone learn.
        latents: The clips' latents, scaled: ``(clips, frames, 4, 16, 16)``, float16.
    """

    name = "motion"

    def __init__(
        self,
        painter: StableDiffusionPipeline,
        plan: Plan,
        seed: int,
        count: int,
        compiled: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        self.unet: UNetMotionModel = UNetMotionModel.from_unet2d(
            painter.unet, build_adapter(painter.unet)
        )
        for part in (painter.vae, painter.text_encoder, self.unet):
            part.eval().requires_grad_(requires_grad=False)
        motion = nn.ModuleList(
            module for n, module in self.unet.named_modules() if n.endswith("motion_modules")
        ).requires_grad_()
        self._encoders = nn.ModuleList([painter.text_encoder])
        self._forward = torch.compile(self.unet) if compiled else self.unet
        self._schedule = build_scheduler("unet")
        super().__init__(nn.ModuleDict({"motion": motion}), plan, seed)
        self.keep_means()
        drawn = clips("train", count)
        found = []
        for start in range(0, count, _AT_ONCE):
            images = [image for clip in drawn[start : start + _AT_ONCE] for image in clip.images]
            found.append(encode(painter.vae, pixels(images)).half())
        latents = torch.cat(found) * painter.vae.config.scaling_factor
        self.latents = latents.unflatten(0, (count, FRAMES))
        self._ids = tokenize(painter.tokenizer, [clip.prompt for clip in drawn])
        self._empty = tokenize(painter.tokenizer, [""])
        self._attention = TrainingAttention()

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the velocity at uniform times, one for each clip."""
        count = self.plan.batch
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        clean = self.latents[chosen].float()
        if torch.rand((), generator=generator) < 0.5:  # Backwards it is a clip of this world, too.
            clean = clean.flip(1)
        noise = torch.randn(clean.shape, generator=generator)
        empty = torch.rand(count, 1, generator=generator) < P_EMPTY
        ids = torch.where(empty, self._empty, self._ids[chosen])
        time = torch.randint(
            self._schedule.config.num_train_timesteps, (count,), generator=generator
        )
        noisy = self._schedule.add_noise(clean, noise, time).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                tokens, _ = features(self._encoders, ids)
            tokens = tokens.repeat_interleave(FRAMES, 0)
            with self._attention.used(None):
                predicted = self._forward(noisy, time, tokens, return_dict=False)[0]
        target = self._schedule.get_velocity(clean, noise, time).transpose(1, 2)
        return {"loss": F.mse_loss(predicted.float(), target)}
