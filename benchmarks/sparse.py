"""Sparse attention beside dense attention: time, memory, density and error.

Radial Attention and PAROAttention on one call of a video model's attention, on queries and keys
that hold what such methods live on: a token's logits fall with its distance in time and in the
picture (radial), or a head attends to its own place in other frames (paro). Dense attention is
torch's kernel on the same numbers. AnchorAttention in the prompt of a language tower of LLaVA's
shape, with random weights, whose maps hold no stripes to speak of: with a threshold at which few
columns come near, that is its cost where it saves most.

Targets: below 1.0 of dense attention's time at 16384 tokens, and of the plain prompt's at 8192.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import regaze
from benchmarks import _llava
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
from regaze.hooks.diffusion.blocks import Blocks, attend
from regaze.interventions import AnchorAttention
from regaze.interventions.diffusion.paro_plan import permutation
from regaze.interventions.diffusion.paro_survey import best_blocks
from regaze.interventions.diffusion.radial import block_mask

CLIPS = {4096: (16, 16, 16), 16384: (16, 32, 32)}
"""Frames, rows and columns, by their number of tokens."""
SIZE = 64
"""Channels of a head."""


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--tokens", type=int, nargs="*", choices=CLIPS, default=list(CLIPS), help="of a clip")
    add("--heads", type=int, default=4, help="of a call; time and memory grow with them")
    add("--prompts", type=int, nargs="*", default=[8192], help="tokens of prompts")
    add("--density", type=float, nargs="+", default=[0.5, 0.3, 0.2], help="of PARO's blocks")
    add("--theta", type=float, nargs="+", default=[12.0, 0.0], help="of AnchorAttention")
    add("--layers", type=int, default=2, help="layers of the language tower")
    add("--rounds", type=int, default=5, help="rounds that count")
    add("--flex", action="store_true", help="FlexAttention beside it, compiled (a minute each)")
    options = parse(parser)
    for tokens in options.tokens:
        Console().print(clips(tokens, options))
    for length in options.prompts:
        Console().print(prompts(length, options))


def clips(tokens: int, options: argparse.Namespace) -> Any:
    """A table of one clip's size."""
    grid = CLIPS[tokens]
    table = make_table(
        f"One call of {options.heads} heads of size {SIZE}, {tokens} tokens "
        f"({' x '.join(map(str, grid))}): seconds and ratio to dense attention\n"
        f"{describe(options)}",
        ["", "density", "seconds", "ratio", "memory, MB", "error", ""],
    )
    for method in ("radial", "paro"):
        parts = dict(_parts(method, tokens, options))
        given = _drawn(method, grid, options)
        dense = _dense(*given)
        works: dict[str, Any] = {"dense": lambda given=given: _dense(*given)}
        for name, (part, order) in parts.items():
            for by in ("gather", "flex") if options.flex else ("gather",):
                label = f"{name}, flex" if by == "flex" else name
                works[label] = _work(given, part, order, by)
        times = side_by_side(
            {n: lambda work=work: seconds(work, options) for n, work in works.items()},
            options.rounds, warm_up=1,
        )  # fmt: skip
        for name, work in works.items():
            ratio = Ratio.of(times[name], times["dense"])
            blocks = None if name == "dense" else parts[name.removesuffix(", flex")][0]
            shape = None if blocks is None else (len(blocks.keep), blocks.size)
            density = 1.0 if blocks is None else blocks.density
            memory = None
            if not name.endswith("flex"):
                memory = in_fresh_process(
                    options.threads, _memory, method, tokens, shape, density, options
                )
            error = float((work() - dense).norm() / dense.norm())
            judged = ""
            if tokens == max(CLIPS) and name != "dense" and ratio is not None:
                judged = "ok" if ratio.median < 1 else "target 1.0"
            table.add_row(
                f"{method}'s clip, dense" if name == "dense" else name,
                f"{density:.3f}", f"{sorted(times[name])[len(times[name]) // 2]:.3f}", str(ratio),
                "" if memory is None else f"{memory / 2**20:.0f}", f"{error:.4f}", judged,
            )  # fmt: skip
    return table


def _parts(method: str, tokens: int, options: argparse.Namespace) -> Any:
    """Blocks and orders by name."""
    grid = CLIPS[tokens]
    if method == "radial":
        for decay in (0.95, 0.2):
            keep = block_mask(grid[0], grid[1] * grid[2], tokens, decay, sink=True)
            yield f"radial, decay {decay}", (Blocks(keep[None], 128, tokens), None)
        return
    query, key, _ = (x.cpu() for x in _drawn(method, grid, options))
    size = 64
    for order in ("fhw", "hwf"):
        at = permutation(grid, order)
        sums = torch.stack(
            [_block_sums(query[0, h, at], key[0, h, at], size) for h in range(options.heads)]
        )
        for density in options.density:
            if order == "fhw" and density != options.density[0]:
                continue
            name = f"paro, {density}" if order == "hwf" else f"not reordered, {density}"
            yield name, (Blocks(best_blocks(sums, density), size, tokens), at[None])


def _block_sums(query: Tensor, key: Tensor, size: int) -> Tensor:
    rows = [
        ((some * SIZE**-0.5) @ key.T).softmax(-1).unflatten(1, (-1, size)).sum((0, 2))
        for some in query.split(size)
    ]
    return torch.stack(rows)


def _drawn(
    method: str, grid: tuple[int, int, int], options: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values "1 H N D" of a clip."""
    made = torch.Generator().manual_seed(0)
    axes = [torch.arange(n) for n in grid]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2).float()
    # Rotary features: logits fall with the distance along each axis.
    weight = torch.tensor([0.7, 0.5, 0.5] if method == "radial" else [0.05, 1.2, 1.2])
    turns = torch.randn(SIZE // 2, 3, generator=made) * weight
    angles = place @ turns.T
    base = torch.cat([angles.cos(), angles.sin()], -1) * math.sqrt(12 * SIZE**0.5 / (SIZE // 2))
    shape = (1, options.heads, len(base), SIZE)
    noise = [torch.randn(shape, generator=made) * 0.3 for _ in range(2)]
    value = torch.randn(shape, generator=made)
    return tuple(x.to(options.device) for x in (base + noise[0], base + noise[1], value))  # type: ignore[return-value]


def _dense(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, **more)


def _work(given: Any, blocks: Blocks, order: Tensor | None, by: Any) -> Any:
    def work() -> Tensor:
        if order is None:
            return attend(*given, blocks, _dense, by=by)
        at = order[0].to(given[0].device)
        made = attend(*(x[:, :, at] for x in given), blocks, _dense, by=by)
        return made[:, :, at.argsort()]

    return work


def _memory(
    method: str, tokens: int, blocks: tuple[int, int] | None, density: float,
    options: argparse.Namespace,
) -> int | None:  # fmt: skip
    """Bytes at the peak of one call, beside its inputs; of a small one first.

    Args:
        method: Method whose clip is drawn.
        tokens: Number of tokens in the call.
        blocks: Masks and tokens of a block; None for dense attention.
        density: Share of the blocks, which are drawn: memory doesn't ask which they are.
        options: Options of the command line.
    """
    for count in (min(CLIPS), tokens):
        given = _drawn(method, CLIPS[count], options)
        work: Any = lambda given=given: _dense(*given)  # noqa: E731
        if blocks is not None:
            masks, size = blocks
            number = count // size
            keep = torch.rand(masks, number, number) < density
            part = Blocks(keep | torch.eye(number, dtype=torch.bool), size, count)
            order = torch.randperm(count)[None] if method == "paro" else None
            work = _work(given, part, order, "gather")
        if count == min(CLIPS):
            work()
    return peak_memory(work, options.device)


@torch.no_grad()
def prompts(length: int, options: argparse.Namespace) -> Any:
    """A table of one prompt's length."""
    shape = _llava.SHAPES[options.shape]
    shape = _llava.Shape(**{**vars(shape), "layers": options.layers})
    ids = torch.randint(3, 99, (1, length), generator=torch.Generator().manual_seed(0))
    model: Any = _llava.build(shape, shape.vocab - 1, options)
    ids = ids.to(model.device)
    table = make_table(
        f"A prompt of {length} tokens, {options.layers} layers of hidden size {shape.hidden}: "
        f"seconds and ratio to the unmodified model\n{describe(options)}",
        ["", "seconds", "ratio", "report", ""],
    )
    works = {"unmodified": lambda: seconds(lambda: _read(model, ids), options)}
    reports: dict[str, Any] = {}
    for theta in options.theta:
        name = f"anchor, theta {theta:g}"

        def attached(theta: float = theta, name: str = name) -> float:
            with regaze.attach(model, AnchorAttention(theta=theta)) as run:
                _read(model, ids)  # The first prompt is checked, timed and measured.
                taken = seconds(lambda: _read(model, ids), options)
                reports[name] = run.report().interventions[0]
            return taken

        works[name] = attached
    times = side_by_side(works, options.rounds, warm_up=1)
    for name, found in times.items():
        ratio = Ratio.of(found, times["unmodified"])
        one = reports.get(name)
        told = "" if one is None else f"error {one.effect:.4f}, {one.note}"
        judged = ""
        if name != "unmodified" and ratio is not None:
            judged = "ok" if ratio.median < 1 else "target 1.0"
        middle = f"{sorted(found)[len(found) // 2]:.3f}"
        table.add_row(name, middle, str(ratio), told, judged)
    return table


def _read(model: Any, ids: Tensor) -> None:
    model(input_ids=ids, logits_to_keep=1, use_cache=True)


if __name__ == "__main__":
    main()
