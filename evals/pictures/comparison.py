"""Paint the same prompts from the same noise under several conditions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Picture, Shot
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress
from regaze.hooks.attach import attach
from regaze.hooks.checks import unknown
from regaze.interventions.base import Intervention, from_dict, get

PACKAGES = ("regaze", "torch", "diffusers", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Column:
    """One condition's pictures.

    Attributes:
        title: The title above it.
        specs: The condition's interventions as resolved for the pipeline, JSON-able.
        pictures: One per shot.
        firing: The interventions' firing, as `regaze.hooks.report.Report.to_dict` gives it; None
            for the unedited pipeline.
    """

    title: str
    specs: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture]
    firing: Mapping[str, Any] | None

    @property
    def silent(self) -> bool:
        """True if an intervention never acted, so that these are the unedited pictures."""
        return self.firing is not None and not self.firing["fired"]


def parse(conditions: Sequence[str], sweeps: Sequence[str] = ()) -> dict[str, Condition]:
    """Read columns as the command line gives them.

    Args:
        conditions: ``none``, ``pag:scale=3``, ``pag+softpag:u=0.5``.
        sweeps: ``METHOD.FIELD=VALUE,VALUE,...``: in place of the conditions with that method, or
            after all others if there is none, one per value.

    Returns:
        Conditions by title: the label, in which a swept field stands even at its default.

    Raises:
        ValueError: An unknown method, field or value; a method without a field that it needs; a
            column given twice, or none at all.
    """
    found = [Condition.parse(text) for text in conditions]
    swept: dict[str, list[str]] = {}
    for text in sweeps:
        method, field, values = _sweep(text)
        swept.setdefault(method, []).append(field)
        found = _swept(found, method, field, values)
    for condition in found:
        if condition.image != "given":
            raise ValueError(
                f"{condition.label}: @{condition.image} is for models that read an image"
            )
        condition.check_given()
    titles = [_title(condition, swept) for condition in found]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ValueError(f"given twice: {', '.join(twice)}; name each condition once")
    if not found:
        raise ValueError("there is nothing to compare: give --with none and --with METHOD")
    return dict(zip(titles, found, strict=True))


def compare(
    loaded: LoadedPipeline,
    conditions: Mapping[str, Condition],
    shots: Sequence[Shot],
    arguments: Mapping[str, Any],
    *,
    batch_size: int = 4,
    progress: Progress = lambda label, done, total: None,
) -> list[Column]:
    """Paint all shots under each condition; every batch holds the same shots in each.

    Args:
        loaded: The pipeline; left as it was found.
        conditions: The columns by their titles.
        shots: The pictures to paint.
        arguments: Arguments of the pipeline's call.
        batch_size: Pictures to paint at once.
        progress: Called with a column's title, pictures done and pictures in all.

    Raises:
        ValueError: A condition or an argument doesn't fit the pipeline.
    """
    painter = Painter(loaded.pipeline, arguments)
    # Everything that can be refused is refused before the first picture.
    for condition in conditions.values():
        with attach(loaded.pipeline, *condition.specs):
            pass
    columns = []
    for title, condition in conditions.items():
        pictures: list[Picture] = []
        progress(title, 0, len(shots))
        with attach(loaded.pipeline, *condition.specs) as attached:
            specs = [cast(Intervention, spec).to_dict() for spec in attached.specs]
            for start in range(0, len(shots), batch_size):
                pictures += painter.paint(shots[start : start + batch_size])
                progress(title, len(pictures), len(shots))
        firing = attached.report().to_dict() if condition.specs else None
        columns.append(Column(title, specs, pictures, firing))
    return columns


def describe(
    loaded: LoadedPipeline,
    columns: Sequence[Column],
    prompts: Sequence[str],
    seeds: Sequence[int],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """All that it takes to make the same pictures again, JSON-able."""
    return {
        "model": loaded.identity,
        "pipeline": type(loaded.pipeline).__name__,
        "settings": Painter(loaded.pipeline, arguments).settings,
        "dtype": loaded.dtype,
        "device": str(loaded.pipeline.device),
        "prompts": list(prompts),
        "seeds": list(seeds),
        "noise": NOISE,
        "columns": [{"title": c.title, "interventions": list(c.specs)} for c in columns],
        "packages": {name: version(name) for name in PACKAGES},
    }


def _sweep(text: str) -> tuple[str, str, list[Any]]:
    """Method, field and values of a sweep."""
    where, equals, values = text.partition("=")
    method, dot, field = where.strip().rpartition(".")
    if not (equals and dot and values.strip()):
        raise ValueError(f"--sweep {text!r}: expected METHOD.FIELD=VALUE,VALUE, e.g. pag.scale=1,3")
    known = [each.name for each in dataclasses.fields(get(method))]
    if field not in known:
        raise ValueError(unknown(f"field of {method}", field, known))
    # Commas inside brackets belong to a list value.
    return method, field, [_value(part) for part in re.split(r",(?![^\[]*\])", values)]


def _swept(
    conditions: Sequence[Condition], method: str, field: str, values: Sequence[Any]
) -> list[Condition]:
    concerned = any(spec.name == method for c in conditions for spec in c.specs)
    found: list[Condition] = []
    for condition in conditions if concerned else [*conditions, Condition((get(method)(),))]:
        options = [
            [from_dict({**spec.to_dict(), field: value}) for value in values]
            if spec.name == method
            else [spec]
            for spec in condition.specs
        ]
        found += [Condition(specs, condition.image) for specs in itertools.product(*options)]
    return found


def _title(condition: Condition, swept: Mapping[str, Sequence[str]]) -> str:
    titles = []
    for spec in condition.specs:
        title = spec.label
        for field in swept.get(spec.name, ()):
            if not re.search(rf"[:,]{field}=", title):
                title += f"{',' if ':' in title else ':'}{field}={json.dumps(getattr(spec, field))}"
        titles.append(title)
    return "+".join(titles) or "none"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
