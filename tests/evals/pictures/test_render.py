from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_painter
from PIL import Image

from regaze.evals.pictures.render import Painter, Shot

PROMPT = "a red circle and a blue square"


def painter(**arguments: Any) -> Painter:
    return Painter(tiny_painter.shared().pipeline, {**tiny_painter.CALL, **arguments})


def test_a_picture_starts_from_the_same_noise_in_every_batch() -> None:
    shots = [Shot(PROMPT, 3), Shot("a green cross", 4), Shot(PROMPT, 4)]
    together = painter().paint(shots)
    for shot, picture in zip(shots, together, strict=True):
        (alone,) = painter().paint([shot])
        difference = np.asarray(alone.image, int) - np.asarray(picture.image, int)
        assert abs(difference).max() <= 1
    assert together[0].image != together[2].image


def test_prompts_of_one_seed_start_from_noise_of_their_own() -> None:
    fake: Any = Fake(images=[Image.new("RGB", (4, 4))] * 4)
    shots = [Shot(PROMPT, 0), Shot(PROMPT, 1), Shot("a green cross", 0), Shot(PROMPT, 0)]
    Painter(fake, {}).paint(shots)
    assert fake.seeds == [shot.noise_seed for shot in shots]
    assert fake.seeds[0] == fake.seeds[3]
    assert len(set(fake.seeds)) == 3


def test_the_noise_of_a_picture_is_the_same_in_every_version() -> None:
    assert Shot(PROMPT, 0).noise_seed == 3951252188
    assert Shot(PROMPT, 12).noise_seed == 390924226


def test_settings_hold_what_was_given_and_the_pipelines_own_defaults() -> None:
    settings = painter(guidance_scale=5.0).settings
    assert settings["guidance_scale"] == 5.0
    assert settings["eta"] == 0.0
    assert "output_type" not in settings


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown argument .*did you mean guidance_scale"):
        painter(guidance_scal=3)
    with pytest.raises(ValueError, match=r"latents can't be set"):
        painter(latents=None)
    with pytest.raises(ValueError, match=r"takes no prompt"):
        Painter(SimpleNamespace(), {})


class Fake:
    """A pipeline that gives what it was made with, and notes the seeds of its generators."""

    def __init__(self, **output: Any) -> None:
        self.output = output
        self.seeds: list[int] = []

    def __call__(
        self, prompt: Any, generator: Any, output_type: str, negative_prompt: Any = None
    ) -> Any:
        self.seeds += [one.initial_seed() for one in generator]
        self.negative = negative_prompt
        return SimpleNamespace(**self.output)


def test_what_a_safety_checker_held_back_is_marked() -> None:
    images = [Image.new("L", (4, 4))] * 2
    fake: Any = Fake(images=images, nsfw_content_detected=[False, True])
    pictures = Painter(fake, {}).paint([Shot(PROMPT, 0), Shot(PROMPT, 1)])
    assert [picture.flagged for picture in pictures] == [False, True]
    assert pictures[0].image.mode == "RGB"


def test_prompts_may_have_negative_prompts_of_their_own() -> None:
    fake: Any = Fake(images=[Image.new("RGB", (4, 4))] * 2)
    shots = [Shot(PROMPT, 0), Shot(PROMPT, 1, "a blue cross")]
    Painter(fake, {}).paint(shots)
    assert fake.negative == ["", "a blue cross"]
    assert fake.seeds == [Shot(PROMPT, 0).noise_seed, Shot(PROMPT, 1).noise_seed]
    assert "negative" not in shots[0].to_dict()
    assert shots[1].to_dict() == {"prompt": PROMPT, "seed": 1, "negative": "a blue cross"}
    Painter(fake, {}).paint([Shot(PROMPT, 0), Shot(PROMPT, 1)])
    assert fake.negative is None
    with pytest.raises(ValueError, match="negative prompts of their own"):
        Painter(fake, {"negative_prompt": "blurry"}).paint(shots)

    class Without:
        def __call__(self, prompt: Any, generator: Any, output_type: str) -> Any: ...

    without: Any = Without()
    with pytest.raises(ValueError, match="Without takes no negative prompt"):
        Painter(without, {}).paint(shots)


def test_videos_come_as_frames() -> None:
    fake: Any = Fake(frames=[[Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(5)]])
    (picture,) = Painter(fake, {}).paint([Shot(PROMPT, 0)])
    assert len(picture.frames) == 5
    assert picture.image.getpixel((0, 0)) == (2, 0, 0)
    assert picture.strip.size == (20, 4)
    assert [picture.strip.getpixel((4 * i, 3)) for i in range(5)] == [(i, 0, 0) for i in range(5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number, got inf"),
        ({"sigmas": [1.0, float("nan")]}, "sigmas's parts must be a finite number"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1"),
        ({"num_inference_steps": 1.5}, "num_inference_steps must be a whole number"),
        ({"height": -8}, "height must be a whole number of at least 1, got -8"),
        ({"width": True}, "width must be a whole number"),
        ({"eta": 10**400}, "eta is too large"),
    ],
)
def test_arguments_that_make_no_picture_are_refused_at_once(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Painter(tiny_painter.shared().pipeline, arguments)


def test_what_a_pipeline_chokes_on_is_one_error_and_nan_is_no_picture() -> None:
    loaded = tiny_painter.fresh()
    for name, value in (("clip_skip", 99), ("callback_on_step_end", 5)):
        painter = Painter(loaded.pipeline, {**tiny_painter.CALL, name: value})
        with pytest.raises(ValueError, match=f"Pipeline fails with .*{name}={value}"):
            painter.paint([Shot("a red circle", 0)])
    next(loaded.pipeline.unet.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="a picture that isn't finite: its weights hold NaN"):
        Painter(loaded.pipeline, tiny_painter.CALL).paint([Shot("a red circle", 0)])
