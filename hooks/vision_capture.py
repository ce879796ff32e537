"""Captures of a vision tower's attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.edits import Edit
from regaze.hooks.passes import Columns, Pass, Picture, RowPlan, Rows


@dataclass(frozen=True)
class PictureRows:
    """Attention weights of the captured rows of one picture in one layer.

    Attributes:
        layer: Layer index.
        picture: Number of the picture in the tower's run.
        rows: "R" which rows of the picture.
        weights: "H R N" float32 on the CPU, over all columns of the picture; 0 outside of the
            window where a layer attends in windows. With ``heads="mean"`` H is 1.
    """

    layer: int
    picture: int
    rows: Tensor
    weights: Tensor


class VisionCapture:
    """Rows captured of the vision tower's latest run.

    Attributes:
        rows: Rows to capture.
        heads: Heads to capture; None: all.
        pictures: Pictures that the tower was given. Tiles and frames are pictures of their own.
    """

    def __init__(self, rows: Rows, heads: list[int] | Literal["mean"] | None) -> None:
        self.rows = rows
        self.heads = heads
        self.pictures: tuple[Picture, ...] = ()
        self._seen: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    @property
    def captured(self) -> list[PictureRows]:
        """The rows captured: by layer as they ran, then by picture."""
        found = []
        for (layer, picture), parts in self._seen.items():
            rows = torch.cat([rows for rows, _ in parts])
            weights = torch.cat([weights for _, weights in parts], 1)
            found.append(PictureRows(layer, picture, rows, weights))
        return found

    def mass(self, picture: int = 0) -> Tensor:
        """Mean attention that the captured rows give each column of a picture: "N".

        Averaged over layers, heads and rows; sums to 1.

        Raises:
            ValueError: Nothing was captured of this picture.
        """
        picked = [one.weights.flatten(0, 1) for one in self.captured if one.picture == picture]
        if not picked:
            raise ValueError(
                f"nothing was captured of picture {picture}: the vision tower's latest run, if "
                f"there was one, had {len(self.pictures)} pictures"
            )
        return torch.cat(picked).mean(0)

    def heat(self, picture: int = 0) -> NDArray[np.float32]:
        """`mass` on the patches, as they lie over the picture: "rows cols".

        Raises:
            ValueError: Nothing was captured of this picture.
        """
        mass = self.mass(picture)
        return mass[self.pictures[picture].grid].numpy()

    def begin(self, pictures: tuple[Picture, ...]) -> dict[tuple[int, int], list[Part]]:
        """Take up another run; return where what is seen of it goes."""
        self.pictures, self._seen = pictures, {}
        return self._seen


Part = tuple[Tensor, Tensor]
"""Rows "R" of a picture and their weights "H R N"."""


class VisionCaptureEdit(Edit):
    """Hands the rows of each run to a `VisionCapture`."""

    tower = "vision"
    reads_only = True

    def __init__(self, layers: Iterable[int], capture: VisionCapture) -> None:
        super().__init__(frozenset(layers))
        self.rows: Rows = capture.rows
        self.capture = capture
        self._seen: dict[tuple[int, int], list[Part]] = {}

    def begin(self, pass_: Pass) -> None:
        """Take up another run."""
        self._pictures = pass_.pictures
        self._seen = self.capture.begin(pass_.pictures)

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        """Keep the rows' weights, picture by picture."""
        acts = plan.acts[self.rows]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        weights = logits.softmax(-1)
        if self.capture.heads == "mean":
            weights = weights.mean(1, keepdim=True)
        elif self.capture.heads is not None:
            weights = weights[:, self.capture.heads]
        weights, valid, rows = weights.detach().cpu(), valid.cpu(), plan.rows.cpu()
        for index, number in enumerate(columns.pictures):
            here = weights[index][:, valid[index]]
            after = self._pictures[number].length - columns.offset - here.shape[-1]
            here = torch.nn.functional.pad(here, (columns.offset, after))
            part = rows[index][valid[index]] + columns.offset, here
            self._seen.setdefault((layer, number), []).append(part)
