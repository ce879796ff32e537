"""PrimeComposer: its formulas on tensors, its literal form, pictures, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_painter
import torch
import torch.nn.functional as F
from largest import largest
from making import compose
from PIL import Image
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, noise, tiny
from torch import Tensor

import regaze
from regaze.interventions.diffusion import composing, unet_inversion
from regaze.interventions.diffusion.arranging import arrange
from regaze.interventions.diffusion.composing import Prior, Subject

PROMPT = "a red circle and a blue square"
GROUND = np.full((32, 32, 3), 40, np.uint8)
THING = np.full((16, 16, 3), 200, np.uint8)
PICTURES: dict[str, Any] = {"background": GROUND, "object": THING, "mask": (0, 0, 1, 1)}
BOX = (0.5, 0.25, 1.0, 0.75)


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def differ(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def paint(*specs: Any, prompt: Any = PROMPT, **more: Any) -> Tensor:
    call = {"num_inference_steps": 4, "guidance_scale": 2.0, **more}
    return tiny_painter.paint(prompt, *specs, **call)


# -- formulas ----------------------------------------------------------------------------------


def test_infused_logits_are_overwritten_logits() -> None:
    """Columns first, then rows: between two of the subject's tokens the rows' logits stand."""
    query, key, value, asking = noise(4, 2, 3, 10, 8, seed=1).double()
    subject = Subject.of(torch.tensor([0, 0, 1, 1, 0, 1, 0, 0, 1, 0], dtype=torch.bool))
    prior = Prior(asking, noise(2, 3, 4, 8, seed=2).double())
    scale = 0.3
    logits = query @ key.transpose(-1, -2) * scale
    given = asking @ prior.key.transpose(-1, -2) * scale
    for n, column in enumerate(subject.inside.tolist()):
        logits[..., :, column] = given[..., :, n]
    for n, row in enumerate(subject.inside.tolist()):
        logits[..., row, :] = given[..., :, n]

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    got = composing.infused(kernel, query, key, value, prior, subject)
    torch.testing.assert_close(got, logits.softmax(-1) @ value, atol=1e-12, rtol=0)


def test_the_prior_is_what_the_references_make_of_the_composites_subject() -> None:
    query, key, value = noise(3, 4, 2, 6, 8, seed=3).double()
    subject = Subject.of(torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.bool))
    kernel = F.scaled_dot_product_attention
    output, prior = composing.correlated(kernel, query, key, value, subject)
    some = [1, 2, 5]
    logits = query[2:] @ key[:2, :, some].transpose(-1, -2) * 8**-0.5
    want = logits.softmax(-1) @ value[:2, :, some]
    torch.testing.assert_close(output, torch.cat([want, want]), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        prior.query @ prior.key.transpose(-1, -2) * 8**-0.5, logits, atol=1e-12, rtol=0
    )


def test_the_subjects_words_are_read_by_its_tokens_alone() -> None:
    columns = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    seen = composing.confined(columns, torch.tensor([True, False]))
    assert seen.tolist() == [
        [[[True, True, True], [True, False, True]]],
        [[[True, True, True], [True, True, False]]],
    ]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inverted_steps_lead_back(kind: str) -> None:
    """Through a linear model, whose fixed point is reached: DDIM's own steps give the picture."""
    scheduler = FAMILIES["sd"].build().scheduler
    scheduler.register_to_config(prediction_type=kind)
    scheduler.set_timesteps(8)
    clean = noise(2, 4, 3, 3)
    levels = unet_inversion.levels("x", scheduler)
    found = unet_inversion.invert(lambda x, t: 0.1 * x + 0.2, clean, levels, kind, 30)
    assert found.shape == (2, 9, 4, 3, 3)
    x = found[:, 0]
    for step, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, found[:, step], atol=1e-4, rtol=0)
        x = scheduler.step(0.1 * x + 0.2, t, x)[0]
    # Its last step goes to the scheduler's final level, which holds a little noise.
    assert differ(x, clean) < 0.05


# -- in pipelines ------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
def test_the_same_domain_equals_its_literal_form(guided: bool) -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    with regaze.attach(pipe, compose(domain="same", around="background")) as run:
        got = kind.run(pipe, guided=guided)
    form: Any = run.specs[0].literal()  # type: ignore[attr-defined]
    with form.within(pipe, kind.running(guided)):
        want = kind.run(pipe, guided=guided)
    assert differ(got, want) < 1e-5
    assert differ(got, kind.run(pipe, guided=guided)) > 1e-2


def test_pictures_are_inverted_as_the_literal_form_does() -> None:
    pipe = tiny_painter.shared().pipeline
    for more in ({"domain": "same", "invert": "empty", "refine": 1}, {"refine": 0}):
        spec = regaze.PrimeComposer(**PICTURES, box=BOX, subject="blue square", **more)
        with regaze.attach(pipe, spec) as run:
            got = paint()
        form: Any = run.specs[0].literal()  # type: ignore[attr-defined]
        from regaze.hooks.diffusion.literal import Manner

        with form.within(pipe, Manner("unet", guided=True)):
            want = paint()
        assert differ(got, want) < 1e-4


def test_no_map_of_all_tokens_on_all() -> None:
    pipe, kind, side = tiny("sd"), FAMILIES["sd"], 24
    call: dict[str, Any] = {
        "height": 8 * side,
        "width": 8 * side,
        "latents": noise(1, 4, side, side),
    }
    with regaze.attach(pipe, compose(side, side, correlate=1.0)), largest() as seen:
        kind.run(pipe, 1, **call)
    assert 0 < seen.numbers < side**4  # A map of one head.


def test_what_is_kept_of_the_background() -> None:
    """Until the last step all but the box is the background's; then the model's."""
    spec = compose(keep=1.0, paste=0.0, correlate=0.0, subject=None)
    seen = []
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    stock = pipe.scheduler.step

    def step(output: Tensor, t: Any, sample: Tensor, **named: Any) -> Any:
        seen.append(sample)
        return stock(output, t, sample, **named)

    pipe.scheduler.step = step
    try:
        with regaze.attach(pipe, spec):
            kind.run(pipe, 1)
    finally:
        del pipe.scheduler.step
    begun = kind.call(1, True)["latents"]
    background, thing = noise(4, 4, HEIGHT, COLUMNS, seed=11), noise(4, 4, HEIGHT, COLUMNS, seed=12)
    box, inside = torch.zeros(2, HEIGHT, COLUMNS, dtype=torch.bool)
    box[1:7, 0:5] = True  # Whose middles lie in (0, 0.1, 0.8, 0.9).
    inside[2:6, 1:4] = True
    for number, sample in enumerate(seen):
        torch.testing.assert_close(sample[0][:, ~box], background[number][:, ~box])
    torch.testing.assert_close(seen[0][0][:, inside], thing[0][:, inside])
    noisy = box & ~inside
    torch.testing.assert_close(seen[0][0][:, noisy], begun[0][:, noisy])


def test_things_are_put_into_boxes() -> None:
    ground, thing = Image.new("RGB", (40, 20), (0, 0, 90)), Image.new("RGB", (10, 10), (200, 0, 0))
    # The mask is four pixels wide and two tall, the box ten by ten: ten by five, in its middle.
    mask = np.zeros((10, 10))
    mask[3:5, 2:6] = 1
    from regaze.interventions.diffusion.places import stored

    made = arrange("x", ground, thing, stored(mask), (0.5, 0.5, 0.75, 1.0), (40, 20))
    want = torch.zeros(20, 40, dtype=torch.bool)
    want[12:17, 20:30] = True
    assert torch.equal(made.mask, want)
    red = torch.from_numpy(np.asarray(made.pasted).copy())[..., 0] == 200
    assert torch.equal(red, want)
    assert made.reference.getpixel((0, 0)) == (0, 0, 90)  # The background's mean colour.
    assert torch.equal(made.region[:, 0], torch.zeros(20, dtype=torch.bool))
    assert made.region.sum() == 100


def test_a_transparent_picture_is_its_own_mask() -> None:
    thing = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    thing.paste((200, 0, 0, 255), (4, 4, 12, 12))
    plain: dict[str, Any] = {"background": GROUND, "box": BOX, "subject": "square"}
    by_alpha = paint(regaze.PrimeComposer(object=thing, **plain))
    mask = np.asarray(thing.getchannel("A"))
    by_mask = paint(regaze.PrimeComposer(object=thing.convert("RGB"), mask=mask, **plain))
    assert torch.equal(by_alpha, by_mask)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regaze.PrimeComposer(background=3), "background is 3, no file or picture"),
        (lambda: regaze.PrimeComposer(**PICTURES, box=(0, 0, 2, 1)), "in shares of the picture"),
        (lambda: regaze.PrimeComposer(**PICTURES, correlate=2), "correlate must be"),
        (lambda: regaze.PrimeComposer(**PICTURES, domain="other"), "unknown domain"),
        (lambda: regaze.PrimeComposer(**PICTURES, subject=""), "no word or column number"),
        (lambda: regaze.PrimeComposer(**PICTURES, refine=-1), "refine must be"),
        (lambda: regaze.PrimeComposer(latents="x", background="y"), "in the place of pictures"),
        (lambda: paint(regaze.PrimeComposer(object=THING)), "give background, a picture"),
        (
            lambda: paint(regaze.PrimeComposer("none.png", "none.png")),
            "there is no background 'none.png'",
        ),
        (
            lambda: paint(regaze.PrimeComposer(GROUND, THING, box=BOX)),
            "where the object is in its picture isn't known",
        ),
        (
            lambda: paint(regaze.PrimeComposer(GROUND, THING, np.ones((4, 4)), BOX)),
            "a mask of 4 x 4 .* isn't one of the object's picture, which has 16 x 16",
        ),
        (
            lambda: paint(regaze.PrimeComposer(GROUND, THING, np.zeros((16, 16)), BOX)),
            "mask is empty",
        ),
        (
            lambda: paint(regaze.PrimeComposer(GROUND[:20], THING, (0, 0, 1, 1), BOX)),
            "the background has 32 x 20 pixels, and the picture to make 32 x 32",
        ),
        (
            lambda: paint(regaze.PrimeComposer(**PICTURES, box=BOX, subject="star")),
            "'star' isn't in the prompt; its tokens are",
        ),
        (lambda: regaze.attach(tiny("sd3"), compose()), "its joint attention isn't what"),
        (lambda: regaze.attach(tiny("sd").unet, compose()), "moves a pipeline's latents"),
        (
            lambda: regaze.attach(tiny("sd"), compose(layers=("mid_block.attentions.0.x",))),
            "primecomposer: ",
        ),
    ],
)
def test_what_makes_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_latents_of_other_steps() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    with (
        regaze.attach(pipe, compose()),
        pytest.raises(ValueError, match=r"'background' of shape \(6, 4, 8, 6\).*\(4, 4, 8, 6\)"),
    ):
        kind.run(pipe, num_inference_steps=5)


def test_pipelines_that_start_from_a_picture() -> None:
    for family in ("img2img", "inpaint"):
        pipe, kind = tiny(family), FAMILIES[family]
        with regaze.attach(pipe, compose()), pytest.raises(ValueError, match="text-to-image"):
            kind.run(pipe)


def test_a_scheduler_whose_latents_are_not_known() -> None:
    from diffusers import DPMSolverSinglestepScheduler

    pipe = tiny_painter.fresh().pipeline
    pipe.scheduler = DPMSolverSinglestepScheduler()
    with (
        regaze.attach(pipe, regaze.PrimeComposer(**PICTURES, box=BOX)),
        pytest.raises(
            ValueError, match="step of DPMSolverSinglestepScheduler isn't known; use DDIM"
        ),
    ):
        pipe(PROMPT, num_inference_steps=2, output_type="latent")


def test_the_exceptional_prompt_has_no_places_and_leaves_the_encoder_as_it_is() -> None:
    """Other threads may read prompts meanwhile."""
    pipe = tiny_painter.shared().pipeline
    encoder: Any = pipe.text_encoder
    (name,) = (n for n, _ in encoder.named_parameters() if n.endswith("position_embedding.weight"))
    weight = encoder.get_parameter(name)
    ids = torch.full((1, pipe.tokenizer.model_max_length), pipe.tokenizer.pad_token_id)
    places = {name: torch.zeros_like(weight)}
    wanted = torch.func.functional_call(encoder, places, (ids,))[0]
    meanwhile = []
    with encoder.register_forward_hook(lambda *_: meanwhile.append(encoder.get_parameter(name))):
        found, _ = unet_inversion.text_of("", pipe, "exceptional")
    assert torch.equal(found, wanted)
    (seen,) = meanwhile
    assert seen is weight
    assert seen.any()
