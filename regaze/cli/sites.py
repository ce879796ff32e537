"""sites: the attention layers of a pipeline."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich import box

from regaze.cli.options import Json, spread
from regaze.cli.pipelines import Source
from regaze.cli.terminal import out
from regaze.evals.reports.whole_words import WholeWords

_KINDS = {
    "self": "image",
    "joint": "image and text",
    "cross": "text",
    "temporal": "other frames",
    "linear": "sums, not places",
    "other": "not from the image",
}


@spread
def sites(
    source: Source,
    as_json: Json = False,
) -> None:
    """List the attention layers of a pipeline, and how methods and head lists name them."""
    from regaze.hooks.diffusion import native_grid
    from regaze.hooks.diffusion import sites as find_sites
    from regaze.hooks.diffusion.host import find_denoisers

    loaded = source.load()
    found = find_sites(loaded.pipeline)
    denoiser = next(iter((find_denoisers(loaded.pipeline) or {}).values()))
    grids = [native_grid(denoiser, site) for site in found]
    if as_json:
        listed = [{**asdict(site), "grid": cells} for site, cells in zip(found, grids, strict=True)]
        typer.echo(json.dumps(listed))
        return
    table = WholeWords(
        "layer", "name", "attends to", "heads", "tokens", "grid", box=box.SIMPLE_HEAD
    )
    for site, cells in zip(found, grids, strict=True):
        number = "" if site.layer is None else f"L{site.layer}"
        shown = "" if cells is None else f"{cells[0]} x {cells[1]}"
        table.add_row(number, site.name, _KINDS[site.kind], str(site.heads), site.order, shown)
    out.print(table)
