"""Attention in which regions of a picture read texts of their own, without a mask of all on all.

Every token of the picture is in some of R regions. Rows in the same regions may see the same
columns, so each such group is one call of the stock kernel on those columns: exact, and cheaper
than attention of all on all. With texts of L tokens each, in the order of the regions,

    text r sees itself and the picture's tokens in r
    the picture's tokens see the texts of their regions, and tokens that share a region
    tokens in no region see each other

which is the mask of instantX-research/Regional-Prompting-FLUX@6011179. Parts are "3 B H N D":
queries, keys and values of some tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[..., Tensor]


class Group(NamedTuple):
    """Tokens of the picture in the same regions.

    Attributes:
        rows: The tokens' places.
        regions: The regions that they are in.
        mates: Tokens of the picture that they may see.
    """

    rows: Tensor
    regions: tuple[int, ...]
    mates: Tensor


def on_grid(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """The tokens of a grid that lie in a mask "H W": those whose middle does, "N".

    Args:
        mask: Numbers; what isn't zero lies inside.
        grid: (rows, columns) or (frames, rows, columns); all frames alike.
    """
    *frames, rows, columns = grid
    sized = F.interpolate(mask[None, None].float(), (rows, columns), mode="nearest-exact")
    return (sized[0, 0] != 0).flatten().repeat(frames[0] if frames else 1)


RULES = ("all", "first", "last")
RULES_TEXT = (
    'say what tokens in both read: overlap="all" for both prompts, "first" or "last" for one'
)
"""Rules for the prompts that tokens in several regions read."""


def ruled(inside: Tensor, overlap: str | None) -> Tensor:
    """The tokens of each region, "R N", once a rule says whose those in several are.

    Raises:
        ValueError: There is no rule, and some are in several.
    """
    if overlap == "all":
        return inside
    order = inside if overlap == "first" else inside.flip(0)
    alone = order & (order.cumsum(0) == 1)
    if overlap is None and bool((alone != order).any()):
        raise ValueError(f"regions: some overlap on a grid of the model's tokens; {RULES_TEXT}")
    return alone if overlap == "first" else alone.flip(0)


def groups(inside: Tensor) -> list[Group]:
    """The groups of tokens in the same regions.

    Args:
        inside: "R N" bool, which tokens are in which region.
    """
    patterns, which = torch.unique(inside, dim=1, return_inverse=True)
    found = []
    for number, pattern in enumerate(patterns.unbind(1)):
        mates = inside[pattern].any(0) if pattern.any() else ~inside.any(0)
        regions = tuple(pattern.nonzero().flatten().tolist())
        rows = (which == number).nonzero().flatten()
        found.append(Group(rows, regions, mates.nonzero().flatten()))
    return found


def may_see(inside: Tensor, length: int) -> Tensor:
    """The same as a mask "R L + N, R L + N", texts first: what groups are held against."""
    regions, tokens = inside.shape
    owner = torch.eye(regions, dtype=torch.bool, device="cpu").repeat_interleave(length, 0)
    nowhere = ~inside.any(0)
    bits = torch.cat([owner, inside.T.cpu()])
    shared = (bits[:, None] & bits[None]).any(-1)
    none = torch.cat([torch.zeros(len(owner), dtype=torch.bool, device="cpu"), nowhere.cpu()])
    return shared | (none[:, None] & none[None])


def joint(
    kernel: Kernel, picture: Tensor, texts: Tensor, found: Sequence[Group], regions: int
) -> tuple[Tensor, Tensor]:
    """Joint attention of the picture and of the regions' texts.

    Args:
        kernel: The call's.
        picture: "3 B H N D".
        texts: "3 B H RL D".
        found: The picture's groups.
        regions: R.

    Returns:
        The picture's rows "B H N D", and the texts' "B H RL D".
    """
    of = texts.unflatten(3, (regions, -1))
    image_out, text_out = torch.empty_like(picture[0]), torch.empty_like(of[0])
    for rows, where, mates in found:
        columns = torch.cat([picture[1:, :, :, mates], of[1:, :, :, list(where)].flatten(3, 4)], 3)
        image_out[:, :, rows] = kernel(picture[0][:, :, rows], *columns)
    for region in range(regions):
        own = [rows for rows, where, _ in found if region in where]
        inside = torch.cat(own) if own else torch.zeros(0, dtype=torch.long, device=texts.device)
        columns = torch.cat([of[1:, :, :, region], picture[1:, :, :, inside]], 3)
        text_out[:, :, region] = kernel(of[0][:, :, region], *columns)
    return image_out, text_out.flatten(2, 3)


def cross(
    kernel: Kernel, query: Tensor, texts: Tensor, found: Sequence[Group], base: Tensor
) -> Tensor:
    """Attention of the picture to its regions' texts; tokens in no region get the base's.

    Args:
        kernel: The call's.
        query: "B H N D".
        texts: "2 B H R L D", keys and values.
        found: The picture's groups.
        base: "B H N D", attention to the base prompt.
    """
    output = base.clone()
    for rows, where, _ in found:
        if where:
            columns = texts[:, :, :, list(where)].flatten(3, 4)
            output[:, :, rows] = kernel(query[:, :, rows], *columns)
    return output
