from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny_painter
from PIL import Image, ImageStat
from ranks import together

from regaze.evals.pictures import head_hunter, head_tests
from regaze.evals.pictures.head_hunter import Found, Search
from regaze.evals.pictures.head_tests import Head
from regaze.evals.pictures.heat import save_heat
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.runs.store import ConfigMismatchError
from regaze.hooks.attach import attach
from regaze.interventions.diffusion.soft_pag import SoftPAG

SHOTS = [Shot("a red circle", 0), Shot("a blue cross", 1), Shot("a white square", 2)]
SPEC = SoftPAG(scale=4.0, u=1.0)
SEARCH = Search(rounds=2, picks=2, spec=SPEC, layers=(1, 2, 3))
POOL = [(layer, head) for layer in (1, 2, 3) for head in (0, 1)]


def redness(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [ImageStat.Stat(image).mean[0] for image in images]


class Counting:
    """The objective, counting its calls; fails at one of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        if self.calls == self.fail_at:
            raise RuntimeError("killed")
        self.calls += 1
        return redness(images, prompts)


def hunt(
    out: Path,
    objective: Any = redness,
    search: Search = SEARCH,
    loaded: LoadedPipeline | None = None,
    **options: Any,
) -> Found:
    settings = {"arguments": tiny_painter.CALL, "batch_size": 3, **options}
    loaded = loaded or tiny_painter.shared()
    return head_hunter.hunt(loaded, SHOTS, objective, search, out=out, **settings)


def literal(heads: Sequence[Head]) -> float:
    """Mean score with these heads perturbed, the long way."""
    loaded = tiny_painter.shared()
    fields: dict[str, list[int]] = {}
    for layer, head in heads:
        fields.setdefault(f"L{layer}", []).append(head)
    specs = [SoftPAG(scale=4.0, u=1.0, heads=fields)] if heads else []
    with attach(loaded.pipeline, *specs):
        pictures = Painter(loaded.pipeline, tiny_painter.CALL).paint(SHOTS)
    return fmean(redness([picture.image for picture in pictures], []))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    out = tmp_path_factory.mktemp("hunt")
    return hunt(out), out


def test_each_round_tries_what_is_left_with_what_is_chosen_and_takes_the_best(
    found: tuple[Found, Path],
) -> None:
    result, _ = found
    chosen: list[Head] = []
    for one in result.rounds:
        scores = {head: literal([*chosen, head]) for head in POOL if head not in chosen}
        assert one.before == pytest.approx(literal(chosen), abs=1e-6)
        assert one.scores == pytest.approx(scores, abs=1e-6)
        best = sorted(scores, key=lambda head: -scores[head])[:2]
        assert one.chosen == tuple(best)
        chosen += best
    assert result.heads == tuple(chosen)
    assert result.score == pytest.approx(literal(chosen), abs=1e-6)


def test_the_result_is_a_spec_that_softpag_reads(found: tuple[Found, Path]) -> None:
    result, out = found
    assert SoftPAG.from_file(out / head_hunter.SPEC) == result.spec
    fields = json.loads((out / head_hunter.SPEC).read_text())
    assert fields["heads"] == head_tests.as_field(result.heads)
    with attach(tiny_painter.shared().pipeline, SoftPAG.from_file(out / head_hunter.SPEC)):
        pass


def test_a_search_that_was_stopped_goes_on_and_tests_nothing_twice(
    tmp_path: Path, found: tuple[Found, Path]
) -> None:
    tests = 0
    for stop in (0, 3, 5, None):
        objective = Counting(fail_at=stop)
        if stop is None:
            assert hunt(tmp_path, objective) == found[0]
        else:
            with pytest.raises(RuntimeError, match="killed"):
                hunt(tmp_path, objective)
            path = tmp_path / "scores.jsonl"
            path.touch()
            path.write_bytes(path.read_bytes() + b'{"round": 0, "test"')
        tests += objective.calls
    assert tests == (1 + 6) + (1 + 4) + 1
    again = Counting()
    assert hunt(tmp_path, again) == found[0]
    assert again.calls == 0


def test_a_finished_search_can_be_given_more_rounds(
    tmp_path: Path, found: tuple[Found, Path]
) -> None:
    one = Search(1, 2, SPEC, (1, 2, 3))
    assert hunt(tmp_path, search=one).rounds == found[0].rounds[:1]
    assert hunt(tmp_path) == found[0]


def test_two_processes_find_what_one_does(tmp_path: Path, found: tuple[Found, Path]) -> None:
    models = [tiny_painter.shared(), tiny_painter.fresh()]
    results = together(lambda world, model: hunt(tmp_path, loaded=model, world=world), models)
    for result in results:
        assert result == found[0]
    assert (tmp_path / "scores.jsonl").read_text() == (found[1] / "scores.jsonl").read_text()
    assert not list(tmp_path.glob("scores.rank*"))


def test_another_objective_or_setting_is_refused(found: tuple[Found, Path]) -> None:
    with pytest.raises(ConfigMismatchError, match="objective"):
        hunt(found[1], identity={"name": "other"})
    with pytest.raises(ConfigMismatchError, match=r"spec\.scale: 4\.0 there, 3\.0 now"):
        hunt(found[1], search=Search(2, 2, SoftPAG(scale=3.0, u=1.0), (1, 2, 3)))


@pytest.mark.parametrize("scores", [[1.0, 2.0], [1.0, 2.0, float("nan")], [1.0, 2.0, float("inf")]])
def test_an_objective_must_give_a_finite_number_for_each_picture(
    tmp_path: Path, scores: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"for 3 pictures \(unguided\): it must give one finite"):
        hunt(tmp_path, lambda images, prompts: scores)


def test_searches_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 rounds of 4 heads need 8, but there are 6"):
        hunt(tmp_path, search=Search(2, 4, SPEC, (1, 2, 3)))
    with pytest.raises(ValueError, match=r"no layer L9: this pipeline has L0 to L3"):
        hunt(tmp_path, search=Search(1, 1, SPEC, (9,)))
    with pytest.raises(ValueError, match=r"at least one round and one pick"):
        Search(0, 1)
    with pytest.raises(ValueError, match=r"leave out layers and heads"):
        Search(spec=SoftPAG(heads={"L1": [0]}))
    with pytest.raises(ValueError, match=r"changes nothing"):
        Search(spec=SoftPAG(scale=0.0))


def test_the_heat_map_shows_every_head(tmp_path: Path, found: tuple[Found, Path]) -> None:
    save_heat(tmp_path / "heads.png", found[0], "redness")
    with Image.open(tmp_path / "heads.png") as image:
        assert image.width > image.height > 100
