"""A study of placements on a tiny painter: every item's own places, controls, reading again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_painter

from regaze.evals.places.runner import Placing
from regaze.evals.places.study import open_run, run_places
from regaze.evals.places.task import Places, PlaceSource
from regaze.evals.runs.conditions import Condition
from regaze.evals.scoring.compare import to_json

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 2.0}
COMPOSE = "primecomposer:subject=object,invert=empty,refine=0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_study_of_compositions_is_resumed_and_read_again(tmp_path: Path) -> None:
    source = PlaceSource("test", 2, ("same", "sketch"))
    conditions = [Condition.parse(text) for text in (COMPOSE, f"{COMPOSE}@wrong")]
    given: Any = {"out": tmp_path / "run", "arguments": ARGUMENTS}
    painter = tiny_painter.shared()
    scored = run_places(painter, conditions, source, **given)
    assert scored is not None
    labels = [answers.label for answers in scored.result.answers]
    assert labels == ["none", *(condition.label for condition in conditions)]
    painted = {
        path.parent.parent.name: path.read_bytes()
        for path in (tmp_path / "run").glob("*/pictures/same_0000.png")
    }
    assert len(set(painted.values())) == 3
    # Inversions are shared; what another item's thing makes isn't.
    assert len(list((tmp_path / "run/latents").iterdir())) == 2 * 4
    again = run_places(painter, conditions, source, **given)
    assert again is not None and to_json(again.scores) == to_json(scored.scores)
    reread = open_run(tmp_path / "run").scored(0)
    assert to_json(reread.scores) == to_json(scored.scores)


def test_every_item_has_its_own_regions(tmp_path: Path) -> None:
    source = PlaceSource("test", 2, ("regions",))
    work = Placing(Places(source, tmp_path), tiny_painter.shared(), ARGUMENTS, 2)
    spec = Condition.parse("regions:base=0.1").specs[0]
    own: Any = [work._filled(spec, item, "given") for item in work.items]
    for item, filled in zip(work.items, own, strict=True):
        asked = work.task.asked(item)
        assert [place for place, _ in filled.regions] == list(asked.boxes)
        assert [text for _, text in filled.regions] == [f"a {kind}" for kind in asked.wanted.kinds]
        wrong: Any = work._filled(spec, item, "wrong")
        assert {text for _, text in wrong.regions} == {text for _, text in filled.regions}
        assert all(a != b for a, b in zip(wrong.regions, filled.regions, strict=True))


def test_what_makes_no_sense(tmp_path: Path) -> None:
    work = Placing(
        Places(PlaceSource("test", 2, ("regions",)), tmp_path), tiny_painter.shared(), ARGUMENTS, 2
    )
    with pytest.raises(ValueError, match="regions have no object to compose"):
        work.resolve(Condition.parse("primecomposer"))
    with pytest.raises(ValueError, match="@blank is for models that read an image"):
        work.resolve(Condition.parse("regions@blank"))
    for wrong in ({"split": "train"}, {"kinds": ("x",)}):
        with pytest.raises(ValueError, match="places: unknown"):
            PlaceSource(**wrong)
