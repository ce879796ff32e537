"""The first stage: an autoencoder from 32 x 32 pixels to 16 x 16 latents and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from regaze.evals.sandbox.painting.build import build_autoencoder
from regaze.evals.sandbox.painting.stages import Plan, Stage, pixels, scenes_at

_KL_WEIGHT = 1e-3
_SQUARE_WEIGHT = 2.0


class AutoencoderStage(Stage):
    """Learns to draw pictures again from latents with a little noise."""

    name = "autoencoder"

    def __init__(self, plan: Plan, seed: int) -> None:
        torch.manual_seed(seed)
        self.autoencoder: AutoencoderKL = build_autoencoder()
        self.autoencoder.to(memory_format=torch.channels_last)
        super().__init__(nn.ModuleDict({"vae": self.autoencoder}), plan, seed)

    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean absolute and squared error of the pixels, and the latents' divergence."""
        scenes = scenes_at(self.step, self.plan.batch)
        images = pixels([s.image for s in scenes]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.autoencoder.encode(images).latent_dist
            again = self.autoencoder.decode(latents.sample(generator)).sample.float()
        error = (again - images).abs().mean() + _SQUARE_WEIGHT * (again - images).pow(2).mean()
        divergence = latents.kl().mean() / latents.mean[0].numel()
        return {"loss": error + _KL_WEIGHT * divergence, "kl": divergence}


@torch.inference_mode()
def encode(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents, unscaled: ``(N, 4, 16, 16)``."""
    return torch.cat([autoencoder.encode(part).latent_dist.mode() for part in images.split(250)])


def set_scale(autoencoder: AutoencoderKL, count: int = 2000) -> None:
    """Stores the factor that gives latents unit variance, over the first training scenes."""
    latents = encode(autoencoder, pixels([s.image for s in scenes_at(0, count)]))
    autoencoder.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
