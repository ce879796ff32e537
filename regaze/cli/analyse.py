"""analyse heads and analyse overlap: what attention heads do on a benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer
from rich import box

from regaze.cli.options import Json, Model, absolute, check_model, spread
from regaze.cli.terminal import note, out, resumable, say
from regaze.evals.reports.whole_words import WholeWords

if TYPE_CHECKING:
    from regaze.evals.analysis.analyse import Analysis
    from regaze.evals.analysis.maps import Pairs
    from regaze.evals.benchmarks.source import Source


_SHOWN = ("ablation", "ablation_error", "direct", "mass", "divergence", "distance_share")
_HEADS = {"ablation_error": "+/-", "distance_share": "distance"}


def group() -> None:
    """Analyse a model's attention heads."""


@dataclass(frozen=True)
class Asked:
    """The benchmark to ask."""

    PANEL: ClassVar[str] = "Benchmark"

    benchmark: Annotated[
        str, typer.Argument(help="Benchmark to ask; one of yes/no questions shows most.")
    ] = "pope"
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The benchmark's own files, their folder or a Hub id. Repeatable. Default: the "
            "sandbox's scenes."
        ),
    ] = None
    images: Annotated[str | None, typer.Option(help="Folder of the images.")] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the sandbox. Default: validation, so that test scenes stay unseen."
        ),
    ] = None
    n_images: Annotated[int | None, typer.Option(min=1, help="Images to draw.")] = None
    limit: Annotated[
        int, typer.Option(min=1, help="Items to ask, about as many different images as can be.")
    ] = 48
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of images.")] = 0

    def source(self, model: str) -> Source:
        """The source of the task.

        Raises:
            ValueError: An unknown benchmark, or no data for a model that isn't the sandbox's.
        """
        from regaze.evals.benchmarks.registry import find
        from regaze.evals.benchmarks.source import Source
        from regaze.evals.benchmarks.worlds import SHAPES, home

        find(self.benchmark)
        world = home(model)
        if world is None:
            check_model(model)
        if not self.data and world is None and self.split is None:
            raise ValueError(
                f"--data is missing: where are {self.benchmark.upper()}'s files? (--split "
                "validation asks about the sandbox's scenes instead)"
            )
        source = Source(
            benchmark=self.benchmark,
            data=tuple(map(absolute, self.data or ())),
            images=self.images and absolute(self.images),
            split=self.split or (world or SHAPES).validation,
            n_images=self.n_images,
            seed=self.seed,
        )
        source.check()
        return source


@spread
def heads(
    asked: Asked,
    model: Model,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure: mass, divergence, direct, distance, vision_distance or "
            "ablation. "
            "Repeatable; default: all that can be measured."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Measure to rank by. Default: ablation, else direct, divergence, mass."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Heads to print.")] = 10,
    layer: Annotated[
        list[int] | None, typer.Option(help="Ablate this layer's heads only. Repeatable.")
    ] = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--heads", help="Ablate only these heads, a layer and a head each: [[4,0],[4,3]]."
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="What becomes of an ablated head: zero or uniform.")
    ] = "zero",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are read at once.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Heads ablated at once.")] = 64,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory of the analysis. Default: runs/analysis-BENCHMARK-MODEL."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure each attention head: what it looks at, and what it does for the answer."""
    source = asked.source(model.model)
    pairs = _pairs(chosen)
    if pairs is not None and layer:
        raise ValueError("give --heads or --layer, not both")
    ablated_to = _to(to)
    from regaze.evals.analysis import page
    from regaze.evals.analysis.analyse import RESULT, analyse, check_rank
    from regaze.evals.analysis.asked import Subject, pick
    from regaze.evals.asking.generation import Answerer
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars

    if by is not None:
        check_rank(by, measure)
    folder = folder or Path("runs") / f"analysis-{source.benchmark}-{Path(model.model).name}"
    task = source.tasks()[0]
    world = join()
    loaded = model.load()
    answerer = Answerer(loaded.model, loaded.processor, task.max_new_tokens)
    subject = Subject(answerer, task, pick(task.items, asked.limit), batch_size)
    with resumable(folder), bars(shown=world.first) as follow:
        found = analyse(
            subject,
            folder,
            title=source.title,
            identity=loaded.identity,
            measures=measure,
            heads=pairs,
            layers=layer,
            to=ablated_to,
            rows=rows,
            progress=follow(source.title),
            world=world,
        )
    if not world.first:
        return
    note(*(f"{name} is left out: {why}" for name, why in found.left_out.items()))
    best, name = _best(found, by, top)
    page.write(folder, found, best, name)
    text = page.spec(best) if best else None
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), "by": name, "top": best, "spec": text}))
        return
    if best:
        out.print(_table(found, best, name))
    if found.cost:
        say(f"Ablation: {found.cost}")
    for what, file in (
        ("Page", page.PAGE),
        ("Picture", page.PICTURE),
        ("Table", page.TABLE),
        ("Numbers", RESULT),
    ):
        say(f"{what}: {folder / file}")
    if text:
        say(f"--with '{text}'")


@spread
def overlap(
    first: Annotated[Path, typer.Argument(help="Folder of an analysis.")],
    second: Annotated[Path, typer.Argument(help="Folder of another analysis, of the same model.")],
    by: Annotated[
        str | None,
        typer.Option(help="Measure to rank by. Default: ablation, else direct, divergence, mass."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Heads of each analysis that are compared.")] = 10,
    as_json: Json = False,
) -> None:
    """Compare the best heads of two analyses: do two tasks use the same ones?"""
    from regaze.evals.analysis.analyse import load
    from regaze.evals.analysis.overlap import overlap as compare

    one, other = load(first), load(second)
    ranked = one.ranked(by)
    found = compare(ranked, other.map(ranked.name), top)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    if one.model != other.model:
        note(f"these are heads of different models: {one.model} and {other.model}")
    shared = ", ".join(f"L{layer}H{head}" for layer, head in found.shared) or "none"
    say(
        f"Top {top} of {found.heads} heads by {found.measure}: {one.title} and {other.title}",
        f"shared: {len(found.shared)} ({shared})",
        f"Jaccard {found.jaccard:.3f}; by chance {found.chance:.3f}; p = {found.p:.2g}",
    )


def _pairs(text: str | None) -> Pairs | None:
    """Heads as ``--heads`` names them."""
    if text is None:
        return None
    from regaze.interventions.lvlm.heads import check_heads

    try:
        given = json.loads(text)
        found = tuple(tuple(pair) for pair in given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--heads must be [layer,head] pairs such as [[4,0],[4,3]], got {text!r}"
        ) from error
    check_heads("--heads", found)
    if not found:
        raise ValueError("--heads names no heads")
    return found


def _to(text: str) -> Literal["zero", "uniform"]:
    if text == "zero":
        return "zero"
    if text == "uniform":
        return "uniform"
    raise ValueError(f"--to must be zero or uniform, got {text!r}")


def _best(found: Analysis, by: str | None, top: int) -> tuple[Pairs, str]:
    """The best heads, and by what; none if no measure of the text tower was taken."""
    if by is None and not any(one.tower == "text" for one in found.maps):
        return (), ""
    ranked = found.ranked(by)
    measured = int((~ranked.values.isnan()).sum())
    return ranked.top(min(top, measured)), ranked.name


def _table(found: Analysis, best: Pairs, by: str) -> WholeWords:
    shown = dict.fromkeys([by, *_SHOWN])
    by_name = {one.name: one for one in found.maps}
    maps = [by_name[name] for name in shown if name in by_name]
    table = WholeWords(
        "head", *(_HEADS.get(one.name, one.name) for one in maps), box=box.SIMPLE_HEAD
    )
    for layer, head in best:
        values = [float(one.values[layer, head]) for one in maps]
        cells = ("-" if v != v else f"{v:.3g}" for v in values)
        table.add_row(f"L{layer}H{head}", *cells)
    return table
