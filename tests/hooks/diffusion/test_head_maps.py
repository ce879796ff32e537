"""Maps of single heads are those that attention to the words is the mean of."""

from __future__ import annotations

import pytest
import tiny_painter
import torch

import regaze
from regaze.evals.pictures.once import paint
from regaze.evals.pictures.pipelines import LoadedPipeline, load
from regaze.evals.pictures.render import Painter, Shot
from regaze.hooks.diffusion import capture
from regaze.hooks.diffusion.head_maps import head_maps

WORDS = ("red", "circle", "absent")
SHOT = Shot("a red circle and a star", 1)
CALL = {"num_inference_steps": 2}


@pytest.fixture(scope="module", params=["painter-unet", "painter-mmdit"])
def loaded(request: pytest.FixtureRequest) -> LoadedPipeline:
    return load(request.param)


def test_the_mean_over_heads_and_steps_is_what_capture_sees(loaded: LoadedPipeline) -> None:
    painter = Painter(loaded.pipeline, {**loaded.arguments, **CALL})
    (plain,) = painter.paint([SHOT])
    with head_maps(loaded.pipeline, WORDS) as seen:
        (looked,) = painter.paint([SHOT])
    assert looked.image.tobytes() == plain.image.tobytes()
    assert seen.words == ("red", "circle") and seen.why_not == {}
    site = seen.read[1]
    with capture(loaded.pipeline, [site.name]) as whole:
        painter.paint([SHOT])
    for place, word in enumerate(seen.words):
        found = seen.mean(site)[:, place].mean(0)
        torch.testing.assert_close(found, whole.map(word)[0], rtol=1e-4, atol=1e-6)


def test_maps_see_what_methods_edit_and_leave_it_as_it_is(loaded: LoadedPipeline) -> None:
    edits = [regaze.Reweight(words=(("red", 3.0),))]
    edited = paint(loaded, SHOT, edits, CALL)
    looked = paint(loaded, SHOT, edits, CALL, words=WORDS)
    assert looked.picture.image.tobytes() == edited.picture.image.tobytes()
    assert looked.report.interventions[0].fired


def test_what_is_no_pipeline_is_refused() -> None:
    with (
        pytest.raises(TypeError, match="is no diffusers pipeline"),
        head_maps(torch.nn.Linear(1, 1), WORDS),
    ):
        pass


def test_a_negative_prompt_for_all_and_steps_that_are_told() -> None:
    loaded = load(str(tiny_painter.folder()))
    told: list[int] = []
    settings = {**loaded.arguments, **CALL, "guidance_scale": 2.0}
    both = [SHOT, Shot("a star", 2)]
    given = Painter(loaded.pipeline, {**settings, "negative_prompt": "a ring"}).paint(
        both, told.append
    )
    own = [shot._replace(negative="a ring") for shot in both]
    expected = Painter(loaded.pipeline, settings).paint(own)
    assert [one.image.tobytes() for one in given] == [one.image.tobytes() for one in expected]
    assert told == [0, 1]
