"""One protocol for all runs: refuse, lock, prepare, meet, read, meet, work, meet, put in order.

Comparisons are paired by construction: every condition does the same items in the same batches,
the unedited model first. What is on the disk decides what is still to do, so a run that was killed
goes on with the same command, also with another number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regaze.evals.runs import files, lines, meeting, records, sessions, store
from regaze.evals.runs.conditions import Condition, baseline_first
from regaze.evals.runs.controls import roles
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.results import Inputs, RunResult, load, session_files
from regaze.evals.runs.work import Plan, Work
from regaze.evals.task import Item

_log = logging.getLogger(__name__)
_REMARKS = {"truncated": "were cut at the length limit", "blank": "are only white space"}
_REMARKABLE = 0.01


def run(
    work: Work,
    conditions: Sequence[Condition],
    *,
    out: Path,
    source: Mapping[str, Any] | None = None,
    certificates: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Do all items under all conditions, or whatever part of that isn't on the disk yet.

    Args:
        work: The work to do.
        conditions: The conditions to compare; the unedited model is added in front where it is
            missing.
        out: Directory of the run: one folder per condition.
        source: Anything JSON-able from which the caller can build the task again; kept in the
            directory.
        certificates: Findings of `regaze.verify`, as JSON, by a condition's label; kept in its
            manifest.
        progress: Called with a condition's label, items done and items in all, of this process.
        world: This process among those that share the work, see `distributed.join`.

    Raises:
        ValueError: A condition doesn't fit, or the directory holds answers made with other
            settings, or about other images.
        OSError: The directory can't be written, or another process writes to it.
    """
    settings, batches = work.settings(), work.batches()
    conditions = baseline_first(conditions)
    # Everything that can be refused is refused before the first answer.
    resolved = [work.resolve(condition) for condition in conditions]
    places = store.folders(out, [condition.label for condition in conditions])
    plans = []
    for condition, specs in zip(conditions, resolved, strict=True):
        edits = {"interventions": [spec.to_dict() for spec in specs]}
        config = {**settings, **work.asks(condition), **edits}
        plans.append(Plan(condition, specs, places[condition.label], config))
    keys = [(item.id, seed) for seed in work.seeds for item in work.items]

    def prepare() -> None:
        for plan in plans:
            _prepare(work, plan, keys)
            if certificate := (certificates or {}).get(plan.label):
                sessions.certify(plan.folder, certificate)
        named = roles([plan.label for plan in plans])
        order = [
            {"label": plan.label, "folder": plan.folder.name, "control": named.get(plan.label)}
            for plan in plans
        ]
        made_from = {"source": source, "limit": work.limit, "conditions": order}
        files.write_json(out / store.RUN, made_from)

    configs = {plan.folder: plan.config for plan in plans}
    with meeting.alone(out, configs, prepare, world):
        known = meeting.read_together(world, lambda: [_known(work, plan) for plan in plans])
        inputs = Inputs()
        for plan, (before, _) in zip(plans, known, strict=True):
            inputs.check(plan.label, plan.condition.image, before.values())
        for plan, (before, standing) in zip(plans, known, strict=True):
            _work_off(work, plan, batches, before, standing, inputs, world, progress)

        def gather() -> None:
            for plan, (before, _) in zip(plans, known, strict=True):
                numbers = _settle(plan, keys)
                # What was answered before was remarked on then.
                if len(before) < len(keys):
                    _remark(plan, numbers)

        meeting.by_first(world, gather)
        return load(work.task, out)


def _prepare(work: Work, plan: Plan, keys: Sequence[Key]) -> None:
    """Write a condition's manifest before any answer, and clear up after a killed run."""
    path = plan.folder / store.MANIFEST
    if not path.exists():
        fields = {
            "condition": plan.label,
            "model": work.name,
            **work.notes(plan),
            "config_sha256": files.digest(plan.config),
            "config": plan.config,
            "counts": {},
            "sessions": [],
        }
        files.write_json(path, fields)
    for file in records.all_predictions(plan.folder):
        lines.repair(file)
    if session_files(plan.folder):
        # A killed run left them, and this one would write to files of the same names.
        _settle(plan, keys)


def _settle(plan: Plan, keys: Sequence[Key]) -> dict[str, int]:
    """Gather what all processes left of a condition."""
    found = records.settle(plan.folder, keys)
    return sessions.settle(plan.folder, found.values())


def _known(work: Work, plan: Plan) -> tuple[dict[Key, Record], set[Key]]:
    """A condition's records, and the keys of those that need no other try."""
    found = records.read(*records.all_predictions(plan.folder))
    return found, {key for key, record in found.items() if work.stands(plan, record)}


def _work_off(
    work: Work,
    plan: Plan,
    batches: Sequence[Sequence[Item]],
    before: Mapping[Key, Record],
    standing: Collection[Key],
    inputs: Inputs,
    world: World,
    progress: Progress,
) -> None:
    """Do this process's part of what is left, and write each batch down before the next."""
    units = [(seed, batch) for seed in work.seeds for batch in range(len(batches))]
    left = {
        (seed, number): len(batches[number])
        for seed, number in units
        if not all((item.id, seed) in standing for item in batches[number])
    }
    done = sum(len(batches[number]) for _, number in units) - sum(left.values())
    mine, finished = meeting.share_out(plan.label, left, done, world, progress)
    if not mine:
        return
    session = sessions.Session(plan.folder, world, work.device)
    with work.doing(plan) as do:
        for seed, number in mine:
            batch = batches[number]
            wanted = {(item.id, seed) for item in batch} - set(standing)
            found = do(seed, batch, wanted)
            inputs.check(plan.label, plan.condition.image, found.records)
            if fresh := _news(found.records, before):
                # The session first: no answer is on the disk without the proof that its
                # intervention acted.
                session.note(len(fresh), found.cost, found.size, found.firing)
                records.append(records.predictions(plan.folder, world.rank), fresh)
                _warn(fresh)
            finished((seed, number))
        session.save()


def _news(found: Iterable[Record], before: Mapping[Key, Record]) -> list[Record]:
    """The records that aren't on the disk: first answers, and other outcomes of another try."""
    return [
        replace(record, attempt=was.attempt + 1) if was else record
        for record in found
        if (was := before.get(record.key)) is None or record.error != was.error
    ]


def _warn(fresh: Iterable[Record]) -> None:
    """Log one line for each reason why items have no answer."""
    failed: dict[str, list[str]] = {}
    for record in fresh:
        if record.error is not None:
            failed.setdefault(record.error, []).append(record.id)
    for reason, (first, *others) in failed.items():
        more = f" and {len(others)} more items" if others else ""
        _log.warning("no answer to %s%s: %s", first, more, reason)


def _remark(plan: Plan, numbers: Mapping[str, int]) -> None:
    """Say what a reader of scores should know."""
    for kind, what in _REMARKS.items():
        if numbers[kind] > _REMARKABLE * numbers["answered"]:
            said = f"{numbers[kind]} of {numbers['answered']} answers {what}"
            _log.warning("%s: %s", plan.label, said)
