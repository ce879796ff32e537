"""PAROAttention's calibration: which order suits each head, and which blocks it then needs.

Two surveys of a few prompts. The first measures each head's maps in every order (arXiv 2506.16054,
section 4.1): the share of blocks of which nearly all weights are small, and how uneven blocks are,
the mean of largest over mean weight. With both divided by their sums over the orders, the order of
least ``alpha (1 - small) + (1 - alpha) uneven`` is chosen. The paper prints the share of small
blocks where its complement is meant: more small blocks are better, and the least is taken. It
doesn't say its alpha; 1 here, because nothing but sparsity comes of it. The second survey sums each
block's weights in the order chosen, by step (section 4.2); the largest sums are kept, over the
heads of a layer together, and in each row of blocks at least one.

Maps are computed a few blocks of rows at a time, and never held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Work
from regaze.interventions.diffusion.paro_plan import ORDERS, group_of, permutation
from regaze.interventions.diffusion.sparse import by_heads, clip_of

_PIECE = 2**24
"""The most weights that exist at once."""


@dataclass(frozen=True)
class Rule:
    """The rule by which a calibration chooses.

    Attributes:
        density: Share of the blocks that are kept; the paper's are 0.5, 0.3 and 0.2.
        size: Tokens of a block, the paper's 64.
        small: Below which a weight is small, the paper's example.
        share: The share of a block's weights that must be small for the block to be.
        alpha: Weight of sparsity against evenness.
        orders: The orders to try.
    """

    density: float = 0.5
    size: int = 64
    small: float = 1e-3
    share: float = 0.9
    alpha: float = 1.0
    orders: tuple[str, ...] = ORDERS

    def __post_init__(self) -> None:
        for name in ("density", "share", "alpha"):
            check_number("paro", name, getattr(self, name), low=0, high=1)
        if not self.density:
            raise ValueError("paro: density 0 keeps no block")
        check_number("paro", "small", self.small, low=0)
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"paro: size must be a number of tokens, got {self.size!r}")
        if not self.orders or set(self.orders) - set(ORDERS):
            raise ValueError(f"paro: orders must be some of {', '.join(ORDERS)}")


@dataclass(frozen=True)
class Survey(Work):
    """Looks at the maps of a pipeline's own branches.

    Attributes:
        rule: The rule of the choice.
        chosen: By layer: each head's order, in the second survey; None in the first.
        grids: Sizes of the clips that were seen.
        steps: Numbers of steps of the runs that were seen.
        scores: First survey, by layer, of each call: share of small blocks and unevenness, as
            "orders 2 heads".
        sums: Second survey, by layer and group: "heads R R" sums of a block's weights.
        counts: Number of maps behind these.
    """

    counted: ClassVar[bool] = False

    rule: Rule = Rule()
    chosen: Mapping[str, Sequence[str]] | None = None
    grids: set[tuple[int, int, int]] = field(default_factory=set, compare=False)
    steps: set[int] = field(default_factory=set, compare=False)
    scores: dict[str, list[Tensor]] = field(
        default_factory=lambda: defaultdict(list), compare=False
    )
    sums: dict[tuple[str, int], Tensor] = field(default_factory=dict, compare=False)
    counts: dict[tuple[str, int], int] = field(
        default_factory=lambda: defaultdict(int), compare=False
    )

    def attend(self, call: Call) -> Tensor:
        """Look at a call's map; its output stays."""
        running = None if call.pass_ is None else call.pass_.running
        if running is None or running.step is None:
            raise ValueError("paro: a calibration needs a pipeline that counts its steps")
        step, steps = running.step
        image = call.image()
        grid = picture_of(call, image)
        self.grids.add(grid)
        self.steps.add(steps)
        if grid[0] * grid[1] * grid[2] < self.rule.size:
            raise ValueError(
                f"paro: the {image.stop - image.start} tokens of {call.site.name} don't fill a "
                f"block of {self.rule.size}"
            )
        with torch.no_grad():
            if self.chosen is None:
                found = [
                    _measured(call, image, [permutation(grid, order)], self.rule)[:2]
                    for order in self.rule.orders
                ]
                self.scores[call.site.name].append(
                    torch.stack([torch.stack(one) for one in found]).cpu()
                )
            else:
                orders = [permutation(grid, one) for one in self.chosen[call.site.name]]
                sums = _measured(call, image, orders, self.rule)[2].cpu()
                key = call.site.name, group_of(step, steps)
                self.sums[key] = self.sums[key] + sums if key in self.sums else sums
                self.counts[key] += len(call.query)
        return call.output


def picture_of(call: Call, image: slice) -> tuple[int, int, int]:
    """Frames, rows and columns of a call's picture or clip.

    Raises:
        ValueError: They aren't known.
    """
    grid = call.layout.grid(call.site, image.stop - image.start)
    if grid is not None and len(grid) == 2:
        return 1, grid[0], grid[1]
    return clip_of("paro", call, image)


def best_orders(scores: Tensor, rule: Rule) -> list[str]:
    """Each head's order.

    Args:
        scores: "orders 2 heads", means of what the first survey saw.
        rule: The rule of the choice.
    """
    dense, uneven = 1 - scores[:, 0], scores[:, 1]
    shares = [x / x.sum(0).clamp(min=1e-12) for x in (dense, uneven)]
    badness = rule.alpha * shares[0] + (1 - rule.alpha) * shares[1]
    # The first of those that are equal: the order as it is, where nothing speaks for another.
    return [rule.orders[int(number)] for number in badness.argmin(0)]


def best_blocks(sums: Tensor, density: float) -> Tensor:
    """The blocks that are kept, bool like ``sums``.

    Args:
        sums: "heads R R" sums of the weights of blocks, of one layer and group.
        density: Share that is kept, over all heads together.
    """
    count = max(1, round(density * sums.numel()))
    largest = sums.flatten().argsort(descending=True, stable=True)[:count]
    keep = torch.zeros(sums.numel(), dtype=torch.bool, device="cpu")
    keep[largest] = True
    keep = keep.view(sums.shape)
    return keep.scatter(-1, sums.argmax(-1, keepdim=True), True)


def _measured(
    call: Call, image: slice, orders: Sequence[Tensor], rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Share of small blocks and unevenness, "H", and sums of blocks, "H R R", over the samples."""
    heads = call.query.shape[1]
    small, uneven, sums = [], [], []
    for head in range(heads):
        order = orders[head % len(orders)].to(call.query.device)
        rows = [x for x in _rows(call, image, head, order, rule)]
        block = torch.cat([one[0] for one in rows], 1)
        small.append(torch.cat([one[1] for one in rows], 1).mean())
        uneven.append(torch.cat([one[2] for one in rows], 1).mean())
        sums.append(block.sum(0))
    return torch.stack(small), torch.stack(uneven), torch.stack(sums)


def _rows(
    call: Call, image: slice, head: int, order: Tensor, rule: Rule
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Sum, smallness and unevenness of each block of some rows of a head's map, "B r R"."""
    size, first = rule.size, image.start
    number = len(order) // size
    group = head // (call.query.shape[1] // call.key.shape[1])
    query = call.query[:, head, image].float()[:, order]
    key = call.key[:, group].float()
    bias = _bias(call, head)
    # All columns count in the softmax, those of the picture in their order first.
    columns = torch.cat([
        first + order, torch.arange(first, device=order.device),
        torch.arange(image.stop, key.shape[1], device=order.device),
    ])  # fmt: skip
    key = key[:, columns]
    step = max(1, _PIECE // (len(query) * size * key.shape[1])) * size
    for start in range(0, number * size, step):
        rows = slice(start, min(start + step, number * size))
        logits = query[:, rows] @ key.transpose(1, 2) * call.scale
        if bias is not None:
            mine = bias[..., columns]
            logits = logits + (mine[:, first + order[rows]] if mine.shape[1] > 1 else mine)
        weights = logits.softmax(-1)[..., : number * size]
        block = weights.unflatten(2, (number, size)).unflatten(1, (-1, size)).transpose(2, 3)
        flat = block.flatten(3)
        total = flat.sum(-1)
        less = (flat < rule.small).float().mean(-1) >= rule.share
        yield total, less.float(), flat.amax(-1) * size**2 / total.clamp(min=1e-30)


def _bias(call: Call, head: int) -> Tensor | None:
    if call.mask is None:
        return None
    mask = by_heads(call.mask)
    mask = mask[:, head if mask.shape[1] > 1 else 0]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device, dtype=torch.float32).masked_fill(
            ~mask, -torch.inf
        )
    return mask.float()


@dataclass(frozen=True)
class Surveying:
    """A survey as `regaze.attach` takes it.

    Attributes:
        survey: The survey.
        layers: Paths of the layers to look at; None: all of self- and joint attention.
    """

    survey: Survey
    layers: tuple[str, ...] | None = None
    label: str = "paro survey"
    acts_on: str = "diffusers pipelines"

    def resolve(self, host: Any) -> Surveying:
        """Itself."""
        return self

    def bind(self, host: Any) -> Survey:
        """The survey, in the model's layers."""
        from dataclasses import replace

        found: tuple[Site, ...] = tuple(
            site for site in host.layers if self.layers is None or site.name in self.layers
        )
        return replace(self.survey, sites=found)
