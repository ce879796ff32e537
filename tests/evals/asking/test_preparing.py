"""A question-stage method of one's own changes what is asked, and the run records it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from toy import ToyTask, toy_model

from regaze.evals.asking import preparing, runner
from regaze.evals.asking.encoding import Refused
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.preparing import Prepared, prepares
from regaze.evals.asking.prompts import Question
from regaze.evals.runs import records
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import Cost
from regaze.hooks.report import InterventionReport, LayerReport
from regaze.interventions import base
from regaze.interventions.base import Intervention


@dataclass(frozen=True)
class Polite(Intervention):
    """Ask politely."""

    name: ClassVar[str] = "polite"
    summary: ClassVar[str] = "says please"
    paper: ClassVar[str] = ""
    stage: ClassVar[Literal["attention", "question"]] = "question"

    word: str = "Please"

    def resolve(self, host: Any) -> Polite:
        return self

    def bind(self, host: Any) -> Any:
        raise ValueError("it asks")


class Asker:
    def __init__(self, answerer: Answerer, spec: Polite, share: bool) -> None:
        self.cost, self._spec, self._asked = Cost(), spec, 0

    def prepare(self, questions: Sequence[Question]) -> list[Prepared | Refused]:
        self._asked += len(questions)
        self.cost = Cost.total([self.cost, Cost(extra={"words": len(questions)})])
        return [
            Refused("nobody may ask that")
            if "ring" in one.prompt
            else Prepared(
                replace(one, prompt=f"{self._spec.word}: {one.prompt}"), {"word": self._spec.word}
            )
            for one in questions
        ]

    def report(self) -> InterventionReport:
        return InterventionReport("polite", self._asked, (LayerReport(0, self._asked, 1.0, 1.0),))


@pytest.fixture
def polite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(base._REGISTRY, "polite", Polite)
    monkeypatch.setattr(preparing, "_PREPARERS", dict(preparing._PREPARERS))
    yield


def run(out: Path) -> Any:
    model, processor = toy_model()
    identity = {"weights_sha256": "toy"}
    condition = Condition.parse("polite")
    return runner.run(ToyTask(), model, processor, [condition], out=out, identity=identity)


def test_a_method_of_ones_own_changes_what_is_asked(tmp_path: Path, polite: None) -> None:
    prepares("polite")(Asker)
    none, asked = run(tmp_path).answers
    prompts = {item.id: item.prompt for item in ToyTask().items}
    assert any(not record.ok for record in asked.records.values())
    for key, record in asked.records.items():
        if "ring" in prompts[key]:
            assert "nobody may ask that" in str(record.error)
        else:
            assert record.extra == {"word": "Please"}
            assert record.n_prompt_tokens > none.records[key].n_prompt_tokens
    assert asked.firing["fired"] and asked.cost.extra["words"] > 0
    # Its questions show the image as it is, so they go on sharing its prefix.
    assert asked.manifest["apart"] == none.manifest["apart"]


def test_a_method_that_nobody_prepares_says_what_to_do(tmp_path: Path, polite: None) -> None:
    with pytest.raises(ValueError, match="preparing.prepares"):
        run(tmp_path)


def test_answers_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    line = {"id": "a", "cluster": "a", "text": "yes", "crop": [1, 2, 3, 4], "n_look_tokens": 5}
    plain = {"id": "b", "cluster": "b", "text": "no", "crop": None, "n_look_tokens": 0}
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{json.dumps(line)}\n{json.dumps(plain)}\n")
    found = records.read(path)
    assert found["a", 0].extra == {"crop": [1, 2, 3, 4], "tokens": 5}
    assert found["b", 0].extra is None
    cost = Cost.from_dict({"items": 2, "look_prompts": 3, "look_tokens": 0, "look_s": 0.5})
    assert cost.extra == {"carve_prompts": 3, "carve_seconds": 0.5}
    assert Cost.from_dict(cost.to_dict()) == cost
