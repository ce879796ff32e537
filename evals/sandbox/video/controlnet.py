"""The stage that teaches a ControlNet to steer the U-Net painter by normal maps.

Half of the prompts are empty. Then the normals alone say where things are, and which colour they
get is left to the noise: frames of a clip that start from the same noise disagree about it, and
flicker.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from regaze.evals.sandbox.painting.autoencoder import encode
from regaze.evals.sandbox.painting.build import build_scheduler
from regaze.evals.sandbox.painting.denoiser import TrainingAttention
from regaze.evals.sandbox.painting.stages import Plan, Stage, pixels, scenes_at
from regaze.evals.sandbox.painting.text_encoders import features, tokenize
from regaze.evals.sandbox.video.structure import structure

P_EMPTY = 0.5
"""Share of prompts replaced by the empty one."""


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """An untrained ControlNet: the painter's encoder, and one step from 32 to 16 pixels."""
    controlnet: ControlNetModel = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(16, 32)
    )
    return controlnet


class Controlled(nn.Module):
    """A U-Net with its ControlNet, as the pipeline calls them."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(self, noisy: Tensor, time: Tensor, tokens: Tensor, shown: Tensor) -> Tensor:
        """The predicted velocity."""
        down, middle = self.controlnet(noisy, time, tokens, shown, return_dict=False)
        output: Tensor = self.unet(
            noisy,
            time,
            tokens,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return output


class ControlNetStage(Stage):
    """Learns to remove noise from still training scenes given their normal maps.

    Attributes:
        controlnet: The only part that learns; autoencoder, text encoder and U-Net are frozen.
        latents: The scenes' latents, scaled: ``(scenes, 4, 16, 16)``, float16.
        normals: Their normal maps: ``(scenes, 3, 32, 32)``, bytes.
    """

    name = "controlnet"

    def __init__(
        self,
        painter: StableDiffusionPipeline,
        plan: Plan,
        seed: int,
        scenes: int,
        compiled: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        for part in (painter.vae, painter.text_encoder, painter.unet):
            part.eval().requires_grad_(requires_grad=False)
        self.controlnet = build_controlnet(painter.unet)
        self.controlnet.to(memory_format=torch.channels_last)
        self._encoders = nn.ModuleList([painter.text_encoder])
        model = Controlled(painter.unet.to(memory_format=torch.channels_last), self.controlnet)
        self._forward = torch.compile(model) if compiled else model
        self._schedule = build_scheduler("unet")
        super().__init__(nn.ModuleDict({"controlnet": self.controlnet}), plan, seed)
        self.keep_means()
        drawn = scenes_at(0, scenes)
        self.latents = torch.cat(
            [
                encode(painter.vae, pixels([s.image for s in drawn[i : i + 1000]])).half()
                for i in range(0, scenes, 1000)
            ]
        )
        self.latents *= painter.vae.config.scaling_factor
        shown = np.stack([np.asarray(structure(s.objects)) for s in drawn])
        self.normals = torch.from_numpy(shown).permute(0, 3, 1, 2)
        self._ids = tokenize(painter.tokenizer, [s.wanted.prompt for s in drawn])
        self._empty = tokenize(painter.tokenizer, [""])
        self._attention = TrainingAttention()

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the velocity at uniform times, as the painter learnt."""
        count = self.plan.batch
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        clean = self.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator)
        empty = torch.rand(count, 1, generator=generator) < P_EMPTY
        ids = torch.where(empty, self._empty, self._ids[chosen])
        steps = self._schedule.config.num_train_timesteps
        time = torch.randint(steps, (count,), generator=generator)
        noisy = self._schedule.add_noise(clean, noise, time).to(memory_format=torch.channels_last)
        shown = (self.normals[chosen].float() / 255).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                tokens, _ = features(self._encoders, ids)
            with self._attention.used(None):
                predicted = self._forward(noisy, time, tokens, shown)
        target = self._schedule.get_velocity(clean, noise, time)
        return {"loss": F.mse_loss(predicted.float(), target)}
