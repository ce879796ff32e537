"""Stores a trained painter so that ``DiffusionPipeline.from_pretrained(folder)`` just works."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from regaze.evals.sandbox.painting.build import build_pipeline


def export(
    architecture: str,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    encoders: nn.ModuleList,
    denoiser: nn.Module,
    folder: Path,
) -> None:
    """Writes the pipeline with its weights in float16.

    Without a dtype diffusers loads its models in float32 but transformers takes the one that a text
    encoder's configuration names, so that names float32 too: the mixture could not be run.
    """
    pipeline = build_pipeline(architecture, autoencoder, tokenizer, encoders, denoiser)
    half = {
        name: copy.deepcopy(part).half() if isinstance(part, nn.Module) else part
        for name, part in pipeline.components.items()
    }
    type(pipeline)(**half, **_options(architecture)).save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a folder of this machine
        if path.parent.name.startswith("text_encoder"):
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _options(architecture: str) -> dict[str, bool]:
    return {"requires_safety_checker": False} if architecture == "unet" else {}
