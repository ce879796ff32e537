from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from toy import ToyTask

from regaze.evals.records import Record
from regaze.evals.results import Answers, RunResult
from regaze.evals.scores import TaskScores, score_run


def fired(acted: bool) -> dict[str, Any]:
    layer = {"layer": 1, "calls": 3, "heads": 1.0, "effect": 0.25 * acted}
    one = {"label": "vhr", "prompts": 3, "layers": [layer], "exempt": False}
    one.update(fired=acted, effect=layer["effect"])
    return {"fired": acted, "interventions": [one]}


def answers(label: str, texts: Mapping[str, str | None], acted: bool | None = None) -> Answers:
    records = {
        key: Record(key, key.partition("/")[2][0], text)
        if text is not None
        else Record(key, key, finish="error", error="no image")
        for key, text in texts.items()
    }
    firing = None if acted is None else fired(acted)
    return Answers(label, records, {"config_sha256": label, "sessions": [{"firing": firing}]})


def result(*all_answers: Answers) -> RunResult:
    task = ToyTask(images=3)
    return RunResult(task, task.items, all_answers, Path("runs/x"))


IDS = [item.id for item in ToyTask(images=3).items]
RIGHT = dict.fromkeys(IDS, "a star")
WRONG = dict.fromkeys(IDS, "no")


def scored(*all_answers: Answers) -> TaskScores:
    return score_run(result(*all_answers), draws=200)


def test_a_condition_is_scored_and_compared_with_the_first() -> None:
    none, vhr = scored(answers("none", WRONG), answers("vhr", RIGHT, acted=True)).conditions
    assert (none.status, none.change) == ("scored", None)
    assert none.score is not None and vhr.score is not None and vhr.change is not None
    assert none.score.totals["mean of the 2"]["accuracy"].value == 0
    change = vhr.change.totals["mean of the 2"].metrics["accuracy"]
    assert (change.delta, change.low, change.high) == (1, 1, 1)
    assert set(vhr.change.gained) == set(IDS)
    assert vhr.config_sha256 == "vhr"


def test_sections_are_the_groups_and_their_mean() -> None:
    sections = scored(answers("none", RIGHT), answers("vhr", WRONG, acted=True)).sections
    assert [section.title for section in sections] == ["easy", "hard", "mean of the 2"]
    assert [row.condition.label for row in sections[2].rows] == ["none", "vhr"]
    assert sections[2].rows[0].change is None


def test_a_silent_condition_is_named_and_not_scored() -> None:
    scores = scored(
        answers("none", RIGHT), answers("var", RIGHT, acted=False), answers("vhr", WRONG, True)
    )
    assert scores.silent == ["var"]
    assert [c.status for c in scores.conditions] == ["scored", "silent", "scored"]
    assert scores.conditions[1].score is None
    assert len(scores.sections[0].rows) == 2


def test_only_items_that_all_have_answered_are_scored() -> None:
    partly = {**RIGHT, IDS[0]: None}
    late = dict(list(RIGHT.items())[:10])
    scores = scored(answers("none", partly), answers("vhr", late, acted=True))
    assert (scores.asked, scores.scored) == (18, 9)
    assert scores.failures == {IDS[0]: "no image"}
    assert scores.conditions[0].errors == 1


def test_a_condition_that_has_not_begun_does_not_hide_the_others() -> None:
    scores = scored(answers("none", RIGHT), answers("vhr", {}))
    assert [c.status for c in scores.conditions] == ["scored", "unanswered"]
    assert scores.scored == 18


def test_without_any_answer_the_reason_is_given() -> None:
    with pytest.raises(ValueError, match="no item that every condition has answered: no image"):
        scored(answers("none", dict.fromkeys(IDS)))


def test_another_profile_scores_the_same_answers() -> None:
    class Strict(ToyTask):
        profile = "strict"

        def counts(self, item: Any, text: str) -> Any:
            return {**super().counts(item, text), "correct": 0.0}

    run = result(answers("none", RIGHT))
    strict = score_run(run, task=Strict(images=3), draws=200)
    assert strict.profile == "strict"
    assert strict.conditions[0].score is not None
    assert strict.conditions[0].score.totals["mean of the 2"]["accuracy"].value == 0
