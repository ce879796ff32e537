"""Costs of methods on a real language model of 30 layers, beside the unmodified one, in one run.

`smol` (see evals/sandbox/smol) is asked about a drawn picture. Parts, each a table:

- ``cost``: reading a prompt and a decode step, in float32 and bfloat16, for a short question about
  one picture and for a long one about four. All conditions share the weights and take turns; a
  ratio is the median over rounds of time / time of the unmodified model in the same round.
- ``memory``: the peak of a prefill and a decode step above the loaded model, in fresh processes.
- ``question``: a yes/no question about a picture, in seconds: with the prefix shared, in a batch
  of whole prompts, and by itself.
- ``long``: methods against their literal form on the long prompt, and the unmodified model against
  itself on explicit maps, which is rounding alone.
- ``compiled``: ``torch.compile`` in its default mode against the same, uncompiled.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from benchmarks._timing import (
    Ratio,
    describe,
    in_fresh_process,
    make_parser,
    make_table,
    parse,
    peak_memory,
    seconds,
    side_by_side,
)
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import load
from regaze.evals.asking.prompts import Prompter, Question
from regaze.evals.sandbox.scenes import scene
from regaze.evals.sandbox.smol import model_path
from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.hooks.literal_runs import literally
from regaze.interventions import GIFT, PAI, SPIN, VAF, VAR, VHR, Intervention

PARTS = ("cost", "memory", "question", "long", "compiled")
_SHORT = VHR(layers=(1, 17, 29))
_SENTENCE = "One of these shapes is larger than it looks at first. "


def conditions(only: Sequence[str] | None = None) -> dict[str, tuple[Intervention, ...]]:
    """Methods at their defaults; VAR with a threshold that only the text sink exceeds.

    Args:
        only: Names beside the unmodified model; None: all.
    """
    every: dict[str, tuple[Intervention, ...]] = {
        "none": (),
        "attached, off": (PAI(alpha=0.0),),
        "VAR": (VAR(sink_dims=(507,), tau=0.64, floor=0.0),),
        "PAI": (PAI(),),
        "VAF": (VAF(),),
        "SPIN": (SPIN(),),
        "GIFT": (GIFT(),),
        "VHR": (VHR(),),
    }
    return {k: specs for k, specs in every.items() if only is None or k in ("none", *only)}


def pictures(count: int) -> list[Image.Image]:
    """Drawn scenes."""
    return [scene("test", number).image for number in range(count)]


def prompt(model: Any, processor: Any, *, long: bool, columns: int) -> dict[str, Any]:
    """A question about one picture, or a long one about four with about so many columns."""
    prompter = Prompter(processor)
    count, text = 1, "Is there a circle in the image?"
    if long:
        count = 4
        each = len(prompter.ids(_SENTENCE))
        text = _SENTENCE * ((columns - 4 * 51) // each) + "Which one?"
    shown = pictures(count)
    inputs = prompter.inputs([prompter.text(text, images=count)], [shown])
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }


class Runner:
    """The model under one condition, reading one prompt.

    Args:
        model: Shared by all conditions; attached to for the time of a step.
        specs: The condition.
        inputs: The prompt.
    """

    def __init__(
        self, model: Any, specs: Sequence[Intervention], inputs: Mapping[str, Any]
    ) -> None:
        self.model, self.specs, self.inputs = model, specs, inputs
        self.cache = DynamicCache(config=model.config.text_config)

    def prefill(self, options: argparse.Namespace) -> float:
        """Seconds of reading the prompt."""
        with attach(self.model, *self.specs):
            self.cache = DynamicCache(config=self.model.config.text_config)
            return seconds(partial(self._forward, **self.inputs), options)

    def decode(self, options: argparse.Namespace, steps: int) -> float:
        """Seconds of a decode step after the prompt, which is read anew for it."""
        word = self.inputs["input_ids"][:, -1:]
        with attach(self.model, *self.specs):
            self.cache = DynamicCache(config=self.model.config.text_config)
            self._forward(**self.inputs)
            self._forward(input_ids=word)

            def several() -> None:
                for _ in range(steps):
                    self._forward(input_ids=word)

            return seconds(several, options) / steps

    def _forward(self, **inputs: Any) -> None:
        self.model(past_key_values=self.cache, logits_to_keep=1, **inputs)


def cost(model: Any, processor: Any, options: argparse.Namespace, *, long: bool) -> Table:
    """Times of reading a prompt and of decoding."""
    inputs = prompt(model, processor, long=long, columns=options.columns)
    named = conditions(options.only)
    runners = {name: Runner(model, specs, inputs) for name, specs in named.items()}
    columns = inputs["input_ids"].shape[1]
    title = f"{columns} columns, {4 if long else 1} pictures, {model.dtype}"
    table = make_table(title, ("", "prefill", "/ none", "decode step", "/ none"))
    rounds = min(options.repeats, 2) if long else options.repeats
    prefills = side_by_side(
        {name: partial(one.prefill, options) for name, one in runners.items()}, rounds, warm_up=1
    )
    decodes = side_by_side(
        {name: partial(one.decode, options, options.decode) for name, one in runners.items()},
        rounds,
    )
    for name in named:
        cells = []
        for times in (prefills, decodes):
            ratio = Ratio.of(times[name], times["none"])
            cells += [f"{1e3 * statistics.median(times[name]):.0f} ms", str(ratio)]
        table.add_row(name, *cells)
    return table


def peak(name: str, dtype: str, columns: int) -> int | None:
    """Bytes at the peak of a prefill of the long prompt and a decode step."""
    loaded = load("smol", dtype=dtype, device="cpu")
    with torch.inference_mode():
        specs = conditions()[name]
        Runner(loaded.model, specs, prompt(loaded.model, loaded.processor, long=False, columns=0))
        long = prompt(loaded.model, loaded.processor, long=True, columns=columns)
        runner = Runner(loaded.model, specs, long)
        options = argparse.Namespace(clock="wall", device="cpu")
        return peak_memory(lambda: runner.decode(options, 1), "cpu")


def memory(options: argparse.Namespace) -> Table:
    """Peak memory of the long prompt."""
    title = f"peak above the loaded model, about {options.columns} columns, 4 pictures"
    table = make_table(title, ("", *(f"{dtype}, / none" for dtype in options.dtype)))
    found: dict[str, list[int | None]] = {}
    for name in conditions(options.only):
        found[name] = [
            in_fresh_process(options.threads, peak, name, dtype, options.columns)
            for dtype in options.dtype
        ]
        cells = [
            f"{mine / 2**20:.0f} MB, {mine / plain:.3f}" if mine and plain else "-"
            for mine, plain in zip(found[name], found["none"], strict=True)
        ]
        table.add_row(name, *cells)
    return table


def question(model: Any, processor: Any, options: argparse.Namespace) -> Table:
    """Seconds of a question about a picture that is asked several."""
    answerer = Answerer(model, processor, 2)
    words = ("circle", "square", "cow", "train", "cup", "dog")
    ways = ("shared prefix", "one batch", "one at a time")
    table = make_table(f"a question of {len(words)} about a picture, {model.dtype}", ("", *ways))
    for name, specs in conditions(options.only or ("PAI", "VAF", "VHR")).items():
        times: dict[str, list[float]] = {way: [] for way in ways}
        with attach(model, *specs) as attached:

            def ask(way: str, asked: Sequence[Question], partly: Any = attached) -> None:
                for part in [[one] for one in asked] if way == "one at a time" else [asked]:
                    share = way == "shared prefix"
                    answerer.ask(part, share=share, partial=partly.partial_prompt)

            for picture in pictures(options.repeats):
                asked = [Question(f"Is there a {w} in the image?", picture, "0") for w in words]
                for way in ways if all(spec.shares_prefix for spec in specs) else ways[1:]:
                    taken = seconds(partial(ask, way, asked), options)
                    times[way].append(taken / len(words))
        cells = (f"{statistics.median(t):.3f} s" if t else "-" for t in times.values())
        table.add_row(name, *cells)
    return table


def long(model: Any, processor: Any, options: argparse.Namespace) -> Table:
    """Methods against their literal form on the long prompt."""
    inputs = prompt(model, processor, long=True, columns=options.columns)
    host = find_host(model, processor)
    columns = inputs["input_ids"].shape[1]
    table = make_table(
        f"{columns} columns, 4 pictures, {model.dtype}: largest difference of logits, in their "
        "standard deviations",
        ("", "from the literal form", "from the plain model"),
    )
    plain = model(**inputs).logits.float()
    spread = float(plain.std())
    # Its literal form runs the prompt twice a layer.
    for name, specs in conditions(options.only or ("PAI", "VAF", "VHR")).items():
        if name == "VHR":
            name, specs = "VHR, 3 layers", (_SHORT,)
        with attach(model, *specs, processor=processor) as attached:
            got = model(**inputs).logits.float()
        forms = [spec.literal() for spec in attached.specs]
        with literally(host, inputs, forms):
            want = model(**inputs).logits.float()
        apart, moved = (float((got - x).abs().max()) / spread for x in (want, plain))
        table.add_row(name, f"{apart:.1e}", f"{moved:.2f}")
    return table


def compiled(model: Any, processor: Any, options: argparse.Namespace) -> Table:
    """The compiled model, plain and attached, against the same uncompiled."""
    inputs = prompt(model, processor, long=False, columns=0)
    table = make_table(
        f"torch.compile, default mode, {model.dtype}: largest difference of logits, in their "
        "standard deviations",
        ("", "from the uncompiled", "first call", "later calls", "uncompiled"),
    )
    for name, specs in conditions(options.only or ("PAI", "VHR")).items():
        with attach(model, *specs, processor=processor):
            want = model(**inputs).logits
            eager = statistics.median(seconds(lambda: model(**inputs), options) for _ in range(5))
            torch.compiler.reset()
            fast = torch.compile(model)
            first = seconds(lambda: fast(**inputs), options)  # noqa: B023
            got = fast(**inputs).logits
            later = [seconds(lambda: fast(**inputs), options) for _ in range(5)]  # noqa: B023
        apart = float((got - want).abs().max() / want.std())
        table.add_row(
            name,
            f"{apart:.1e}",
            f"{first:.0f} s",
            f"{1e3 * statistics.median(later):.0f} ms",
            f"{1e3 * eager:.0f} ms",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--parts", nargs="+", choices=PARTS, default=[*PARTS[:-1]], help="default: all but the last"
    )
    add("--only", nargs="+", choices=conditions(), help="instead of all conditions")
    add(
        "--prompts", nargs="+", choices=("short", "long"), default=["short", "long"], help="of cost"
    )
    add("--dtype", nargs="+", default=["float32", "bfloat16"])
    add("--columns", type=int, default=2000, help="about how many the long prompt has")
    add("--decode", type=int, default=8, help="decode steps a round")
    add("--repeats", type=int, default=5, help="rounds of the short prompt")
    options = parse(parser)
    console = Console(width=max(110, Console().width))
    try:
        model_path("smol")
    except ValueError as error:
        console.print(f"Skipped: {error}")
        return
    console.print(describe(options), highlight=False)
    with torch.inference_mode():
        for dtype in options.dtype:
            loaded = load("smol", dtype=dtype, device=options.device)
            model, processor = loaded.model, loaded.processor
            if "cost" in options.parts and "short" in options.prompts:
                console.print(cost(model, processor, options, long=False))
            if "question" in options.parts:
                console.print(question(model, processor, options))
            for name, part in (("long", long), ("compiled", compiled)):
                if name in options.parts:
                    console.print(part(model, processor, options))
            if "cost" in options.parts and "long" in options.prompts:
                console.print(cost(model, processor, options, long=True))
    if "memory" in options.parts:
        console.print(memory(options))


if __name__ == "__main__":
    main()
