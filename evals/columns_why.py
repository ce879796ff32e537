"""The measurements behind a sentence about a method: what it moves, where, how much it breaks.

All but `visual_mass` is read from stored answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from regaze.evals.analysis.asked import Subject, pick
from regaze.evals.analysis.mass import VisualMass
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded
from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.sandbox.smol.scenes import NAMES, PARTNER
from regaze.evals.sandbox.smol.tasks import find_scene
from regaze.evals.sandbox.smol.words import question
from regaze.evals.task import Item, QuestionTask

ASKED_ABOUT = ("seen", "unseen", "partner", "other")
"""Subjects of a question: an object that is there, in a picture that training showed or in
one kept from it; the absent partner of one that is there; any other absent kind."""

_KIND = {question(name): name for name in NAMES}


def asked_about(item: Item) -> str:
    """Which of `ASKED_ABOUT` a question about a scene of pictures is on."""
    shown, kind = find_scene(str(item.image)), _KIND[item.prompt]
    if kind in shown.kinds:
        return "unseen" if kind in shown.unseen else "seen"
    return "partner" if PARTNER.get(kind) in shown.kinds else "other"


def moves(result: RunResult, of: Callable[[Item], str] = asked_about) -> dict[str, Any]:
    """Effects of each condition of a finished POPE run on the margin of yes over no.

    Args:
        result: The run; the unedited model comes first.
        of: The group of a question.

    Returns:
        By label: ``yes``, the share of yes in each group; ``shift``, the median change of the
        margin there, None where it is infinite; ``neither``, the share of answers that begin with
        neither word; ``cut``, the share that went on beyond the length limit; ``acted``, see
        `acted`.
    """
    groups: dict[str, list[str]] = {}
    for item in result.items:
        groups.setdefault(of(item), []).append(item.id)
    plain = result.answers[0].records
    found = {}
    for answers in result.answers:
        if answers.silent or len(answers.records) < len(plain):
            continue
        records = answers.records
        said = {key: _first_word(record.text) for key, record in records.items()}
        found[answers.label] = {
            "questions": {name: len(keys) for name, keys in groups.items()},
            "yes": {
                name: round(statistics.mean(said[key] == "yes" for key in keys), 4)
                for name, keys in groups.items()
            },
            "shift": {
                name: _median([_less(records[key].margin, plain[key].margin) for key in keys])
                for name, keys in groups.items()
            },
            "neither": round(statistics.mean(w not in ("yes", "no") for w in said.values()), 4),
            "cut": round(statistics.mean(r.finish == "length" for r in records.values()), 4),
            "acted": acted(answers),
        }
    return found


def told(result: RunResult) -> dict[str, Any]:
    """The changes that each condition of a finished run makes to captions.

    Args:
        result: The run; the unedited model comes first.

    Returns:
        By label: ``same``, the share of captions that stay word for word; ``tokens``, their mean
        length; ``cut``, the share that went on beyond the length limit; ``twice``, the share that
        names something more than once.
    """
    plain = {key: record.text for key, record in result.answers[0].records.items()}
    found = {}
    for answers in result.answers:
        records = answers.records
        if answers.silent or len(records) < len(plain):
            continue
        same = [record.text == plain[key] for key, record in records.items()]
        named = [result.task.counts(item, records[item.id].text) for item in result.items]
        found[answers.label] = {
            "same": round(statistics.mean(same), 4),
            "tokens": round(statistics.mean(r.n_new_tokens for r in records.values()), 1),
            "cut": round(statistics.mean(r.finish == "length" for r in records.values()), 4),
            "twice": round(statistics.mean(n["mentions"] > n["distinct"] for n in named), 4),
        }
    return found


def acted(answers: Answers) -> dict[str, float] | None:
    """In how many layers a condition acted, and where most, as its report measured it.

    Returns:
        ``layers``, their number; ``layer``, that of the largest effect, ``effect``; None if no
        layer was edited.
    """
    report = answers.firing
    if report is None:
        return None
    named = [layer for one in report["interventions"] for layer in one["layers"]]
    felt = [one for one in named if one["effect"] > 0 and one["layer"] >= 0]
    if not felt:
        return None
    most = max(felt, key=lambda one: one["effect"])
    return {
        "layers": len(felt),
        "layer": most["layer"],
        "effect": round(float(most["effect"]), 4),
    }


def visual_mass(loaded: Loaded, task: QuestionTask, questions: int) -> list[float]:
    """Share of the last prompt row's attention on the image, by layer: mean over heads."""
    answerer = Answerer(loaded.model, loaded.processor, 1)
    subject = Subject(answerer, task, pick(task.items, questions))
    mass = VisualMass(subject)
    for batch in subject.batches():
        mass.add(batch)
    return [round(float(row.nanmean()), 4) for row in mass.maps()[0].values]


def _first_word(text: str) -> str:
    words = text.strip().lower().replace(",", " ").replace(".", " ").split()
    return words[0] if words else ""


def _less(one: float | None, other: float | None) -> float:
    return math.nan if one is None or other is None else one - other


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    found = statistics.median(known) if known else math.nan
    return round(found, 3) if math.isfinite(found) else None
