from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from scored import fired, pope_run, pope_scores, run
from toy import ToyTask

from regaze.evals.runs.records import Record
from regaze.evals.runs.results import Answers
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.scoring.statistics import holm
from regaze.evals.scoring.thresholds import AUC
from regaze.evals.task import POOLED


def answers(label: str, texts: Mapping[str, str | None], acted: bool | None = None) -> Answers:
    records = {
        key: Record(key, key.partition("/")[2][0], text)
        if text is not None
        else Record(key, key, finish="error", error="no image")
        for key, text in texts.items()
    }
    firing = None if acted is None else fired(label, acted)
    return Answers(label, records, {"config_sha256": label, "sessions": [{"firing": firing}]})


IDS = [item.id for item in ToyTask(images=3).items]
RIGHT = dict.fromkeys(IDS, "a star")
WRONG = dict.fromkeys(IDS, "no")


def scored(*all_answers: Answers) -> TaskScores:
    return score_run(run(ToyTask(images=3), *all_answers), draws=200)


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
    assert [section.title for section in sections] == [
        "easy",
        "hard",
        POOLED,
        "mean of the 2",
    ]
    assert [section.items for section in sections] == [9, 9, 18, 18]
    assert [row.condition.label for row in sections[3].rows] == ["none", "vhr"]
    assert sections[3].rows[0].change is None


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

    result = run(ToyTask(images=3), answers("none", RIGHT))
    strict = score_run(result, task=Strict(images=3), draws=200)
    assert strict.profile == "strict"
    assert strict.conditions[0].score is not None
    assert strict.conditions[0].score.totals["mean of the 2"]["accuracy"].value == 0


def test_controls_stand_last_and_are_named() -> None:
    rows = pope_scores().sections[0].rows
    assert [(row.condition.label, row.condition.control) for row in rows] == [
        ("none", None),
        ("vhr", None),
        ("pai", None),
        ("none@blank", "blank image"),
        ("vhr:heads=random", "random heads"),
    ]


def test_p_values_are_adjusted_over_methods_and_groups_and_controls_are_no_tests() -> None:
    scores = pope_scores()
    changes = {c.label: c.change for c in scores.conditions if c.change}
    tested = [changes[label] for label in ("vhr", "pai")]
    cells = [change.groups[name].metrics["f1"] for change in tested for name in change.groups]
    assert [cell.p_holm for cell in cells] == holm([cell.p for cell in cells])
    total = [change.totals["mean of the 2"].metrics["f1"] for change in tested]
    assert [cell.p_holm for cell in total] == holm([cell.p for cell in total])
    control = changes["none@blank"].groups["random"].metrics["f1"]
    assert control.p_holm is None


def test_a_single_test_is_not_adjusted() -> None:
    scores = scored(answers("none", WRONG), answers("vhr", RIGHT, acted=True))
    change = scores.conditions[1].change
    assert change is not None
    assert change.totals["mean of the 2"].metrics["accuracy"].p_holm is None
    assert change.groups["easy"].metrics["accuracy"].p_holm is not None


def test_auc_stands_among_the_metrics_where_all_margins_are_known() -> None:
    assert AUC in pope_scores().directions
    cut = pope_run()
    first = dict(cut.answers[0].records)
    key = next(iter(first))
    first[key] = replace(first[key], margin=None)
    without = replace(cut, answers=[replace(cut.answers[0], records=first), *cut.answers[1:]])
    fixed = [replace(a, by_seed={}) for a in without.answers]
    assert AUC not in score_run(replace(without, answers=fixed), draws=50).directions


def test_of_several_seeds_the_mean_is_scored_and_their_spread_is_told() -> None:
    result = pope_run(seeds=3)
    scores = score_run(result, draws=100)
    assert scores.seeds == 3
    own = scores.conditions[0].score
    assert own is not None
    pooled = own.totals[POOLED]["accuracy"]
    assert pooled.seeds is not None
    by_hand = [
        sum(record.text == item.target for item in result.items for record in [by_id[item.id]])
        / len(result.items)
        for by_id in result.answers[0].by_seed.values()
    ]
    assert pooled.seeds.values == pytest.approx(by_hand)
    assert pooled.value == pytest.approx(sum(by_hand) / 3)
    assert (pooled.seeds.low, pooled.seeds.high) == (min(by_hand), max(by_hand))


def test_an_item_counts_only_if_every_seed_has_answered_it() -> None:
    result = pope_run(seeds=2)
    first = result.answers[0]
    key = result.items[0].id
    second = {k: v for k, v in first.by_seed[1].items() if k != key}
    late = replace(first, by_seed={**first.by_seed, 1: second})
    scores = score_run(replace(result, answers=[late, *result.answers[1:]]), draws=50)
    assert scores.scored == scores.asked - 1


def test_with_several_seeds_most_of_them_decide_what_flipped() -> None:
    task = ToyTask(images=3)
    key = task.items[0].id

    def said(label: str, *texts: str) -> Answers:
        by_seed = {
            seed: {
                i.id: Record(i.id, i.cluster, text if i.id == key else "star") for i in task.items
            }
            for seed, text in enumerate(texts)
        }
        return replace(answers(label, {}, acted=True if label == "vhr" else None), by_seed=by_seed)

    def change(*texts: str) -> tuple[str, ...]:
        scores = score_run(run(task, said("none", *["star"] * 3), said("vhr", *texts)), draws=20)
        assert scores.conditions[1].change is not None
        return scores.conditions[1].change.lost

    assert change("star", "no", "no") == (key,)
    assert change("star", "star", "no") == ()
