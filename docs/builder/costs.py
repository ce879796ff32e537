"""What a method costs, in sentences made of its rows in benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder import pages
from regaze.interventions import Intervention

PAGE = "benchmarks/README.md"

_SAYS: Mapping[tuple[str, ...], Sequence[str]] = {
    ("What an attached method costs", "prefill at 640 / 2048", "decode step at 640 / 2048"): (
        "A prefill of 640 / 2048 tokens takes {} times the unedited model's time",
        "a decode step behind it {} times",
    ),
    (
        "What an attached method costs",
        "prefill at 640 / 2048 / 4096",
        "decode step",
        "peak memory",
    ): (
        "An earlier version, at hidden size 512, took {} times the unedited model's time for a "
        "prefill of 640 / 2048 / 4096 tokens",
        "{} times for a decode step",
        "{} times its peak memory",
    ),
    (
        "On a real language model",
        "prefill, float32",
        "decode step",
        "prefill, bfloat16",
        "decode step",
    ): (
        "On SmolLM2-135M, a prefill of 67 columns takes {} times the unedited model's time in "
        "float32",
        "a decode step {} times",
        "In bfloat16 a prefill takes {} times",
        "a decode step {} times",
    ),
    (
        "On a real language model",
        "shared, float32",
        "batch, float32",
        "one at a time, float32",
        "shared, bfloat16",
        "batch, bfloat16",
        "one at a time, bfloat16",
    ): (
        "On SmolLM2-135M, one of six POPE questions about a picture takes {} s in float32 with the "
        "picture read once",
        "On SmolLM2-135M, in a batch that reads the picture with each of six POPE questions, one "
        "takes {} s in float32",
        "one by itself {} s",
        "In bfloat16 one of six takes {} s with the picture read once",
        "In a batch that reads the picture with each, one takes {} s in bfloat16",
        "one by itself {} s",
    ),
    (
        "What contrasts cost",
        "in all",
        "prefill",
        "decode",
        "in all, `--beside`",
        "decode, `--beside`",
    ): (
        "An answer of 32 tokens takes {} times the unedited model's time",
        "its prefill {} times",
        "its decode steps {} times",
        "With the second run beside the main one all takes {} times",
        "decode steps {} times",
    ),
    ("What two threads on one attached model take", "one thread / plain", "two threads / plain"): (
        "An answer in one thread takes {} times the unedited model's time",
        "answers in two threads at once {} times",
    ),
    (
        "What guidance by perturbation costs",
        "U-Net, middle block",
        "peak memory",
        "MM-DiT, last third",
        "peak memory",
    ): (
        "On a U-Net, perturbed in its middle block, a guided step takes {} times a plain one",
        "{} times its peak memory",
        "On an MM-DiT, perturbed in its last third, a guided step takes {} times a plain one",
        "{} times its peak memory",
    ),
    ("What moving latents costs", "/ plain", "/ diffusers", "peak memory, MiB"): (
        "A step that moves the latents takes {} times a plain one",
        "{} times that of diffusers' Attend-and-Excite pipeline",
        "{} MiB at its peak",
    ),
    ("What flow warping costs", "/ step", "/ its peak memory"): (
        "A step over four frames takes {} times a plain one",
        "{} times its peak memory",
    ),
    ("What sparse attention saves", "density", "/ dense", "memory, MB (dense: 4 to 5)", "error"): (
        "At 4096 tokens and a density of {}",
        "attention takes {} times as long as dense attention (another machine in brackets)",
        "needs {} MB instead of 4 to 5",
        "is off by {}",
    ),
    ("What sparse attention saves", "density", "/ dense", "memory, MB (dense: 5)", "error"): (
        "At 16384 tokens and a density of {}",
        "attention takes {} times as long as dense attention (another machine in brackets)",
        "needs {} MB instead of 5",
        "is off by {}",
    ),
    (
        "A second text",
        "U-Net: / plain",
        "/ guidance",
        "SD3's shape: / plain",
        "/ guidance",
        "FLUX's shape: / plain",
        "/ guidance",
    ): (
        "Without guidance, a step of a U-Net takes {} times a plain one",
        "{} times a guided one",
        "A step of SD3's shape takes {} times a plain one",
        "{} times a guided one",
        "A step of FLUX's shape takes {} times a plain one",
        "{} times a guided one",
    ),
    ("Structure, skipped blocks and video", "/ plain", "/ diffusers' own", "aimed at"): (
        "A run takes {} times a plain one",
        "{} times one of diffusers' own",
        "",
    ),
    ("Two threads on one denoiser", "one thread / plain", "two threads / plain"): (
        "A run in one thread takes {} times a plain one",
        "runs in two threads at once {} times",
    ),
    (
        "A source and its edit",
        "a step / plain",
        "a step that is measured / plain",
        "a run of 28 / plain",
    ): (
        "A step takes {} times a plain one",
        "one whose effect is measured for the report {} times",
        "a run of 28 {} times",
    ),
}
"""The heading of a table and its columns but the first: what each column says. One that begins with
a capital begins a sentence."""
_HOW = {"two": "two regions"}


def costs(cls: type[Intervention]) -> list[str]:
    """Measurements of a method, in sentences.

    Raises:
        ValueError: Nothing says how a table's columns read.
    """
    found = []
    for table in pages.tables(PAGE):
        for name, *values in table.rows:
            title, _, how = name.partition(", ")
            if pages.names_of(cls) & {pages.key(title)}:
                found.append(_sentence(table, values, _HOW.get(how, how)))
    return found


def _sentence(table: pages.Table, values: Sequence[str], how: str) -> str:
    heading = table.heading.partition(": `")[0].removesuffix(", measured")
    says = _SAYS.get((heading, *table.header[1:]))
    if says is None:
        raise ValueError(
            f"{PAGE}, {heading!r}: say in builder/costs.py how the columns {table.header[1:]} read"
        )
    parts = [
        part.format(value)
        for part, value in zip(says, values, strict=True)
        if part and value not in ("", "-")
    ]
    sentences: list[list[str]] = []
    for part in parts:
        if part[0].isupper() or not sentences:
            sentences.append([])
        sentences[-1].append(part)
    said = " ".join(f"{_joined(one)}." for one in sentences)
    # A setting that is a number is a column too.
    if not how or how.replace(".", "").isdigit():
        return said
    return f"{how[0].upper()}{how[1:]}: {said[0].lower()}{said[1:]}"


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
