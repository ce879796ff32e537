"""Compare runs that were made apart: the same items on two models or on two machines.

Nothing pairs such runs by construction, so what must be equal is checked: the data, the prompts
and how answers were decoded. What may differ (the model, the batch size) is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regaze.evals.reopening import open_run, run_files
from regaze.evals.runs import records, store
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scored import Opened
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.task import QuestionTask

_EQUAL = ("task", "data_sha256", "ids_sha256", "prompts_sha256", "noise", "noise_seeds", "plan")
_ANSWERED = ("decoding", "seeds")
"""Settings to compare, too, where answers are words; pictures may take other numbers of steps."""
_MAY_DIFFER = (
    "model",
    "pipeline",
    "dtype",
    "attention",
    "processor",
    "batch_size",
    "sharing",
    "flow",
    "regaze",
    "diffusers",
)
_EXAMPLES = 3


@dataclass(frozen=True)
class Pair:
    """Two runs of one task, scored as one: conditions of the first are labelled ``A: ``.

    Attributes:
        scores: One entry per profile.
        differences: Allowed differences between the runs, one line each.
    """

    scores: Sequence[TaskScores]
    differences: Sequence[str]


def compare_runs(
    first: Path, second: Path, profiles: Sequence[str] = (), seed: int = 0
) -> list[Pair]:
    """Score the conditions of two directories against the first one's first condition.

    Args:
        first: A run's directory or one above several; its data must still be there.
        second: Another run's directory, or one above several, of the same tasks.
        profiles: Other scoring rules; default: those of the first run.
        seed: For the bootstrap.

    Raises:
        ValueError: A directory holds no run, or data, prompts or decoding differ; the message
            says in what.
        OSError: The data are gone.
    """
    ours = {path.parent.relative_to(first): path.parent for path in run_files(first)}
    theirs = {path.parent.relative_to(second): path.parent for path in run_files(second)}
    if len(ours) == len(theirs) == 1:
        theirs = dict(zip(ours, theirs.values(), strict=True))
    if set(ours) != set(theirs):
        apart = ", ".join(sorted(map(str, set(ours) ^ set(theirs))))
        raise ValueError(f"{first} and {second} hold different runs: only one of them has {apart}")
    return [_pair(open_run(one, profiles), theirs[path], seed) for path, one in ours.items()]


def _pair(ours: Opened, theirs: Path, seed: int) -> Pair:
    one, other = _config(ours.result.out), _config(theirs)
    words = isinstance(ours.tasks[0], QuestionTask)
    wrong = list(_differing(one, other, (*_EQUAL, *(_ANSWERED if words else ()))))
    if one.get("ids_sha256") != other.get("ids_sha256"):
        wrong = [*_missing(ours.result.out, theirs), *wrong]
    if wrong:
        raise ValueError(
            f"{ours.result.out} (A) and {theirs} (B) can't be compared: {'; '.join(wrong)}"
        )
    result = ours.read(theirs)
    answers = [
        replace(each, label=f"{name}: {each.label}")
        for name, run in (("A", ours.result), ("B", result))
        for each in run.answers
    ]
    controls = {
        f"{name}: {label}": control
        for name, run in (("A", ours.result), ("B", result))
        for label, control in run.controls.items()
    }
    both = replace(ours.result, answers=answers)
    scores = [
        score_run(both, task=task, title=title, seed=seed, controls=controls)
        for task, title in zip(ours.tasks, ours.titles, strict=True)
    ]
    told = _MAY_DIFFER if words else (*_MAY_DIFFER, *_ANSWERED)
    return Pair(scores, list(_differing(one, other, told)))


def _config(out: Path) -> Mapping[str, Any]:
    """The settings of the first condition; all conditions share those compared."""
    for condition in store.read_run(out)["conditions"]:
        return store.read_manifest(out / condition["folder"])["config"]
    raise ValueError(f"{out} holds no answers yet")


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]
) -> Iterator[str]:
    """The differences, e.g. ``decoding.max_new_tokens: 10 in A, 64 in B``; hashes tell no more."""
    for key in keys:
        for name, (a, b) in _leaves(key, one.get(key), other.get(key)):
            # Each model names the tokens that end its answers by numbers of its own.
            if a != b and not name.endswith("_token_id"):
                both = f": {store.brief(a)} in A, {store.brief(b)} in B"
                yield f"other {name}" if name.endswith("_sha256") else name + both


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            yield from _leaves(f"{name}.{key}", a.get(key), b.get(key))
    else:
        yield name, (a, b)


def _missing(ours: Path, theirs: Path) -> Iterator[str]:
    """Items that only one of the runs has answered."""
    one, other = _answered(ours), _answered(theirs)
    for name, only in (("A", one - other), ("B", other - one)):
        if only:
            shown = ", ".join(sorted(only)[:_EXAMPLES])
            more = ", ..." if len(only) > _EXAMPLES else ""
            yield f"{len(only)} items answered only in {name} ({shown}{more})"


def _answered(out: Path) -> set[str]:
    folders = [out / condition["folder"] for condition in store.read_run(out)["conditions"]]
    found = [path for folder in folders for path in records.all_predictions(folder)]
    return {record.id for record in records.read(*found).values()}
