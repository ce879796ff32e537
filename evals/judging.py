"""A run's answers to a judge's input files, and its verdicts back to scores; no judge is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from regaze.evals.benchmarks import mmhal
from regaze.evals.benchmarks.mmhal import MmHal, Verdict, read_verdicts
from regaze.evals.reopening import open_run, run_files
from regaze.evals.runs.store import folder_name
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scored import Opened, Scored

VERDICTS = ".verdicts.json"
"""The end of a verdict file's name, in the place of the answers' ``.json``."""


def export_answers(run: Path, folder: Path) -> list[Path]:
    """Write one input file for the judge per condition and seed of a run of MMHal-Bench.

    Args:
        run: The run's directory.
        folder: The folder to write to; made if it isn't there.

    Returns:
        The files. The judge's replies belong beside each, under its name with `VERDICTS`.

    Raises:
        ValueError: No finished run of MMHal-Bench.
        OSError: A file can't be read or written.
    """
    opened, task = _open(run)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for answers in opened.result.answers:
        for seed, found in answers.by_seed.items():
            path = folder / _name(answers.label, seed, len(answers.by_seed))
            texts = {key: record.text for key, record in found.items() if record.ok}
            mmhal.export(task, texts, path)
            paths.append(path)
    return paths


def score_verdicts(run: Path, folder: Path, seed: int = 0) -> Scored:
    """Score a run by what a judge said of the files that `export_answers` wrote.

    Args:
        run: The run's directory.
        folder: The folder of those files and the verdicts.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: No run of MMHal-Bench, no verdicts or not those of its answers, or verdicts of
            more than one judge, which can't be compared.
        OSError: A file can't be read.
    """
    opened, task = _open(run)
    replies = sorted(folder.glob(f"*{VERDICTS}"))
    if not replies:
        raise ValueError(f"{folder} holds no verdicts: no file *{VERDICTS}")
    known: dict[tuple[str, str], Verdict] = {}
    for path in replies:
        answers = path.with_name(path.name.removesuffix(VERDICTS) + ".json")
        known.update(read_verdicts(answers, path))
    judges = {verdict.judge for verdict in known.values()}
    if len(judges) > 1:
        raise ValueError(
            f"{folder} holds verdicts of {' and '.join(sorted(judges))}, which can't be compared: "
            "let one of them rate all answers"
        )
    task = replace(task, verdicts=known, profile=f"official, judged by {judges.pop()}")
    scores = score_run(opened.result, task=task, title=opened.titles[0], seed=seed)
    return Scored(opened.result, [scores])


def _open(run: Path) -> tuple[Opened, MmHal]:
    folders = [path.parent for path in run_files(run)]
    opened = open_run(folders[0]) if len(folders) == 1 else None
    if opened is None or not isinstance(opened.tasks[0], MmHal):
        raise ValueError(
            f"{run} isn't one run of MMHal-Bench, the only benchmark that needs a judge"
        )
    return opened, opened.tasks[0]


def _name(label: str, seed: int, seeds: int) -> str:
    return f"{folder_name(label)}{f'.seed{seed}' if seeds > 1 else ''}.json"
