"""An analysis's pictures, its table, and a page of both."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from regaze.evals.analysis import drawing
from regaze.evals.analysis.analyse import Analysis
from regaze.evals.analysis.maps import HeadMap, Pairs, union
from regaze.evals.runs import files

PAGE, TABLE, PICTURE = "heads.html", "heads.csv", "heads.png"


def spec(heads: Pairs) -> str:
    """A method for ``--with`` that ablates these heads; other methods take the same ``heads=``."""
    return f"headablate:heads=[{','.join(f'[{layer},{head}]' for layer, head in heads)}]"


def write(out: Path, analysis: Analysis, chosen: Pairs, by: str) -> None:
    """Write ``heads.csv``, ``heads.png``, a picture of each map, and ``heads.html``.

    Args:
        out: The directory.
        analysis: The measured statistics.
        chosen: The best heads.
        by: The measure by which they are the best.

    Raises:
        OSError: A file can't be written.
    """
    files.write_text(out / TABLE, table(analysis.maps))
    for one in analysis.maps:
        drawing.save(out / f"{one.name}.png", [one], chosen)
    # One unit of each is enough for an overview.
    overview = [one for one in analysis.maps if not one.name.endswith(("_share", "_error"))]
    if overview:
        drawing.save(out / PICTURE, overview, chosen)
    environment = Environment(
        loader=PackageLoader("regaze.evals.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {one.name: _uri(out / f"{one.name}.png") for one in analysis.maps}
    text = [one for one in analysis.maps if one.tower == "text"]
    rows = [(head, [float(one.values[head]) for one in text]) for head in chosen]
    page = environment.get_template("heads.html.j2").render(
        analysis=analysis,
        pictures=pictures,
        columns=text,
        rows=rows,
        by=by,
        spec=spec(chosen) if chosen else None,
    )
    files.write_text(out / PAGE, page)


def table(maps: Sequence[HeadMap]) -> str:
    """All maps as CSV: a row for each head, a column for each measure; empty: not measured."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(["tower", "layer", "head", *(one.name for one in maps)])
    for tower in ("text", "vision"):
        for layer, head in union(maps, tower):
            found = [
                float(one.values[layer, head]) if one.tower == tower else float("nan")
                for one in maps
            ]
            cells = ["" if v != v else f"{v:.6g}" for v in found]
            writer.writerow([tower, layer, head, *cells])
    return made.getvalue()


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
