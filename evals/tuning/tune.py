"""Choose a method's settings by Optuna's tree of Parzen estimators, on scenes that no test asks.

A trial is one condition of a run like any other (`regaze.evals.asking.runner`), so its answers are
kept, and a search that was stopped goes on where it was: the sampler of each trial is seeded by how
many were finished before it, whether in one go or in ten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regaze.evals.asking.models import Loaded
from regaze.evals.asking.runner import run
from regaze.evals.benchmarks.source import Source
from regaze.evals.benchmarks.worlds import world_of
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import Answers
from regaze.evals.scoring.score_run import system_of
from regaze.evals.scoring.tallies import Tallies
from regaze.evals.scoring.thresholds import AUC, DIRECTIONS
from regaze.evals.study import Job, prepare
from regaze.evals.task import QuestionTask
from regaze.evals.tuning.spaces import BANDS, Bands, Domain, OneOf, layers_in, space_of
from regaze.evals.tuning.tuned import TUNED, Trial, Tuned, trial_of
from regaze.hooks.attach import attach
from regaze.hooks.checks import unknown
from regaze.hooks.host import find_host
from regaze.interventions.base import Intervention

ANSWERS, _TRIALS = "answers", "trials.log"
_RANDOM = 5
"""Trials at random before the estimators take over."""


def tune(
    loaded: Loaded,
    spec: Intervention,
    source: Source,
    *,
    out: Path,
    trials: int = 30,
    objective: str | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress = quiet,
) -> Tuned:
    """Search a method's settings, or go on with it.

    Args:
        loaded: The model; left as it was found.
        spec: The method; fields that differ from their defaults are kept.
        source: The questions: the sandbox's validation scenes, or files of one's own.
        out: Gets the trials, all answers and ``tuned.json``.
        trials: Number of trials in all, those that are there already included.
        objective: A metric; default: AUC of the yes margin for yes/no questions, which no moved
            threshold changes, F1 for captions, else the task's headline.
        seed: Seed of the sampler.
        batch_size: Items per batch.
        progress: Called with the method's label, trials done and trials in all.

    Raises:
        ValueError: Test scenes were given, nothing is known to search, an unknown objective, or
            the directory holds another search.
        ImportError: Optuna isn't installed.
        OSError: The directory can't be written.
    """
    if not source.data and source.split != (world := world_of(source.split)).validation:
        raise ValueError(
            f"settings are chosen on {world.validation} scenes, never on those of "
            f"{source.split!r}: a score on scenes that settings were chosen on says nothing "
            f"({', '.join(world.tests)} are there to report)"
        )
    optuna = _optuna()
    space = space_of(spec)
    job = prepare(source, out / ANSWERS)
    objective, direction = _objective(job.tasks[0], objective)
    n_layers = find_host(loaded.model, loaded.processor).n_layers
    with files.locked(out):
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(out / _TRIALS))
        )
        for other in optuna.get_all_study_names(storage):
            if other != spec.name:
                raise ValueError(f"{out} holds a search of {other}: give another --out")
        found = optuna.create_study(
            storage=storage,
            study_name=spec.name,
            direction="maximize" if direction > 0 else "minimize",
            load_if_exists=True,
        )
        _same(found, out, {"method": spec.label, "objective": objective, "seed": seed})
        asking = _Asking(job, loaded, batch_size)
        baseline = asking.baseline()
        usual = asking.trial(spec)
        done = [trial_of(t.user_attrs["trial"]) for t in found.trials if t.state.is_finished()]
        asking.know(done)
        progress(spec.label, len(done), trials)
        while len(done) < trials:
            found.sampler = optuna.samplers.TPESampler(
                seed=seed + len(done), n_startup_trials=_RANDOM
            )
            # The study never hears of an interrupted trial, so the same one is tried again.
            asked = found.ask()
            drawn = {field: _draw(asked, field, domain) for field, domain in space.items()}
            tried = asking.trial(replace(spec, **_fields(drawn, n_layers)))
            asked.set_user_attr("trial", tried.to_dict())
            value = tried.metrics.get(objective, math.nan)
            if math.isnan(value):
                found.tell(asked, state=optuna.trial.TrialState.PRUNED)
            else:
                found.tell(asked, value)
            done.append(tried)
            progress(spec.label, len(done), trials)
        result = Tuned(
            objective=objective,
            direction=direction,
            baseline=baseline,
            usual=usual,
            trials=tuple(done[:trials]),
            source=json.loads(json.dumps(source.to_dict())),
            model=str(loaded.identity["name"]),
            items=len(job.tasks[0].items),
        )
        files.write_json(out / TUNED, result.to_dict())
    return result


def tune_each(
    loaded: Loaded,
    specs: Iterable[Intervention],
    source: Source,
    *,
    out: Path,
    trials: int,
    batch_size: int = 8,
    progress: Progress = quiet,
) -> dict[str, Tuned]:
    """Search the settings of several methods, one after the other, or go on with it.

    Args:
        loaded: The model; left as it was found.
        specs: The methods.
        source: The questions, as for `tune`.
        out: Gets a directory for each method, called like it.
        trials: Number of trials for each.
        batch_size: Items per batch.
        progress: As for `tune`.

    Returns:
        The searches by the methods' names.

    Raises:
        ValueError, ImportError, OSError: As for `tune`.
    """
    return {
        spec.name: tune(
            loaded,
            spec,
            source,
            out=out / spec.name,
            trials=trials,
            batch_size=batch_size,
            progress=progress,
        )
        for spec in specs
    }


class _Asking:
    """Asks the items under one setting after the other."""

    def __init__(self, job: Job, loaded: Loaded, batch_size: int) -> None:
        self.job, self.loaded, self.batch_size = job, loaded, batch_size
        self.conditions = [Condition()]
        self.found: dict[str, Trial] = {}

    def baseline(self) -> dict[str, float]:
        """Metrics of the unedited model.

        Raises:
            ValueError: It leaves items unanswered.
        """
        answers = self._answers(Condition())
        if missing := self._missing(answers):
            raise ValueError(f"{missing} items have no answer, so settings can't be compared")
        return self._metrics(answers)

    def know(self, done: Sequence[Trial]) -> None:
        """Take in what was found before."""
        for trial in done:
            self.found.setdefault(trial.spec.label, trial)
            condition = Condition((trial.spec,))
            if trial.metrics and condition not in self.conditions:
                self.conditions.append(condition)

    def trial(self, spec: Intervention) -> Trial:
        """Score a setting; one that came up before isn't asked again."""
        if spec.label not in self.found:
            self.found[spec.label] = self._trial(spec)
        return self.found[spec.label]

    def _trial(self, spec: Intervention) -> Trial:
        condition = Condition((spec,))
        try:
            if spec.stage == "question":
                spec.resolve(find_host(self.loaded.model, self.loaded.processor))
            else:
                attach(self.loaded.model, spec, processor=self.loaded.processor).detach()
        except ValueError as error:
            return Trial(spec, {}, str(error))
        answers = self._answers(condition)
        if answers.silent:
            return Trial(spec, {}, "never fired")
        if missing := self._missing(answers):
            return Trial(spec, {}, f"{missing} items have no answer")
        return Trial(spec, self._metrics(answers))

    def _answers(self, condition: Condition) -> Answers:
        if condition not in self.conditions:
            self.conditions.append(condition)
        result = run(
            self.job.tasks[0],
            self.loaded.model,
            self.loaded.processor,
            self.conditions,
            out=self.job.out,
            batch_size=self.batch_size,
            identity=self.loaded.identity,
            source=self.job.source.noted(),
        )
        return next(each for each in result.answers if each.label == condition.label)

    def _missing(self, answers: Answers) -> int:
        asked = self.job.tasks[0].items
        return sum(not (i.id in answers.records and answers.records[i.id].ok) for i in asked)

    def _metrics(self, answers: Answers) -> dict[str, float]:
        task = self.job.tasks[0]
        point = Tallies(task, task.items, [system_of(answers)]).point()
        return {name: float(np.mean(value[0, :, -1])) for name, value in point.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tuning needs Optuna: pip install 'regaze[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _objective(task: QuestionTask, name: str | None) -> tuple[str, int]:
    """The metric to search by, and which way is better."""
    directions = {**task.directions, **(DIRECTIONS if task.yes_no else {})}
    known = {metric: way for metric, way in directions.items() if way}
    if name is None:
        own = "f1" if "f1" in known else next(m for m in (*task.headline, *known) if m in known)
        name = AUC if task.yes_no else own
    if name not in known:
        raise ValueError(unknown(f"objective of {task.name}", name, known))
    return name, known[name]


def _same(study: Any, out: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on with another search."""
    stored = study.user_attrs.get("config")
    if stored is None:
        study.set_user_attr("config", dict(config))
    elif stored != config:
        raise ValueError(
            f"{out} holds another search ({stored} there, {dict(config)} now): give another --out"
        )


def _draw(trial: Any, field: str, domain: Domain) -> Any:
    if isinstance(domain, Bands):
        return trial.suggest_categorical(field, list(BANDS))
    if isinstance(domain, OneOf):
        return trial.suggest_categorical(field, list(domain.values))
    return float(f"{trial.suggest_float(field, domain.low, domain.high, log=domain.log):.3g}")


def _fields(drawn: Mapping[str, Any], n_layers: int) -> dict[str, Any]:
    named = {"layers": layers_in(drawn["layers"], n_layers)} if "layers" in drawn else {}
    return {**drawn, **named}
