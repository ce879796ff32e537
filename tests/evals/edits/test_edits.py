"""Edits of the painting world: their truth, and a study of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regaze.evals.edits import runner
from regaze.evals.edits.study import open_run, run_edits
from regaze.evals.edits.task import EditSource, open_strip, strip
from regaze.evals.edits.world import KINDS, OPPOSITE, Change, change, free, judge
from regaze.evals.pictures import pipelines
from regaze.evals.runs.conditions import Condition
from regaze.evals.sandbox.drawing import Object
from regaze.evals.sandbox.painting.prompts import Kind, Wanted
from regaze.evals.sandbox.painting.scenes import HELD_OUT, combinations, paint
from regaze.interventions.diffusion.inversion import invert

RED, BLUE = Object("circle", "red", 18, 18, 10, 0), Object("square", "blue", 46, 44, 10, 0)


def asked(kind: str, edit: Wanted, source: Wanted | None = None) -> Change:
    both = Wanted((Kind("red", "circle"), Kind("blue", "square")))
    return Change("test/0000", kind, source or both, edit)


def of(*objects: Object) -> Image.Image:
    return paint(objects)


def moved(item: Object, **fields: Any) -> Object:
    from dataclasses import replace

    return replace(item, **fields)


YELLOW = asked("colour", Wanted((Kind("yellow", "circle"), Kind("blue", "square"))))
TRIANGLE = asked("shape", Wanted((Kind("red", "triangle"), Kind("blue", "square"))))


def test_edits_are_drawn_once_and_for_all() -> None:
    for kind in KINDS:
        seen = [change("test", kind, n) for n in range(40)]
        assert seen == [change("test", kind, n) for n in range(40)]
        for one in seen:
            assert tuple(sorted(one.source.kinds)) in map(
                lambda kinds: tuple(sorted(kinds)), combinations("test", 2)
            )
            first, new = one.source.kinds[0], one.edit.kinds[0]
            assert one.source.kinds[1] == one.edit.kinds[1]
            if kind == "place":
                assert first == new
                assert one.edit.relation == OPPOSITE[one.source.relation or ""]
            else:
                same = "shape" if kind == "colour" else "colour"
                assert getattr(first, same) == getattr(new, same) and first != new
                assert not HELD_OUT & {new}
            before = judge(one.drawn, one.drawn, one)
            assert before.usable and before.kept and before.clean and not before.edited
            assert before.background == 0
    with pytest.raises(ValueError, match="kind"):
        change("test", "size", 0)
    with pytest.raises(ValueError, match="split"):
        change("train", "colour", 0)


def test_what_may_change() -> None:
    picture = of(RED, BLUE)
    red = free(picture, YELLOW)
    ground = np.asarray(of(), np.int64)
    differs = np.abs(np.asarray(of(RED), np.int64) - ground).sum(-1) > 0
    # All that the drawn object covers by a tenth, and nothing that it doesn't touch.
    assert not (red & ~differs).any() and red.sum() > 0.8 * differs.sum()
    circle = free(picture, TRIANGLE)
    assert not (red & ~circle).any()
    blue = np.abs(np.asarray(of(BLUE), np.int64) - ground).sum(-1) > 0
    to = Wanted((Kind("red", "circle"), Kind("blue", "square")), "right of")
    elsewhere = free(picture, asked("place", to))
    assert not (elsewhere & blue).any() and elsewhere.sum() > elsewhere.size / 2
    with pytest.raises(ValueError, match="no red circle"):
        free(of(BLUE), YELLOW)


def test_verdicts() -> None:
    source = of(RED, BLUE)
    new = moved(RED, colour="yellow")
    right = judge(source, of(new, BLUE), YELLOW)
    assert right.whole and right.background < 2 and right.outline == pytest.approx(1, abs=0.1)
    away = judge(source, of(moved(new, cx=30), BLUE), YELLOW)
    assert not away.edited and away.kept and away.outline is not None and away.outline < 0.8
    assert away.background > 10
    dragged = judge(source, of(new, moved(BLUE, cx=40)), YELLOW)
    assert dragged.edited and not dragged.kept and dragged.background > 10
    more = judge(source, of(new, BLUE, Object("cross", "white", 48, 14, 9, 0)), YELLOW)
    assert more.edited and more.kept and not more.clean and not more.whole
    untouched = judge(source, source, YELLOW)
    assert not untouched.edited and untouched.outline == 1
    assert judge(source, of(moved(RED, shape="triangle"), BLUE), TRIANGLE).whole
    assert not judge(of(BLUE), of(new, BLUE), YELLOW).usable
    right_of = Wanted((Kind("red", "circle"), Kind("blue", "square")), "right of")
    left_of = Wanted(right_of.kinds, "left of")
    flat = moved(RED, cy=44)
    place = asked("place", right_of, left_of)
    assert judge(
        of(flat, moved(BLUE, cx=36)), of(moved(flat, cx=54), moved(BLUE, cx=36)), place
    ).whole
    assert not judge(of(flat, BLUE), of(flat, BLUE), place).edited


def test_a_study(tmp_path: Path) -> None:
    """Painted and drawn sources, own and exact masks; what is done stays; it opens again."""
    loaded = pipelines.load("painter-mmdit")
    quick = {**runner.ARGUMENTS, "num_inference_steps": 2}
    conditions = [
        Condition.parse(text)
        for text in ("none", "consistedit:mask=exact,strength=0.5", "consistedit:words=object")
    ]
    for pictures in ("painted", "drawn"):
        out = tmp_path / pictures
        source = EditSource("validation", 1, ("colour", "place"), pictures)

        def make(source: EditSource = source, out: Path = out) -> Any:
            return run_edits(
                loaded.pipeline, conditions, source, out=out, identity=loaded.identity,
                arguments=quick, batch_size=2,
            )  # fmt: skip

        scored = make()
        assert [answer.firing is None for answer in scored.result.answers] == [True, False, False]
        strips = sorted(out.rglob("strips/*.png"))
        assert len(strips) == 6
        before = [path.stat().st_mtime_ns for path in strips]
        sources = {np.asarray(open_strip(path)[0]).tobytes() for path in strips}
        assert len(sources) == 2
        if pictures == "drawn":
            assert np.asarray(change("validation", "colour", 0).drawn).tobytes() in sources
        make()
        assert [path.stat().st_mtime_ns for path in strips] == before
        assert open_run(out).scored().scores[0].task == "edits"
    with pytest.raises(ValueError, match="settings|other"):
        run_edits(
            loaded.pipeline, conditions, source, out=out, identity=loaded.identity,
            arguments=runner.ARGUMENTS, batch_size=2,
        )  # fmt: skip


def test_conditions_share_an_inversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked_for = pipelines.load("painter-mmdit"), list[Any]()

    def counted(*given: Any, **more: Any) -> Any:
        asked_for.append(more["words"])
        return invert(*given, **more)

    monkeypatch.setattr("regaze.evals.edits.runner.invert", counted)
    named = [Condition.parse(t) for t in ("none", "consistedit", "consistedit:words=object")]
    source = EditSource("validation", 3, ("shape",), "drawn")
    quick = {**runner.ARGUMENTS, "num_inference_steps": 1}
    run_edits(
        loaded.pipeline, named, source, out=tmp_path, identity=loaded.identity, arguments=quick
    )
    objects = [change("validation", "shape", number).object for number in range(3)]
    assert asked_for[-1] == [(str(one),) for one in objects]
    assert len(asked_for) == 2  # The first two read the same words.


def test_edits_of_one_condition_name_the_same_words(tmp_path: Path) -> None:
    loaded = pipelines.load("painter-mmdit")
    both = [Condition.parse("consistedit+consistedit:words=object")]
    source = EditSource("validation", 1, ("shape",), "drawn")
    with pytest.raises(ValueError, match="must name the same words"):
        run_edits(loaded.pipeline, both, source, out=tmp_path, identity=loaded.identity)


def test_strips(tmp_path: Path) -> None:
    both = of(RED), of(BLUE)
    strip(*both).save(tmp_path / "s.png")
    for one, other in zip(both, open_strip(tmp_path / "s.png"), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"split": "train"}, "split"),
        ({"kinds": ("size",)}, "kinds"),
        ({"pictures": "x"}, "pictures"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EditSource(**fields)
