"""The time saved by asking questions about one image together, with the same answers.

A LLaVA-shaped model with random weights is asked 18 short questions about an image of 576 columns,
as POPE asks them (6 objects in each of 3 files), in three ways: one question at a time, all of them
as a plain batch, and with the image's prefix shared. The ways take turns, image by image, so that
noise and warmth of the machine reach all of them alike; a ratio is the median over images.
Everything counts, from the picture in memory to the text of the answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import CLIPImageProcessor, LlavaProcessor

from benchmarks import _llava
from benchmarks._llava import PATCH, SHAPES, SIDE, Shape
from benchmarks._timing import describe, in_turn, make_parser, make_table, parse, seconds
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.prompts import Question
from regaze.evals.runs.files import write_text
from regaze.evals.sandbox.build import build_tokenizer
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES as NAMES
from regaze.hooks import attach
from regaze.interventions import PAI, VAF, VAR, VHR, Intervention

N_SYSTEM = 35  # Vicuna's system text, in tokens
WAYS = ("one at a time", "plain batch", "shared prefix")
TARGETS = {"one at a time": 6.0, "plain batch": 5.0}


@dataclass
class Result:
    """Times of one way of asking under one condition.

    Attributes:
        seconds: Seconds that each image took.
        prefill: Seconds until the first tokens, of each image.
        columns: Rows times columns that went through the text tower, of one image.
        answers: Answers about the last image.
    """

    seconds: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    columns: int = 0
    answers: list[Generated] = field(default_factory=list)


def build(options: argparse.Namespace) -> tuple[Any, LlavaProcessor]:
    """The model and a processor whose image takes 576 columns."""
    tokenizer = build_tokenizer()
    shape = replace(SHAPES[options.shape], vocab=max(1024, len(tokenizer)))
    image_token: Any = tokenizer.convert_tokens_to_ids("<image>")
    model = _llava.build(shape, image_token, options)
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
    options: argparse.Namespace,
    result: Result,
) -> None:
    """Ask all questions about one image in one way."""
    share = way == "shared prefix" and all(spec.shares_prefix for spec in specs)
    found: list[Any] = []
    with attach(answerer.model, *specs) as attached, answerer.meter.running() as meter:

        def work() -> None:
            for each in [[one] for one in asked] if way == "one at a time" else [asked]:
                found.extend(answerer.ask(each, share=share, partial=attached.partial_prompt))

        meter.start()
        result.seconds.append(seconds(work, options))
        result.prefill.append(meter.prefill_s)
        result.columns = meter.columns
    result.answers = [answer for answer in found if isinstance(answer, Generated)]


def measure(
    model: Any, processor: Any, options: argparse.Namespace
) -> dict[str, dict[str, Result]]:
    """Times of all conditions and ways, taking turns."""
    answerer = Answerer(model, processor, options.new_tokens)
    if why := answerer.why_apart(questions(picture(0), 2)):
        raise RuntimeError(f"prefixes can't be shared here: {why}")
    every = conditions(SHAPES[options.shape])
    named = {name: every[name] for name in options.only or every}
    results = {name: {way: Result() for way in WAYS} for name in named}
    for number in range(-1, options.images):
        # The first one, with few questions, only warms up.
        asked = questions(picture(number + 1), options.questions if number >= 0 else 2)
        for name, way in in_turn([(name, way) for name in named for way in WAYS], number):
            ask(answerer, named[name], asked, way, options, results[name][way])
            if number < 0:
                results[name][way] = Result()
    return results


def tell(results: Mapping[str, Mapping[str, Result]], options: argparse.Namespace) -> Table:
    """Items per second, ratios, and whether answers are the same."""
    titles = [f"{way}, items/s" for way in WAYS] + [f"shared / {way}" for way in TARGETS]
    table = make_table("", ("", *titles, "columns", "same answers"))
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
        table.add_row(name + apart, *(f"{rate:.2f}" for rate in rates), *ratios, *rest)
    return table


def main() -> None:
    """Measure, print, save."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--images", type=int, default=5, help="images to ask about, after one to warm up")
    add("--questions", type=int, default=18, help="questions about each")
    add("--only", nargs="+", choices=conditions(SHAPES["small"]), help="instead of all conditions")
    add("--new-tokens", type=int, default=5, help="length of each answer")
    add("--json", type=Path, help="write all numbers to this file")
    options = parse(parser)
    model, processor = build(options)
    with torch.inference_mode() if options.device == "cuda" else nullcontext():
        results = measure(model, processor, options)
    shape = SHAPES[options.shape]
    console = Console(width=max(140, Console().width))
    console.print(
        f"{shape.layers} layers, hidden {shape.hidden}, {model.dtype}; {describe(options)}, "
        f"transformers {transformers.__version__}; {options.questions} questions about each of "
        f"{options.images} images, answers of {options.new_tokens} tokens",
        highlight=False,
    )
    console.print(tell(results, options))
    if options.json:
        named = {n: {w: asdict(r) for w, r in ways.items()} for n, ways in results.items()}
        told = {"options": vars(options), "results": named}
        write_text(options.json, json.dumps(told, indent=1, default=str))


if __name__ == "__main__":
    main()
