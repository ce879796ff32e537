"""Heads found for a method: by the margin of right answers, and by what captions get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from heads import subject
from tiny import tiny
from toy import ToyTask

from regaze.evals.analysis.asked import Subject
from regaze.evals.analysis.search import Found, _places, by_attribution, by_margin
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.prompts import Question
from regaze.evals.benchmarks.chair import Chair
from regaze.hooks import attach
from regaze.interventions import ADHH, HeadAblate, parse


def test_by_margin_is_the_gain_of_runs_with_one_head() -> None:
    of = subject("llava")
    found = by_margin(of, HeadAblate(heads=((0, 0),)), layers=[1])
    answerer = of.answerer

    def score(*specs: HeadAblate) -> float:
        signs = [1 if item.target == "yes" else -1 for item in of.items]
        with attach(of.model, *specs, processor=answerer.processor), answerer.meter.running():
            said = [answerer.ask([Question(i.prompt, of.image(i))])[0] for i in of.items]
        odds = [one.margin for one in said if isinstance(one, Generated) and one.margin is not None]
        return float(np.mean([sign * odd for sign, odd in zip(signs, odds, strict=True)]))

    plain = score()
    for head in range(of.host.n_heads):
        gain = score(HeadAblate(heads=((1, head),))) - plain
        assert float(found.values[1, head]) == pytest.approx(gain, abs=2e-4)
    assert bool(found.values[0].isnan().all())


def describing(truth: set[str]) -> Subject:
    """Captions of a tiny model, each of whose words is an object."""
    model = tiny("llava")
    pictures = {str(number): model.picture(number) for number in range(2)}
    task = Chair.from_truth(
        dict.fromkeys(pictures, truth), str.split, pictures.__getitem__, max_new_tokens=6
    )
    return Subject(Answerer(model.model, model.processor, 6), task, task.items)


def test_attribution_needs_words_of_both_kinds() -> None:
    of = describing(set())
    said = [
        one.text  # type: ignore[union-attr]
        for item in of.items
        for one in of.answerer.ask([Question(item.prompt, of.image(item))])
    ]
    words = {word for text in said for word in text.split()[1:]}
    with pytest.raises(ValueError, match="no true words were given"):
        by_attribution(of)
    ticks: list[tuple[int, int]] = []
    found = by_attribution(
        describing({min(words)}), progress=lambda _, done, of: ticks.append((done, of))
    )
    assert ticks == [(1, 2), (2, 2)]
    assert float(found.values.abs().max()) > 0.01
    with pytest.raises(ValueError, match="ask chair, not toy"):
        by_attribution(Subject(of.answerer, ToyTask(2), ToyTask(2).items))
    with pytest.raises(ValueError, match="answers to chair are neither"):
        by_margin(of, ADHH())


def test_a_words_place_is_the_token_that_completes_it() -> None:
    pieces = ["a", " cat", "tle", " and", " a", " d", "og", "."]
    names = {"cat", "cattle", "dog"}

    def mentions(count: int) -> list[str]:
        return [w for w in "".join(pieces[:count]).replace(".", "").split() if w in names]

    assert _places(mentions, torch.arange(len(pieces))) == {2: "cattle", 6: "dog"}
    assert _places(lambda _: [], torch.arange(3)) == {}


def test_a_spec_takes_heads_from_the_file(tmp_path: Path) -> None:
    of = subject("llava")
    ranked = by_margin(of, HeadAblate(heads=((0, 0),)), layers=[0])
    found = Found("headablate", "margin", "toy", "POPE", 4, ranked.top(2), ranked)
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(found.to_dict()))
    assert parse(f"headablate:heads=@{path}") == HeadAblate(heads=ranked.top(2))
    bare = tmp_path / "bare.json"
    bare.write_text("[[1,2]]")
    assert parse(f"adhh:threshold=0.3,heads=@{bare}") == ADHH(((1, 2),), threshold=0.3)
    with pytest.raises(ValueError, match="has no entry 'layers', only by, heads"):
        parse(f"adhh:layers=@{path}")
    (tmp_path / "no.json").write_text("heads")
    with pytest.raises(ValueError, match="is no JSON file"):
        parse(f"adhh:heads=@{tmp_path / 'no.json'}")
    with pytest.raises(FileNotFoundError):
        parse(f"adhh:heads=@{tmp_path / 'none.json'}")
