"""Every method in three worlds: ``python -m regaze.evals.columns`` (or ``make results-smol``).

Asks POPE of ``smol`` with every method as it comes, on scenes of its world and, where they are
given, on photographs, and puts the changes beside those of the drawn scenes in ``results.json``.
Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regaze.evals.asking.every import every_method
from regaze.evals.asking.models import Loaded, load
from regaze.evals.benchmarks.source import Source
from regaze.evals.benchmarks.worlds import SMOL
from regaze.evals.reports.columns_page import page
from regaze.evals.results import table_of
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import bars
from regaze.evals.sandbox.smol.photographs import photograph_questions, read_photographs
from regaze.evals.study import prepare, study

_BATCH = 24


def columns(
    loaded: Loaded, out: Path, scenes: int, photographs: Path | None, limit: int
) -> dict[str, Any]:
    """Run everything that isn't on the disk yet.

    Args:
        loaded: The model.
        out: Where runs lie.
        scenes: Of its world's prior-free test split, six questions each.
        photographs: COCO's folder, if there is one.
        limit: Questions about photographs, evenly of POPE's three kinds.

    Returns:
        What the page is made of, JSON-able.

    Raises:
        ValueError: The directory holds runs of other sizes, or of another model.
        OSError: It can't be written.
    """
    methods = every_method(loaded)
    conditions = [Condition((spec,)) for spec in methods.specs]
    split = next(iter(SMOL.tests))
    sources: dict[str, tuple[Source, int | None]] = {
        "smol": (Source("pope", split=split, n_images=scenes), None)
    }
    if photographs is not None:
        asked = out / "photographs.jsonl"
        records = photograph_questions(read_photographs(photographs)[1])
        files.write_text(asked, "".join(f"{json.dumps(record)}\n" for record in records))
        source = Source("pope", data=(str(asked),), images=str(photographs))
        sources["photographs"] = source, limit
    tables = {}
    with bars() as follow:
        for name, (source, most) in sources.items():
            job = prepare(source, out / name, most)
            (found,) = study(
                [job], loaded, conditions, progress=follow, batch_size=_BATCH, limit=most
            )
            tables[name] = table_of(found.scores[0])
    return {
        "model": Path(str(loaded.identity["name"])).name,
        "left_out": dict(methods.left_out),
        "usual": {spec.name: spec.label for spec in methods.specs},
        "tables": tables,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="smol")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="COCO's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/results-smol"), metavar="DIR")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR")
    parser.add_argument("--scenes", type=int, default=100, metavar="N")
    parser.add_argument("--limit", type=int, default=522, metavar="N", help="on photographs")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args(arguments)
    stored = given.docs / "results-smol.json"
    if not given.page:
        torch.set_num_threads(1)
        found = columns(
            load(given.model),
            given.out.absolute(),
            given.scenes,
            given.photographs and given.photographs.absolute(),
            given.limit,
        )
        files.write_text(stored, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
    drawn = files.read_json(given.docs / "results.json")
    files.write_text(given.docs / "results-smol.md", page(files.read_json(stored), drawn))


if __name__ == "__main__":
    main()
