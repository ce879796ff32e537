"""What asking questions about one image together saves, in one run, with the same answers.

A LLaVA-shaped model with random weights is asked 18 short questions about an image of 576 columns,
as POPE asks them (6 objects in each of 3 files), in three ways: one question at a time, all of them
as a plain batch, and with the image's prefix shared. The ways take turns, image by image, so that
noise and warmth of the machine reach all of them alike; a ratio is the median over images.
Everything counts, from the picture in memory to the text of the answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)
from transformers import LlavaForConditionalGeneration as Llava

from regaze.evals.generation import Answerer, Generated
from regaze.evals.prompts import Question
from regaze.evals.sandbox.build import build_tokenizer
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES as NAMES
from regaze.hooks import attach
from regaze.interventions import PAI, VAF, VAR, VHR, Intervention

SIDE, PATCH = 336, 14
N_SYSTEM = 35  # Vicuna's system text, in tokens
WAYS = ("one at a time", "plain batch", "shared prefix")
TARGETS = {"one at a time": 5.0, "plain batch": 2.0}


@dataclass(frozen=True)
class Shape:
    """Size of the model; the rest is LLaVA-1.5's proportions."""

    layers: int
    hidden: int
    head_dim: int
    vision_layers: int
    vision_hidden: int


SHAPES = {
    # That of `lvlm_attention.py`.
    "small": Shape(4, 512, 64, vision_layers=1, vision_hidden=64),
    "llava-7b": Shape(32, 4096, 128, vision_layers=24, vision_hidden=1024),
}


@dataclass
class Result:
    """What one way took under one condition.

    Attributes:
        seconds: Of each image.
        prefill: Seconds until the first tokens, of each image.
        columns: Rows times columns that went through the text tower, of one image.
        answers: Of the last image.
    """

    seconds: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    columns: int = 0
    answers: list[Generated] = field(default_factory=list)


def build(shape: Shape, device: str, dtype: str) -> tuple[Any, LlavaProcessor]:
    """A model with random weights and a processor whose image takes 576 columns."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=max(1024, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11008 // 4096,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // shape.head_dim,
        num_key_value_heads=shape.hidden // shape.head_dim,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_hidden // 64,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Llava._from_config(config, dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    # Random logits are close to ties, and a tie may fall either way; a longer head parts them.
    model.get_output_embeddings().weight.mul_(30)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="the " * N_SYSTEM
        + "USER: <image>\n{{ messages[0]['content'][-1]['text'] }} ASSISTANT:",
    )
    return model, processor


def conditions(shape: Shape) -> dict[str, tuple[Intervention, ...]]:
    """Every method acts in every layer."""
    layers = tuple(range(shape.layers))
    sinks = {"sink_dims": (1, 2), "tau": 2.5 / shape.hidden**0.5, "floor": 0.0}
    return {
        "none": (),
        "VAR": (VAR(layers=layers, **sinks),),
        "PAI": (PAI(layers=layers),),
        "VAF": (VAF(layers=layers),),
        "VHR": (VHR(layers=layers),),
    }


def picture(seed: int) -> Image.Image:
    """Noise in blocks, so that images differ."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((480, 360), Image.Resampling.NEAREST)


def questions(image: Image.Image, count: int) -> list[Question]:
    """POPE's questions."""
    things = [f"{colour} {name}" for name in NAMES for colour in COLOURS][:count]
    return [Question(f"Is there a {thing} in the image?", image, "image") for thing in things]


def ask(
    answerer: Answerer,
    specs: Sequence[Intervention],
    asked: Sequence[Question],
    way: str,
    result: Result,
    clock: Callable[[], float],
) -> None:
    """Ask all questions about one image in one way."""
    shares = all(spec.shares_prefix for spec in specs)
    with attach(answerer.model, *specs) as attached, answerer.meter.running() as meter:
        meter.start()
        start = clock()
        if way == "one at a time":
            found = [answer for question in asked for answer in answerer.ask([question])]
        else:
            share = way == "shared prefix" and shares
            found = answerer.ask(asked, share=share, partial=attached.partial_prompt)
        result.seconds.append(clock() - start)
        result.prefill.append(meter.prefill_s)
        result.columns = meter.columns
    result.answers = [answer for answer in found if isinstance(answer, Generated)]


def measure(
    model: Any, processor: Any, options: argparse.Namespace
) -> dict[str, dict[str, Result]]:
    """Times of all conditions and ways, taking turns."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    answerer = Answerer(model, processor, options.new_tokens)
    if why := answerer.why_apart(questions(picture(0), 2)):
        raise RuntimeError(f"prefixes can't be shared here: {why}")
    every = conditions(SHAPES[options.shape])
    named = {name: every[name] for name in options.only or every}
    results = {name: {way: Result() for way in WAYS} for name in named}
    for number in range(-1, options.images):
        # The first one, with few questions, only warms up.
        asked = questions(picture(number + 1), options.questions if number >= 0 else 2)
        # Whoever comes after a slow one finds cold caches, so the order rotates.
        turns = [(name, way) for name in named for way in WAYS]
        first = number % len(turns)
        for name, way in [*turns[first:], *turns[:first]]:
            ask(answerer, named[name], asked, way, results[name][way], clock)
            if number < 0:
                results[name][way] = Result()
    return results


def table(results: Mapping[str, Mapping[str, Result]], options: argparse.Namespace) -> Table:
    """Items per second, ratios, and whether answers are the same."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("", *(f"{way}, items/s" for way in WAYS), *(f"shared / {w}" for w in TARGETS)):
        made.add_column(title, justify="right" if title else "left")
    made.add_column("columns")
    made.add_column("same answers")
    for name, ways in results.items():
        rates = [options.questions / statistics.median(ways[way].seconds) for way in WAYS]
        shared = ways["shared prefix"]
        ratios = []
        for way, least in TARGETS.items():
            each = [a / b for a, b in zip(ways[way].seconds, shared.seconds, strict=True)]
            ratio = statistics.median(each)
            told = "" if name == "VHR" else " ok" if ratio >= least else " MISS"
            ratios.append(f"{ratio:.1f}x{told}")
        apart = " (apart)" if name == "VHR" else ""
        columns = f"{ways['plain batch'].columns} -> {shared.columns}"
        same = all(ways[way].answers == shared.answers for way in WAYS)
        rest = (columns, "yes" if same else "NO")
        made.add_row(name + apart, *(f"{rate:.2f}" for rate in rates), *ratios, *rest)
    return made


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="small")
    add("--images", type=int, default=5, help="images to ask about, after one to warm up")
    add("--questions", type=int, default=18, help="questions about each")
    add("--only", nargs="+", choices=conditions(SHAPES["small"]), help="instead of all conditions")
    add("--new-tokens", type=int, default=5, help="length of each answer")
    add("--threads", type=int, default=2, help="torch threads")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="CPU float32, CUDA bfloat16")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    add("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    if cuda and options.clock == "cpu":
        parser.error("--clock cpu doesn't see what a GPU does; use wall")
    dtype = options.dtype or ("bfloat16" if cuda else "float32")
    shape = SHAPES[options.shape]
    model, processor = build(shape, options.device, dtype)
    with torch.inference_mode() if cuda else nullcontext():
        results = measure(model, processor, options)
    where = (
        torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )
    console = Console(width=max(140, Console().width))
    console.print(
        f"{shape.layers} layers, hidden {shape.hidden}, {dtype}; {where}, {options.threads} torch "
        f"threads, {options.clock} clock; torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {options.questions} questions about each of "
        f"{options.images} images, answers of {options.new_tokens} tokens",
        highlight=False,
    )
    console.print(table(results, options))
    if options.json:
        named = {n: {w: asdict(r) for w, r in ways.items()} for n, ways in results.items()}
        text = json.dumps({"options": vars(options), "results": named}, default=str, indent=1)
        partial = options.json.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(options.json)


if __name__ == "__main__":
    main()
