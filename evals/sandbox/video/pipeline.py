"""The U-Net painter under a ControlNet, or with motion modules, as stock diffusers pipelines."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    DiffusionPipeline,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
)

from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.video import controlnet_path, motion_path


def load_pipeline(controlnet: Path | None = None) -> StableDiffusionControlNetPipeline:
    """A pipeline in float32 that paints what a prompt says where normal maps say.

    Args:
        controlnet: Folder of its weights; default: the shipped one.

    Raises:
        OSError: The folder holds no ControlNet.
    """
    painter = DiffusionPipeline.from_pretrained(painter_path("painter-unet"))
    steering = ControlNetModel.from_pretrained(controlnet or controlnet_path())
    parts: dict[str, Any] = {**painter.components, "controlnet": steering}
    pipeline: StableDiffusionControlNetPipeline = StableDiffusionControlNetPipeline(
        **parts, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_moving(adapter: Path | None = None) -> AnimateDiffPipeline:
    """A pipeline in float32 that paints clips of what a prompt says.

    Args:
        adapter: Folder of the motion modules; default: the shipped ones.

    Raises:
        OSError: The folder holds no motion modules.
    """
    painter = DiffusionPipeline.from_pretrained(painter_path("painter-unet"))
    motion = MotionAdapter.from_pretrained(adapter or motion_path())
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts: dict[str, Any] = {name: painter.components[name] for name in names}
    pipeline: AnimateDiffPipeline = AnimateDiffPipeline(**parts, motion_adapter=motion)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def identity(controlnet: Path | None = None) -> dict[str, str]:
    """The identity of a pipeline with a ControlNet: names, and a hash of all weights.

    Raises:
        OSError: The folder holds no ControlNet.
    """
    folder = controlnet or controlnet_path()
    painter = painter_path("painter-unet")
    total = hashlib.sha256()
    for path in [*sorted(painter.rglob("*.json")), *sorted(painter.rglob("*.safetensors"))]:
        total.update(path.read_bytes())
    for path in (folder / "config.json", folder / "diffusion_pytorch_model.safetensors"):
        total.update(path.read_bytes())
    return {"name": f"{painter.name} + {folder.name}", "weights_sha256": total.hexdigest()}
