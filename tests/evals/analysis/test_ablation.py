"""Ablation in batches of heads is a run with `HeadAblate` for each; it goes on when stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import YesNo, subject

from regaze.evals.analysis.ablation import MARGINS, Ablation, ablate
from regaze.evals.analysis.asked import Subject
from regaze.evals.analysis.head_per_row import To
from regaze.evals.asking.generation import Answerer, Generated
from regaze.evals.asking.prompts import Question
from regaze.hooks import attach
from regaze.interventions import HeadAblate

HEADS = ((0, 1), (1, 3), (2, 0), (2, 2))


def by_runs(of: Subject, heads: Any, to: To) -> list[list[float]]:
    """Margins of each item, with one head out after the other in runs of their own."""
    answerer: Answerer = of.answerer
    found: list[list[float]] = []
    for item in of.items:
        found.append([])
        for head in (None, *heads):
            specs = [HeadAblate(heads=(head,), to=to)] if head else []
            with attach(of.model, *specs, processor=answerer.processor), answerer.meter.running():
                (answer,) = answerer.ask([Question(item.prompt, of.image(item))])
            assert isinstance(answer, Generated) and answer.margin is not None
            found[-1].append(answer.margin)
    return found


@pytest.mark.parametrize(
    ("family", "to", "shared"),
    [
        ("llava", "zero", True),
        ("llava", "uniform", True),
        ("qwen2_vl", "zero", True),
        ("mistral3", "zero", True),
        ("gemma3", "zero", False),
        ("paligemma", "uniform", False),
    ],
)
def test_margins_are_those_of_runs_with_headablate(
    family: str, to: To, shared: bool, tmp_path: Path
) -> None:
    of = subject(family)
    done = ablate(of, tmp_path, heads=HEADS, to=to, rows=3)
    assert (done.why is None) == shared
    want = torch.tensor(by_runs(of, HEADS, to))
    got = torch.tensor([[row["plain"], *row["margins"]] for row in done.rows])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)
    assert float((want[:, 1:] - want[:, :1]).abs().max()) > 0.01
    right, yes, error = done.maps(of.host, of.items)
    effect = want[:, :1] - want[:, 1:]
    for place, (layer, head) in enumerate(HEADS):
        assert yes.values[layer, head] == pytest.approx(float(effect[:, place].mean()), abs=3e-4)
        signed = effect[:, place] * torch.tensor([1.0, -1.0, -1.0])
        assert right.values[layer, head] == pytest.approx(float(signed.mean()), abs=3e-4)
    assert int((~right.values.isnan()).sum()) == int((~error.values.isnan()).sum()) == len(HEADS)


def test_a_stopped_ablation_goes_on(tmp_path: Path) -> None:
    of = subject("llava")
    asked: list[str] = []

    class Counting(YesNo):
        def load_image(self, item: Any) -> Any:
            asked.append(item.id)
            return super().load_image(item)

    def stop(label: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    whole = ablate(of, tmp_path / "whole", layers=[1])
    counting = Counting(of.task.model)  # type: ignore[attr-defined]
    of = Subject(of.answerer, counting, of.items)
    with pytest.raises(KeyboardInterrupt):
        ablate(of, tmp_path / "cut", layers=[1], progress=stop)
    with (tmp_path / "cut" / MARGINS).open("ab") as file:
        file.write(b'{"item": "b", "pla')  # What a crash leaves.
    asked.clear()
    done = ablate(of, tmp_path / "cut", layers=[1])
    assert "a" not in asked[1:] and {"b", "c"} <= set(asked)
    assert [row["item"] for row in done.rows] == ["a", "b", "c"]
    assert [row["margins"] for row in done.rows] == [row["margins"] for row in whole.rows]
    assert done.heads == tuple((1, head) for head in range(of.host.n_heads))
    with pytest.raises(ValueError, match="heads"):
        ablate(of, tmp_path / "cut", layers=[2])
    assert len((tmp_path / "cut" / MARGINS).read_text().splitlines()) == 3


def test_the_cost_is_what_was_read(tmp_path: Path) -> None:
    of = subject("llava")
    done = ablate(of, tmp_path, heads=HEADS)
    config = json.loads((tmp_path / "manifest.json").read_text())["config"]
    assert config["heads"] == [list(head) for head in HEADS] and config["to"] == "zero"
    for row, batch in zip(done.rows, subject("llava", 1).batches(), strict=True):
        ids = batch.inputs["input_ids"][0]
        read = int(torch.isin(ids, torch.tensor(sorted(of.host.image_ids))).nonzero().max()) + 1
        assert row["columns"] == read + (len(HEADS) + 1) * (len(ids) - read)
    assert "4 heads x 3 items" in done.cost
    assert "turned off" in Ablation(HEADS, done.rows, "turned off").cost


def test_what_has_no_margin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="image patches"):
        ablate(subject("instructblip"), tmp_path)
    with pytest.raises(ValueError, match=r"\[9,0\]"):
        ablate(subject("llava"), tmp_path, heads=((9, 0),))
    monkeypatch.setattr(YesNo, "yes_no", False)
    with pytest.raises(ValueError, match="yes and no"):
        ablate(subject("llava"), tmp_path)
