"""Every method in several worlds: ``python -m regaze.evals.columns`` (or ``make results-smol``).

Asks POPE of ``smol`` with every method as it comes, and with some that are tuned on validation
scenes, about scenes of its world and, where they are given, about photographs; likewise its twin
that was trained without the prior, with the cheaper methods; then has scenes described with every
method. The changes go beside those of the drawn scenes into ``results-smol.json``, with what stands
behind them (`columns_why`). Stopped, it goes on where it was; with ``--only`` it asks some tables
anew, with the settings of the stored results, and keeps the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regaze.evals.analysis.asked import Subject, pick
from regaze.evals.analysis.search import Found, by_attribution
from regaze.evals.asking.every import Every, every_method
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded, load
from regaze.evals.benchmarks.source import Source
from regaze.evals.benchmarks.worlds import SMOL
from regaze.evals.columns_why import moves, told, visual_mass
from regaze.evals.reports.columns_page import page
from regaze.evals.results import table_of
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress, bars
from regaze.evals.sandbox.smol.photographs import photograph_questions, read_photographs
from regaze.evals.scoring.scored import Scored
from regaze.evals.study import prepare, study
from regaze.evals.tuning.tune import tune_each
from regaze.interventions.base import get

TUNED = ("pai", "vaf", "vcd", "vhr")
"""Methods whose settings are searched: attention on the image scaled up twice over, in two ways; a
contrast; heads chosen by how they react to the image."""
CHEAP = (
    *("adaptvis", "avar", "devils", "dola", "gift", "highlight"),
    *("pai", "scalingvis", "spin", "vaf", "vcd", "vhr"),
)
"""Methods that the twin is asked with."""
TABLES = {"smol": "scenes", "photographs": "limit", "twin": "twin", "captions": "captions"}
"""Tables, and the field of `Sizes` that says how much is asked for each."""
WHY = {"smol": moves, "twin": moves, "captions": told}
"""The numbers behind a table, where there are some."""
Known = Mapping[str, Any]
"""The result of `columns`."""
_TESTED, _HEADS, _SEARCHED, _LOOKED_AT, _BATCH = next(iter(SMOL.tests)), 4, 16, 48, 24


@dataclass(frozen=True)
class Sizes:
    """Amounts to ask.

    Attributes:
        scenes: Prior-free test scenes, six questions each.
        limit: Questions about photographs, evenly of POPE's three kinds.
        validation: Scenes that settings are chosen on, six questions each; 0: nothing is tuned.
        trials: Settings tried of each of `TUNED`.
        twin: Scenes that the twin is asked about; 0: it isn't asked.
        captions: Scenes that are described; 0: none.
    """

    scenes: int = 64
    limit: int = 192
    validation: int = 16
    trials: int = 6
    twin: int = 64
    captions: int = 32


def columns(
    name: str,
    out: Path,
    sizes: Sizes,
    photographs: Path | None,
    known: Known | None = None,
    only: Collection[str] = tuple(TABLES),
) -> dict[str, Any]:
    """Run everything that isn't on the disk yet.

    Args:
        name: The model; its twin is called ``NAME-twin``.
        out: The folder of the runs.
        sizes: The amounts to ask.
        photographs: COCO's folder, if there is one.
        known: The result of an earlier run, whose settings are used again and whose other tables
            are kept; default: there is none.
        only: The tables to ask, of `TABLES`.

    Returns:
        What the page is made of, JSON-able.

    Raises:
        ValueError: The directory holds runs of other sizes, or of another model; a model can't be
            loaded.
        OSError: It can't be written.
    """
    loaded = load(name)
    model = Path(str(loaded.identity["name"])).name
    if known and known["model"] != model:
        raise ValueError(f"the stored results are of {known['model']}, not of {model}")
    with bars() as follow:
        chosen = known or _choose(loaded, out, sizes, follow)
        usual = [Condition.parse(label) for label in chosen["usual"].values()]
        cheap = [one for one in usual if one.specs[0].name in CHEAP]
        said = [found["with"] for found in chosen["tuned"].values()]
        best = [Condition.parse(label) for label in said if label is not None]

        def ask(
            where: str, source: Source, of: Loaded, said: list[Condition], limit: int | None = None
        ) -> Scored:
            job = prepare(source, out / where, limit)
            told = list(dict.fromkeys(said))
            (run,) = study([job], of, told, progress=follow, batch_size=_BATCH, limit=limit)
            return run

        runs: dict[str, Scored] = {}
        seen: dict[str, list[float]] = {}
        if "smol" in only:
            scenes = Source("pope", split=_TESTED, n_images=sizes.scenes)
            runs["smol"] = ask("smol", scenes, loaded, [*usual, *best])
            seen["smol"] = visual_mass(loaded, scenes.tasks()[0], _LOOKED_AT)
        if photographs is not None and "photographs" in only:
            shown = _photographs(photographs, out / "photographs.jsonl")
            runs["photographs"] = ask("photographs", shown, loaded, [*usual, *best], sizes.limit)
            seen["photographs"] = visual_mass(loaded, shown.tasks()[0], _LOOKED_AT)
        if sizes.twin and "twin" in only:
            source = Source("pope", split=_TESTED, n_images=sizes.twin)
            runs["twin"] = ask("twin", source, load(f"{name}-twin"), [*cheap, *best])
        if sizes.captions and "captions" in only:
            source = Source("chair", split=_TESTED, n_images=sizes.captions)
            runs["captions"] = ask("captions", source, loaded, [*usual, *best])
    asked = asdict(sizes)
    if known:
        asked = {**known["sizes"], **{TABLES[where]: asked[TABLES[where]] for where in runs}}
    found: dict[str, dict[str, Any]] = {
        "tables": {where: table_of(run.scores[0]) for where, run in runs.items()},
        "why": {where: WHY[where](run.result) for where, run in runs.items() if where in WHY},
        "visual_mass": seen,
    }
    return {
        "model": model,
        "sizes": asked,
        **{key: chosen[key] for key in ("left_out", "usual", "tuned")},
        **{key: {**known[key], **new} if known else new for key, new in found.items()},
    }


def _choose(
    loaded: Loaded, out: Path, sizes: Sizes, follow: Callable[[str], Progress]
) -> dict[str, Any]:
    """The methods that can act, and settings that are searched for."""
    methods = _with_heads(loaded, every_method(loaded), out / "heads.json", follow("heads"))
    searched = [spec for spec in methods.specs if sizes.validation and spec.name in TUNED]
    tuned = tune_each(
        loaded,
        searched,
        Source("pope", split=SMOL.validation, n_images=sizes.validation),
        out=out / "tune",
        trials=sizes.trials,
        batch_size=_BATCH,
        progress=follow("tuning"),
    )
    return {
        "left_out": dict(methods.left_out),
        "usual": {spec.name: spec.label for spec in methods.specs},
        "tuned": {method: search.outcome() for method, search in tuned.items()},
    }


def _with_heads(loaded: Loaded, methods: Every, path: Path, progress: Progress) -> Every:
    """The methods, and AD-HH with the heads that validation captions show."""
    if "adhh" not in methods.left_out:
        return methods
    if not path.exists():
        source = Source("chair", split=SMOL.validation, n_images=_SEARCHED)
        task = source.tasks()[0]
        answerer = Answerer(loaded.model, loaded.processor, task.max_new_tokens)
        subject = Subject(answerer, task, pick(task.items, _SEARCHED), _SEARCHED)
        ranked = by_attribution(subject, progress=progress)
        model, heads = str(loaded.identity["name"]), ranked.top(_HEADS)
        found = Found("adhh", "attribution", model, source.title, _SEARCHED, heads, ranked)
        files.write_json(path, found.to_dict())
    kind: Any = get("adhh")
    spec = kind(heads=files.read_json(path)["heads"])
    left = {name: why for name, why in methods.left_out.items() if name != "adhh"}
    return Every(sorted([*methods.specs, spec], key=lambda one: one.name), left)


def _photographs(folder: Path, asked: Path) -> Source:
    records = photograph_questions(read_photographs(folder)[1])
    files.write_text(asked, "".join(f"{json.dumps(record)}\n" for record in records))
    return Source("pope", data=(str(asked),), images=str(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="smol")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="COCO's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/results-smol"), metavar="DIR")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR")
    for name, count in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    only = "ask these again, as the stored results say, and keep their other tables"
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", help=only)
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args(arguments)
    stored = given.docs / "results-smol.json"
    if not given.page:
        torch.set_num_threads(1)
        found = columns(
            given.model,
            given.out.absolute(),
            Sizes(**{name: getattr(given, name) for name in asdict(Sizes())}),
            given.photographs and given.photographs.absolute(),
            files.read_json(stored) if given.only else None,
            given.only or TABLES,
        )
        files.write_text(stored, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
    drawn = files.read_json(given.docs / "results.json")
    files.write_text(given.docs / "results-smol.md", page(files.read_json(stored), drawn))


if __name__ == "__main__":
    main()
