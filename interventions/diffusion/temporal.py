"""Calls of temporal attention, whose batch holds every place of every row's clip."""

from __future__ import annotations

from regaze.hooks.diffusion.layouts import Layout
from regaze.hooks.diffusion.sites import Site


def places(
    method: str, site: Site, count: int, rows: int, frames: int, layout: Layout
) -> tuple[int, int]:
    """The grid of places that a call's batch holds, of each row.

    Args:
        method: Name of the method, for the message.
        site: The attention module.
        count: Samples of the call: places of all rows.
        rows: Rows of the denoiser's batch.
        frames: Tokens of the call.
        layout: The pass's layout.

    Raises:
        RuntimeError: It holds other things than every place of every row, with all frames.
    """
    grid = layout.grid(site, count // rows) if count % rows == 0 else None
    if grid is None or (layout.frames and frames != layout.frames):
        raise RuntimeError(
            f"{method}: {site.name} attends over {frames} frames of {count} places, and the clip "
            f"has {layout.frames} frames in {rows} rows: windows or chunks aren't known here; "
            "switch them off"
        )
    return grid[-2], grid[-1]
