"""What attached interventions cost, beside the unmodified model and eager attention, in one run.

A LLaVA-shaped model with random weights reads one prompt: system text, 576 image columns, 50
question tokens. All conditions share the weights and take turns, one prefill or one decode step at
a time, so that noise and warmth of the machine reach all of them alike; a ratio is the median over
rounds of time / time of the unmodified model in the same round. Every method acts in every layer
(by default they leave some out), and VAR's thresholds are set so that it fires in all of them.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

import regaze
from regaze.interventions import PAI, VAF, VAR, VHR, Intervention

N_IMAGE, N_QUESTION = 576, 50
TARGETS = {"prefill": 1.05, "decode": 1.10, "memory": 1.05}
# Eager attention is far from every target, and slow: a few rounds will do.
EAGER_ROUNDS = 2
Tick = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """Size of the model; the rest is LLaVA-1.5's proportions with multi-head attention."""

    layers: int
    hidden: int
    head_dim: int
    vocab: int
    vision_layers: int
    vision_hidden: int


SHAPES = {
    # A small vocabulary keeps the output layer's share of the work as small as in a large model.
    "small": Shape(4, 512, 64, 1024, vision_layers=1, vision_hidden=64),
    "llava-7b": Shape(32, 4096, 128, 32064, vision_layers=24, vision_hidden=1024),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    shape: Shape
    prompts: tuple[int, ...]
    decode: int
    repeats: int
    threads: int
    device: str
    dtype: str
    clock: str

    def rounds(self, length: int) -> int:
        """Rounds of prefills: short prompts are cheap, so they get more."""
        return self.repeats * max(1, 2048 // length)


@dataclass(frozen=True)
class Condition:
    """One way to run the model.

    Attributes:
        name: As printed.
        intervention: What is attached, if anything.
        attention: The stock attention implementation.
        blind: Read the prompt without its image too: as a second "row" of the batch with the image
            columns masked, or in a second "pass" without them. What VHR needs by its nature.
        maps: Ask for the attention maps, as the papers' code does.
        judged: What is held against its target, as a ratio to the unmodified model.
    """

    name: str
    intervention: Intervention | None = None
    attention: str = "sdpa"
    blind: Literal["no", "row", "pass"] = "no"
    maps: bool = False
    judged: tuple[str, ...] = ()


def conditions(shape: Shape) -> list[Condition]:
    layers, all_three = tuple(range(shape.layers)), tuple(TARGETS)
    # |x_d| / RMS is near-normal here: about 1 image token in 40 exceeds 2.5 in one of two dims.
    var = VAR(sink_dims=(1, 2), tau=2.5 / shape.hidden**0.5, floor=0.0, layers=layers)
    return [
        Condition("sdpa"),
        Condition("attached, off", PAI(alpha=0.0), judged=all_three),
        Condition("VAR", var, judged=all_three),
        Condition("PAI", PAI(layers=layers), judged=all_three),
        Condition("VAF", VAF(layers=layers), judged=all_three),
        Condition("VHR", VHR(layers=layers), judged=("decode",)),
        Condition("sdpa, 2 rows", blind="row"),
        Condition("sdpa, 2 passes", blind="pass"),
        Condition("eager", attention="eager"),
        Condition("eager + maps", attention="eager", maps=True),
    ]


# -- the model ----------------------------------------------------------------------------------


def build(options: Options) -> Llava:
    """A model with random weights, made on the device."""
    shape = options.shape
    text = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11008 // 4096,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // shape.head_dim,
        num_key_value_heads=shape.hidden // shape.head_dim,
        max_position_embeddings=32768,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_hidden // 64,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=shape.vocab - 1,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    with torch.device(options.device):
        model: Any = Llava._from_config(config, dtype=getattr(torch, options.dtype))
    model.eval().requires_grad_(False)
    # Tokens must differ in every layer, as a trained model's do, or none would be a sink.
    model.get_input_embeddings().weight.normal_()
    pixels = make_prompts(model, N_IMAGE + N_QUESTION + 1, "no")[0]["pixel_values"]
    features = model.get_image_features(pixel_values=pixels).pooler_output[0]
    model.model.multi_modal_projector.linear_2.weight.div_(features.float().std())
    return model  # type: ignore[no-any-return]


def make_prompts(model: Any, length: int, blind: str) -> list[dict[str, Tensor]]:
    """The inputs of each pass that reads the prompt; for ``blind`` see `Condition`."""
    image_id = model.config.image_token_id
    generator = torch.Generator().manual_seed(length)
    start, end = length - N_IMAGE - N_QUESTION, length - N_QUESTION
    ids = torch.randint(3, image_id, (1, length), generator=generator).to(model.device)
    ids[:, start:end] = image_id
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(model.device, model.dtype)
    if blind == "row":
        mask = torch.ones_like(ids).repeat(2, 1)
        mask[1, start:end] = 0
        both = {"input_ids": ids.repeat(2, 1), "pixel_values": pixels.repeat(2, 1, 1, 1)}
        return [both | {"attention_mask": mask}]
    prompts = [{"input_ids": ids, "pixel_values": pixels}]
    if blind == "pass":
        prompts.append({"input_ids": torch.cat([ids[:, :start], ids[:, end:]], 1)})
    return prompts


class Runner:
    """The model under one condition: a copy that shares the weights."""

    def __init__(self, model: Llava, condition: Condition) -> None:
        self.condition = condition
        self.model: Any = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.model.set_attn_implementation(condition.attention)
        self.attached = None
        if condition.intervention is not None:
            self.attached = regaze.attach(self.model, condition.intervention)
        self.prompts: list[dict[str, Tensor]] = []
        self.caches: list[DynamicCache] = []

    def prepare(self, length: int) -> None:
        """Take another prompt."""
        self.caches = []
        self.prompts = make_prompts(self.model, length, self.condition.blind)

    def prefill(self) -> None:
        """Read the prompt."""
        self.caches = []
        for prompt in self.prompts:
            self.caches.append(DynamicCache(config=self.model.config.text_config))
            self._forward(self.caches[-1], **prompt)

    def decode(self) -> None:
        """Take one step more."""
        self._forward(self.caches[0], input_ids=self.prompts[0]["input_ids"][:1, -1:])

    def _forward(self, cache: DynamicCache, **inputs: Any) -> None:
        maps = {"output_attentions": True} if self.condition.maps else {}
        self.model(past_key_values=cache, logits_to_keep=1, **maps, **inputs)

    def share_of_heads(self) -> float | None:
        """Share of (head, row) pairs that were edited, mean over layers.

        Raises:
            RuntimeError: A layer was left out, so the times would mean nothing.
        """
        report = self.attached.report().interventions[0] if self.attached else None
        if report is None or report.exempt:
            return None
        acted = [layer.heads for layer in report.layers if layer.effect > 0]
        if len(acted) != self.model.config.text_config.num_hidden_layers:
            raise RuntimeError(f"{self.condition.name} didn't act in every layer: {report}")
        return statistics.fmean(acted)


# -- measuring ----------------------------------------------------------------------------------


@dataclass
class Result:
    """What one condition took at one prompt length.

    Attributes:
        prefill: Seconds of each round.
        decode: Seconds of each step.
        memory: Bytes at the peak, above the loaded model.
        heads: Share of (head, row) pairs that were edited.
        failed: Why there is nothing more.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: int | None = None
    heads: float | None = None
    failed: str = ""


def measure_times(
    runners: Sequence[Runner], length: int, options: Options, tick: Tick
) -> dict[str, Result]:
    """Prefill and decode times of all conditions, taking turns."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    results = {runner.condition.name: Result() for runner in runners}

    def take_turns(what: str, rounds: int, taking_part: Sequence[Runner]) -> None:
        for number in range(rounds):
            # Whoever comes after a slow one finds cold caches, so the order rotates.
            first = number % len(taking_part)
            for runner in [*taking_part[first:], *taking_part[:first]]:
                result = results[runner.condition.name]
                slow = what == "prefill" and runner.condition.attention == "eager"
                if result.failed or (slow and number >= EAGER_ROUNDS):
                    continue
                try:
                    _wait_for(options.device)
                    start = clock()
                    getattr(runner, what)()
                    _wait_for(options.device)
                    getattr(result, what).append(clock() - start)
                except torch.OutOfMemoryError:
                    result.failed, runner.caches = "out of memory", []
            tick()

    for runner in runners:
        runner.prepare(length)
    runners[0].prefill()  # The first prefill of this length pays for the pages of all others.
    take_turns("prefill", options.rounds(length), runners)
    one_prompt = [runner for runner in runners if runner.condition.blind == "no"]
    take_turns("decode", 3, one_prompt)
    for result in results.values():
        result.decode.clear()
    take_turns("decode", options.decode, one_prompt)
    for runner in runners:
        results[runner.condition.name].heads = runner.share_of_heads()
        runner.caches = []
    return results


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(model: Llava, condition: Condition, length: int) -> int | None:
    """Bytes that a prefill and a decode step take at their peak, above the loaded model.

    On CUDA as the allocator counts them; elsewhere the growth of the resident set, so the process
    should be a fresh one. None where the system doesn't tell, or memory runs out.
    """
    cuda = model.device.type == "cuda"
    runner = Runner(model, condition)
    # Kernels allocate their own workspace once; it isn't the condition's.
    runner.prepare(N_IMAGE + N_QUESTION + 14)
    runner.prefill()
    runner.prepare(length)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS", reset_peak=True)
    try:
        runner.prefill()
        if condition.blind == "no":
            runner.decode()
    except torch.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    return None if before is None or peak is None else peak - before


def _resident(key: str, reset_peak: bool = False) -> int | None:
    try:
        if reset_peak:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except (OSError, AttributeError):
        return None
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def _peak_memory_here(options: Options, name: str, length: int) -> int | None:
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        condition = next(c for c in conditions(options.shape) if c.name == name)
        return peak_memory(build(options), condition, length)


def measure_memory(model: Llava, options: Options, tick: Tick) -> dict[tuple[int, str], int | None]:
    """`peak_memory` of every prompt length and condition."""
    # Freed tensors go back to the system at once, so that the peak is that of live ones.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "regaze"])
    peaks = {}
    for length in options.prompts:
        for condition in conditions(options.shape):
            if options.device == "cuda":
                peak = peak_memory(model, condition, length)
            else:
                with ProcessPoolExecutor(1, mp_context=context) as fresh:
                    job = fresh.submit(_peak_memory_here, options, condition.name, length)
                    peak = job.result()
            peaks[length, condition.name] = peak
            tick()
    return peaks


# -- telling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """Ratio to a reference.

    Attributes:
        median: Over rounds.
        spread: Half the distance between the quartiles.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, mine: Sequence[float], reference: Sequence[float]) -> Ratio | None:
        """Compare round by round; None if either has none."""
        ratios = [a / b for a, b in zip(mine, reference, strict=False)]
        if len(ratios) < 2:
            return cls(ratios[0], 0.0) if ratios else None
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, (high - low) / 2)


def make_table(length: int, results: Mapping[str, Result], shape: Shape) -> Table:
    """The results at one prompt length, beside their targets."""
    system = length - N_IMAGE - N_QUESTION
    title = f"prompt {length} = {system} system + {N_IMAGE} image + {N_QUESTION} question tokens"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "heads", "prefill", "/ sdpa", "decode step", "/ sdpa", "memory", "/ sdpa"):
        table.add_column(name, justify="right" if name else "left")
    rows = [(c.name, c.name, "sdpa", c.judged) for c in conditions(shape)]
    # Reading the prompt without its image belongs to the method; overhead is what it adds to that.
    after = [name for name, *_ in rows].index("VHR") + 1
    rows[after:after] = [
        ("VHR / 2 rows", "VHR", "sdpa, 2 rows", ("prefill", "memory")),
        ("VHR / 2 passes", "VHR", "sdpa, 2 passes", ("prefill",)),
    ]
    for label, name, against, judged in rows:
        mine, reference = results[name], results[against]
        if mine.failed:
            table.add_row(label, "", mine.failed)
            continue
        table.add_row(
            label,
            "" if mine.heads is None else f"{mine.heads:.0%}",
            *_times(mine.prefill, reference.prefill, "prefill", judged),
            *_times(mine.decode, reference.decode, "decode", judged),
            *_memory(mine.memory, reference.memory, judged),
        )
    return table


def _times(
    mine: Sequence[float], reference: Sequence[float], what: str, judged: Sequence[str]
) -> tuple[str, str]:
    ratio = Ratio.of(mine, reference)
    if ratio is None:
        return "", ""
    text = f"{ratio.median:.3f} ±{ratio.spread:.2f}"
    return f"{1e3 * statistics.median(mine):.1f} ms", _judge(text, ratio.median, what, judged)


def _memory(mine: int | None, reference: int | None, judged: Sequence[str]) -> tuple[str, str]:
    if not mine or not reference:
        return "", ""
    ratio = mine / reference
    return f"{mine / 2**20:.0f} MB", _judge(f"{ratio:.3f}", ratio, "memory", judged)


def _judge(text: str, ratio: float, what: str, judged: Sequence[str]) -> str:
    if what not in judged:
        return f"{text}     "
    return f"[green]{text}   ok[/]" if ratio <= TARGETS[what] else f"[bold red]{text} MISS[/]"


def describe(options: Options) -> str:
    """Model, machine and versions in words."""
    shape = options.shape
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        load = f"load average {os.getloadavg()[0]:.1f}"
        machine = f"{platform.machine()} CPU with {os.cpu_count()} cores, {load}"
        machine += f", {options.threads} torch threads, {options.clock} clock"
    return (
        f"{shape.layers} layers, hidden {shape.hidden}, heads of {shape.head_dim}, "
        f"{options.dtype}; {machine}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def parse_options() -> tuple[Options, Path | None]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="small")
    add("--layers", type=int, help="instead of the shape's")
    add("--hidden", type=int, help="instead of the shape's")
    add("--prompts", type=int, nargs="+", default=[640, 2048, 4096], help="prompt lengths")
    add("--decode", type=int, default=64, help="decode steps")
    add("--repeats", type=int, default=5, help="rounds of prefills")
    add("--threads", type=int, default=2, help="torch threads")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="CPU float32, CUDA bfloat16")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    add("--json", type=Path, help="write all numbers to this file")
    given = parser.parse_args()
    shortest = N_IMAGE + N_QUESTION + 1
    if min(given.prompts) < shortest:
        parser.error(f"--prompts: image, question and BOS already take {shortest} columns")
    if given.device == "cuda" and given.clock == "cpu":
        parser.error("--clock cpu doesn't see what a GPU does; use wall")
    shape = SHAPES[given.shape]
    options = Options(
        replace(shape, layers=given.layers or shape.layers, hidden=given.hidden or shape.hidden),
        tuple(given.prompts),
        given.decode,
        given.repeats,
        given.threads,
        given.device,
        given.dtype or ("bfloat16" if given.device == "cuda" else "float32"),
        given.clock,
    )
    return options, given.json


def main() -> None:
    """Measure, print, save."""
    options, path = parse_options()
    torch.set_num_threads(options.threads)
    console = Console(width=max(110, Console().width))
    machine = describe(options)
    prefills = sum(options.rounds(length) for length in options.prompts)
    others = 3 + options.decode + len(conditions(options.shape))
    results: dict[int, dict[str, Result]] = {}
    # Drawn only between measurements: a thread that refreshes it would disturb them.
    with torch.inference_mode(), Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=prefills + others * len(options.prompts))

        def tick() -> None:
            progress.update(task, advance=1, refresh=True)

        model = build(options)
        runners = [Runner(model, condition) for condition in conditions(options.shape)]
        for length in options.prompts:
            results[length] = measure_times(runners, length, options, tick)
        for (length, name), peak in measure_memory(model, options, tick).items():
            results[length][name].memory = peak
    console.print(machine, highlight=False)
    for length in options.prompts:
        console.print(make_table(length, results[length], options.shape))
    targets = ", ".join(f"{what} <= {most:.2f}" for what, most in TARGETS.items())
    console.print(f"Medians, ± half the distance between quartiles. Targets: {targets}.")
    if path:
        named = {n: {k: asdict(r) for k, r in by_name.items()} for n, by_name in results.items()}
        partial = path.with_suffix(".partial")
        partial.write_text(
            json.dumps({"options": asdict(options), "machine": machine, "results": named}, indent=1)
        )
        partial.replace(path)


if __name__ == "__main__":
    main()
