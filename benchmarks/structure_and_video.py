"""The cost of Structured Diffusion, PrimeComposer, skipped blocks, ByTheWay and Enhance-A-Video.

Each on a model of its kind with random weights, whole runs of some steps, so that what happens once
(phrases are encoded) and what happens in some steps alone (ByTheWay, the first fifth) counts as it
does; PrimeComposer's pictures are inverted in the run, or their latents are given. Ratios to the
plain pipeline, and skip-layer guidance to diffusers' own, of rounds in which all take turns. Aimed
at: 1.02 for Structured, 1.03 for both video methods that don't guide, 0.85 of diffusers' for the
branch that skips.

Run:  python -m benchmarks.structure_and_video [--threads 1] [--rounds 5] [--only Wan]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from rich.console import Console
from transformers import CLIPTextConfig, CLIPTextModel

import regaze
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)
from benchmarks.perturbation import TEXT, dit, dit_call
from regaze.evals.sandbox.painting.build import build_tokenizer

WIDTH = 256
SKIPPED = [3, 4]
STEPS, CELLS = 20, 32
"""The U-Net's steps, and its latents' rows and columns."""
PROMPT = "a red circle and a blue square"


@dataclass(frozen=True)
class Case:
    """A model, and what is measured on it.

    Attributes:
        build: The pipeline.
        call: Arguments of the pipeline's call.
        runs: By name, what is attached and further arguments; the first one is the plain pipeline.
    """

    build: Callable[[], Any]
    call: Mapping[str, Any]
    runs: Mapping[str, tuple[Any, Mapping[str, Any]]] = field(default_factory=dict)


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, steps_offset=1)


def _autoencoder() -> Any:
    """A small one, whose latents' cells are 8 pixels wide."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip


def unet() -> Any:
    """A U-Net with a text encoder, whose words are known."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=CELLS, block_out_channels=(64, 128, 256, 256), cross_attention_dim=WIDTH,
        attention_head_dim=8, norm_num_groups=32,
    )  # fmt: skip
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return StableDiffusionPipeline(
        _autoencoder(), CLIPTextModel(config).eval(), tokenizer, model.eval(), _ddim(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def animate() -> Any:
    """A U-Net with motion modules."""
    torch.manual_seed(0)
    model = UNetMotionModel(
        sample_size=16, block_out_channels=(64, 128, 256, 256), cross_attention_dim=WIDTH,
        motion_num_attention_heads=4, num_attention_heads=4, norm_num_groups=32,
    )  # fmt: skip
    return AnimateDiffPipeline(
        _autoencoder(),
        None,
        None,
        model.eval(),
        None,
        DDIMScheduler(clip_sample=False, steps_offset=1),
    )


def wan() -> Any:
    """A video transformer."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, in_channels=16, out_channels=16,
        text_dim=WIDTH, freq_dim=64, ffn_dim=1024, num_layers=6, cross_attn_norm=True,
    )  # fmt: skip
    parts: Any = (None, None, None, FlowMatchEulerDiscreteScheduler(shift=3.0))
    return WanPipeline(*parts, transformer=model.eval())


def _composing(inverts: bool) -> regaze.PrimeComposer:
    """An object in a quarter of the picture, both as pictures or as latents of every step."""
    place: dict[str, Any] = {"box": (0.5, 0.5, 1.0, 1.0), "subject": ("square",)}
    if inverts:
        pictures = [Image.new("RGB", (8 * CELLS,) * 2, colour) for colour in ("gray", "blue")]
        return regaze.PrimeComposer(*pictures, mask=(0.0, 0.0, 1.0, 1.0), **place)
    mask = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    mask[CELLS // 2 :, CELLS // 2 :] = True
    latents = {name: torch.randn(STEPS + 1, 4, CELLS, CELLS) for name in ("background", "object")}
    return regaze.PrimeComposer(latents=latents, mask=mask, **place)


def cases() -> dict[str, Case]:
    """The specs measured, by the model's name."""
    text = torch.randn(1, TEXT, WIDTH)
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": torch.randn(1, TEXT, WIDTH)}
    phrases = ["a red circle", "a blue square"]
    skip = {
        "skip_guidance_layers": SKIPPED, "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }  # fmt: skip
    slg = regaze.SLG(layers=tuple(SKIPPED), start=0.0, stop=1.0)
    frames = {"num_frames": 16, "height": 128, "width": 128, "decode_chunk_size": 16}
    size = {"num_frames": 17, "height": 256, "width": 256}
    return {
        f"U-Net, {CELLS} x {CELLS} latents, {STEPS} steps": Case(
            unet, {"prompt": PROMPT, "num_inference_steps": STEPS, "height": 256, "width": 256},
            {
                "plain": (None, {}),
                "Structured": (regaze.StructuredDiffusion(phrases), {}),
                "PrimeComposer, latents given": (_composing(inverts=False), {}),
                "PrimeComposer": (_composing(inverts=True), {}),
            },
        ),
        "SD3-like, 12 blocks, 2 skipped, 4 steps": Case(
            lambda: dit("cpu"), {**dit_call(), "num_inference_steps": 4},
            {"plain": (None, {}), "diffusers": (None, skip), "SLG": (slg, {})},
        ),
        "AnimateDiff-like, 16 frames, 5 steps": Case(
            animate, {**embeds, **frames, "num_inference_steps": 5},
            {"plain": (None, {}), "ByTheWay": (regaze.ByTheWay(), {})},
        ),
        "Wan-like, 5 latent frames, 2 steps": Case(
            wan, {**embeds, **size, "num_inference_steps": 2},
            {
                "plain": (None, {}),
                "Enhance-A-Video": (regaze.EnhanceAVideo(), {}),
                "STG": (regaze.STG(layers=(2,)), {}),
            },
        ),
    }  # fmt: skip


def once(
    pipe: Any, call: Mapping[str, Any], spec: Any, more: Mapping[str, Any],
    options: argparse.Namespace,
) -> float:  # fmt: skip
    """Seconds of one run."""
    with regaze.attach(pipe, *([] if spec is None else [spec])), torch.inference_mode():
        run = partial(pipe, **call, **more, guidance_scale=5.0, output_type="latent")
        return seconds(run, options)


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="models whose name holds this, such as Wan")
    options = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # PrimeComposer keeps pictures and latents there.
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure each model's runs and print a table of them."""
    console = Console()
    console.print(describe(options), highlight=False)
    for title, case in cases().items():
        if options.only not in title:
            continue
        pipe = case.build().to(options.device)
        pipe.set_progress_bar_config(disable=True)
        call = {
            name: x.to(options.device) if isinstance(x, torch.Tensor) else x
            for name, x in case.call.items()
        }
        steps = {
            name: partial(once, pipe, call, spec, more, options)
            for name, (spec, more) in case.runs.items()
        }
        times = side_by_side(steps, options.rounds, warm_up=1, tick=lambda: None)
        bases = [name for name in steps if name in ("plain", "diffusers")]
        table = make_table(title, ("", *(f"to {name}" for name in bases)))
        for name in steps:
            ratios = [Ratio.of(times[name], times[base]) for base in bases]
            table.add_row(name, *(str(ratio or "") for ratio in ratios))
        console.print(table)


if __name__ == "__main__":
    main()
