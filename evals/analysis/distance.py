"""Attention distance: how far over the picture a patch's row looks.

For patch i and head h, with a the attention weights and d the distance between patch centres:

    distance = sum_j a_ij d(i, j) / sum_j a_ij      over patches j of the same picture

averaged over all patches of all pictures. Dosovitskiy et al., arXiv 2010.11929, section 4.5;
Raghu et al., arXiv 2108.08810, section 3 (both in pixels). What rows give to a class token, to text
or to other pictures is left out by the division. In patches, and as a share of the diagonal: 1 is
from one corner patch to the opposite one. A causal tower's rows see only patches before them, so
the distance under equal attention to all that is seen stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.evals.analysis.asked import Batch, Subject
from regaze.evals.analysis.maps import HeadMap, Means
from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.edits import Edit
from regaze.hooks.grids import grid_size
from regaze.hooks.passes import Columns, Pass, Picture, RowPlan
from regaze.hooks.text_capture import image_grid
from regaze.hooks.tokens import TokenMap
from regaze.hooks.vision import vision_seat


@dataclass(frozen=True)
class Places:
    """The places of columns in pictures.

    Attributes:
        at: "B K 2" row and column of the patch.
        picture: "B K" number of the picture within its sample; -1: no patch of a grid.
        diagonal: "B K" distance between opposite corner patches of that picture.
    """

    at: Tensor
    picture: Tensor
    diagonal: Tensor

    def cut(self, samples: Sequence[int], start: int, count: int) -> Places:
        """Some columns of some samples; beyond the end there are no patches."""
        spare = max(0, start + count - self.picture.shape[1])
        rows = list(samples)
        at = torch.nn.functional.pad(self.at[rows], (0, 0, 0, spare))
        picture = torch.nn.functional.pad(self.picture[rows], (0, spare), value=-1)
        diagonal = torch.nn.functional.pad(self.diagonal[rows], (0, spare), value=1.0)
        cut = slice(start, start + count)
        return Places(at[:, cut], picture[:, cut], diagonal[:, cut])


def places(grids: Sequence[Sequence[Tensor]], length: int) -> Places:
    """Lay out patches.

    Args:
        grids: The grids "rows cols" of columns of each sample's pictures.
        length: Columns K.

    Raises:
        ValueError: A grid of one patch, which has no distances.
    """
    at = torch.zeros(len(grids), length, 2)
    picture = torch.full((len(grids), length), -1)
    diagonal = torch.ones(len(grids), length)
    for sample, pictures in enumerate(grids):
        for number, grid in enumerate(pictures):
            rows, cols = grid.shape
            if grid.numel() < 2:
                raise ValueError("a picture of one patch has no attention distance")
            flat = grid.flatten()
            at[sample, flat] = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).float()
            picture[sample, flat] = number
            diagonal[sample, flat] = ((rows - 1) ** 2 + (cols - 1) ** 2) ** 0.5
    return Places(at, picture, diagonal)


def distances(weights: Tensor, rows: Tensor, where: Places) -> tuple[Tensor, Tensor]:
    """Mean distance of each row's attention over its own picture.

    Args:
        weights: "B H R K".
        rows: "B R" columns that the rows are.
        where: Positions of the K columns.

    Returns:
        "B H R" in patches and as shares of the diagonal; NaN for rows that are no patch or give
        their picture nothing.
    """
    number = where.picture.gather(1, rows)  # "B R"
    at = where.at.gather(1, rows[..., None].expand(*rows.shape, 2))
    same = (number[:, :, None] == where.picture[:, None]) & (number[:, :, None] >= 0)
    apart = torch.cdist(at, where.at, compute_mode="donot_use_mm_for_euclid_dist")
    total = torch.einsum("bhrk,brk->bhr", weights, same * apart)
    mass = torch.einsum("bhrk,brk->bhr", weights, same.to(weights))
    found = torch.where(mass > 0, total / mass, torch.nan)
    return found, found / where.diagonal.gather(1, rows)[:, None]


class _Distances:
    """Means of what rows say, and of equal attention."""

    def __init__(self) -> None:
        self.patches, self.shares, self.equal = Means(), Means(), Means()

    def add(self, layer: int, logits: Tensor, plan: RowPlan, valid: Tensor, where: Places) -> None:
        """Add a piece's rows.

        Args:
            layer: Layer index.
            logits: "B H R K".
            plan: The rows, counted from the first of the keys.
            valid: "B R", those that count.
            where: Positions of the keys.
        """
        on = Places(*(x.to(logits.device) for x in (where.at, where.picture, where.diagonal)))
        rows = plan.rows
        patches, shares = distances(logits.softmax(-1), rows, on)
        seen = (logits[:, :1] > -torch.inf).float()
        _, equal = distances(seen, rows, on)
        for means, values in ((self.patches, patches), (self.shares, shares), (self.equal, equal)):
            means.add(layer, values.masked_fill(~valid[:, None], torch.nan).transpose(1, 2))

    def maps(self, n_layers: int, n_heads: int, tower: Literal["text", "vision"]) -> list[HeadMap]:
        """Both maps."""
        name = "distance" if tower == "text" else "vision_distance"
        title = "Attention distance" + (" in the vision tower" if tower == "vision" else "")
        grid = "the vision tower's own patches" if tower == "vision" else "image columns"
        about = (
            f"Mean distance over the picture from a patch's row to where it looks, on the grid of "
            f"{grid} (arXiv 2108.08810), weights on the row's own picture made to sum to 1; mean "
            "over patch rows."
        )
        equal = self.equal.table(n_layers, 1).nanmean()
        notes = {"share of the diagonal under equal attention": float(equal)}
        patches, shares = (m.table(n_layers, n_heads) for m in (self.patches, self.shares))
        return [
            HeadMap(name, title, "patches", patches, tower, about),
            HeadMap(f"{name}_share", title, "share of the diagonal", shares, tower, about, notes),
        ]


class TextDistance:
    """Attention distance of image rows in the text tower."""

    name = "distance"

    def __init__(self, subject: Subject) -> None:
        host = subject.host
        if not (host.has_images and host.image_columns):
            raise ValueError(f"{host.model_type} has no image columns whose rows could look around")
        if host.family.grid == "unknown":
            raise ValueError(
                f"how the image columns of {host.model_type} lie over the picture isn't known, so "
                "they have no distances"
            )
        self._subject, self._host = subject, host
        self._found = _Distances()

    def add(self, batch: Batch) -> None:
        """Run a batch, and look at its image rows."""
        layers = [site.layer for site in self._host.sites]
        config: Any = self._subject.model.config
        reader = _ImageRows(layers, self._found, config, batch.inputs)
        with Capturing(seat_of(self._host), reader, reader):
            self._subject.read(batch)

    def maps(self) -> list[HeadMap]:
        """In patches, and as shares of the diagonal."""
        return self._found.maps(self._host.n_layers, self._host.n_heads, "text")


class VisionDistance:
    """Attention distance in the vision tower."""

    name = "vision_distance"

    def __init__(self, subject: Subject) -> None:
        self._subject, self._eye = subject, subject.host.eye
        self._found = _Distances()

    def add(self, batch: Batch) -> None:
        """Run a batch, and look at the rows of its pictures' patches."""
        reader = _PatchRows(range(self._eye.n_layers), self._found)
        with Capturing(vision_seat(self._subject.host), reader, reader):
            self._subject.read(batch)

    def maps(self) -> list[HeadMap]:
        """In patches, and as shares of the diagonal."""
        return self._found.maps(self._eye.n_layers, self._eye.n_heads, "vision")


class _ImageRows(Edit):
    rows = "image"
    reads_only = True

    def __init__(self, layers: Sequence[int], found: _Distances, config: Any, inputs: Any) -> None:
        super().__init__(layers)
        self.found, self.config, self.inputs = found, config, inputs
        self.where: Places | None = None

    def begin(self, pass_: Pass) -> None:
        tokens = pass_.tokens
        self.where = places(_grids(self.config, tokens, self.inputs), tokens.length)

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        if self.where is None or columns.offset:
            raise RuntimeError("rows of an image were shown out of their prompt")
        acts = plan.acts["image"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        where = self.where.cut(range(logits.shape[0]), 0, logits.shape[-1])
        self.found.add(layer, logits, plan, valid, where)


def _grids(config: Any, tokens: TokenMap, inputs: Any) -> list[list[Tensor]]:
    """Each sample's pictures as grids of prompt columns.

    Raises:
        ValueError: One can't be known.
    """
    found: list[list[Tensor]] = []
    number = 0
    for sample in range(tokens.batch):
        found.append([])
        for image in range(tokens.n_images(sample)):
            grid = image_grid(config, tokens, sample, image, grid_size(inputs, number))
            if grid is None:
                raise ValueError(
                    f"the patch grid of an image of {len(tokens.image_columns(sample, image))} "
                    f"columns of this {config.model_type} can't be known, so its patches have no "
                    "distances"
                )
            found[-1].append(grid)
            number += 1
    return found


class _PatchRows(Edit):
    tower = "vision"
    rows = "all"
    reads_only = True

    def __init__(self, layers: Sequence[int], found: _Distances) -> None:
        super().__init__(layers)
        self.found = found
        self.where: Places | None = None

    def begin(self, pass_: Pass) -> None:
        pictures: tuple[Picture, ...] = pass_.pictures
        length = max(one.length for one in pictures)
        self.where = places([[one.grid] for one in pictures], length)

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        if self.where is None:
            raise RuntimeError("rows of a picture were shown out of their pass")
        acts = plan.acts["all"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        where = self.where.cut(columns.pictures, columns.offset, logits.shape[-1])
        self.found.add(layer, logits, plan, valid, where)
