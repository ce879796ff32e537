"""Tallies are the sums of each answer's counts, whoever else gave the same answer."""

from __future__ import annotations

import numpy as np
from popes import pope

from regaze.evals.scoring.tallies import System, Tallies


def test_an_answer_counts_by_its_own_question() -> None:
    task = pope(images=4)
    # One question an image, so that the same word is right about one and wrong about the next.
    items = [task.items[i] for i in (0, 3, 4, 7)]
    systems = [
        System([dict.fromkeys((item.id for item in items), word) for word in words])
        for words in (("yes", "no"), ("no", "no"))
    ]
    found = Tallies(task, items, systems)
    for place, system in enumerate(systems):
        for seed, answers in enumerate(system.answers):
            for index, item in enumerate(items):
                cell = found.counts[found.cluster_of[index], place, seed, found.group_of[index]]
                counts = task.counts(item, answers[item.id])
                assert dict(zip(found.keys, cell, strict=True)) == counts
    assert {item.target for item in items} == {"yes", "no"}
    rights = [[item.target == "no" for item in items] for _ in systems]
    # Of two seeds that contradict each other neither has a majority.
    assert np.array_equal(found.correct, [[False] * 4, rights[1]])
