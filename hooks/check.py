"""The row check: what the kernel did is what regaze would recompute.

An edited row replaces the kernel's. That is exact only if, without the edit, it would have been
the kernel's: no bias, sink, cap, window or selection of columns that isn't known here. So the first
prompt and the first decode step of an attachment show it, in each edited layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.hooks.attention import gather_rows
from regaze.hooks.dispatch import Call
from regaze.hooks.precision import product_dtype

TOLERANCE = {
    torch.float64: 1e-4,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Largest difference of a head's rows, as a share of the size of the kernel's output.

Half precision rounds the kernel's weights. Float32 counts as what its products may be rounded to.
"""


@torch.no_grad()
def check_rows(
    call: Call, layer: int, stock: Tensor, plain: Tensor, rows: Tensor, valid: Tensor
) -> None:
    """Compare recomputed rows without edits with the kernel's.

    Args:
        call: The attention call.
        layer: Layer index.
        stock: "B Q H D", what the kernel gave.
        plain: "B R H D", what was recomputed.
        rows: "B R" row indices.
        valid: "B R" bool: rows that count.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    difference = row_difference(stock, plain, rows, valid)
    dtype = product_dtype(stock.dtype, stock.device)
    most = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    if not difference <= most:
        said, rounded = (str(one).removeprefix("torch.") for one in (stock.dtype, dtype))
        said += "" if said == rounded else f", whose products may be rounded to {rounded}"
        raise RuntimeError(
            f"layer {layer} ({type(call.module).__name__}): its attention isn't what regaze "
            f"recomputes of the same rows (they differ by {difference:.2g} of the output's size, "
            f"tolerance {most:g} in {said}), so it adds a bias, a sink, a cap, a scale, or hides "
            "columns in a way that isn't known here, and an edit wouldn't be exact: leave this "
            "layer out, or tell the authors of regaze"
        )


def row_difference(stock: Tensor, plain: Tensor, rows: Tensor, valid: Tensor) -> float:
    """Largest relative difference of a head's rows; see `check_rows`."""
    there = gather_rows(stock.transpose(1, 2), rows).transpose(1, 2).float()
    counted = valid[:, :, None]
    off = (plain.float() - there).square().sum(-1).masked_fill(~counted, 0)
    size = there.square().sum(-1).masked_fill(~counted, 0)
    n = counted.sum().clamp(min=1)
    # Per head; one whose output is next to nothing is measured by the others.
    of_head = size.sum((0, 1)) / n
    scale = torch.maximum(of_head, 0.01 * of_head.mean()).clamp(min=1e-30)
    return float((off / scale).amax().sqrt())
