"""Words and prompts on a pipeline with encoders; what methods that edit texts refuse, and how."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_painter
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel
from tiny_pipelines import FAMILIES, WIDTH, ddim, noise, quiet, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion.text import read_prompt
from regaze.interventions.diffusion.word_columns import read_weights

PROMPT = "a red circle and a blue square"


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def paint(*specs: Any, prompt: Any = PROMPT, **more: Any) -> Tensor:
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, **more}
    return tiny_painter.paint(prompt, *specs, **call)


def embedded(text: str) -> dict[str, Tensor]:
    pipe = tiny_painter.shared().pipeline
    return {"text": pipe.encode_prompt(text, "cpu", 1, False)[0]}


def test_a_negative_prompt_is_read_by_the_pipelines_own_encoder() -> None:
    want = paint(regaze.NAG(embeddings=embedded("a green circle")))
    assert torch.equal(paint(regaze.NAG(negative="a green circle")), want)
    # Without guidance of its own the pipeline passes it over; this doesn't.
    assert torch.equal(paint(regaze.NAG(), negative_prompt="a green circle"), want)
    empty = paint(regaze.NAG(embeddings=embedded("")))
    assert torch.equal(paint(regaze.NAG()), empty)
    assert torch.equal(paint(regaze.NAG(negative=""), negative_prompt="a green circle"), empty)
    assert not torch.equal(empty, want)
    assert regaze.NAG().controls() == {"empty": regaze.NAG(negative="")}
    assert regaze.NAG(negative="").controls() == {}


def test_regions_are_read_by_the_pipelines_own_encoder() -> None:
    places = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    texts = ["a green circle", "a red square"]
    by_text = paint(regaze.Regions(list(zip(places, texts, strict=True)), stop=1))
    both = {"text": torch.cat([embedded(text)["text"] for text in texts])}
    spec = regaze.Regions([(place, "") for place in places], stop=1, embeddings=both)
    assert torch.allclose(by_text, paint(spec), atol=1e-5)
    swapped = regaze.Regions(list(zip(places, texts[::-1], strict=True)), stop=1)
    assert not torch.allclose(by_text, paint(swapped), atol=1e-3)


def test_one_region_of_everything_with_the_base_prompt_is_the_plain_model() -> None:
    whole = regaze.Regions([((0, 0, 1, 1), PROMPT)], base=0, stop=1)
    assert torch.allclose(paint(whole), paint(), atol=1e-5)


def test_the_effect_of_regions_is_measured_against_the_base_prompt_alone() -> None:
    pipe, kind = tiny("sd3"), FAMILIES["sd3"]
    text = {"text": noise(1, 7, WIDTH, seed=9)}
    effects = []
    for base in (0.0, 0.5):
        spec = regaze.Regions([((0, 0, 0.5, 1), "")], base=base, stop=1, embeddings=text)
        with regaze.attach(pipe, spec) as attached:
            kind.run(pipe, num_inference_steps=1)
        # What enters the first layer is the same in both runs.
        effects.append(attached.report().interventions[0].layers[0].effect)
    assert effects[1] == pytest.approx(effects[0] / 2, rel=1e-3) and effects[1] > 0


def test_another_mask_in_a_second_run_takes_effect() -> None:
    pipe, kind = tiny("sd3"), FAMILIES["sd3"]
    text = {"text": noise(1, 7, WIDTH, seed=9)}
    found = []
    for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1)):
        with regaze.attach(pipe, regaze.Regions([(box, "")], stop=1, embeddings=text)):
            found.append(kind.run(pipe))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_words_are_columns() -> None:
    pipe = tiny_painter.shared().pipeline
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(PROMPT).input_ids)
    red = next(i for i, token in enumerate(tokens) if token.startswith("red"))
    want = paint(regaze.Reweight({red: 2.5}))
    assert torch.equal(paint(regaze.Reweight({"red": 2.5})), want)
    assert torch.equal(paint(regaze.Reweight("a (red:2.5) circle and a blue square")), want)
    assert not torch.equal(want, paint())
    # Each prompt of a batch has its own place for a word.
    two = paint(regaze.Reweight({"red": 2.5}), prompt=["a blue and red circle", PROMPT])
    alone = paint(regaze.Reweight({"red": 2.5}), prompt=["a blue and red circle"])
    assert torch.allclose(two[:1], alone, atol=1e-5)
    # Only what is made stronger has a control.
    (weaker,) = regaze.Reweight({"red": 2.5, "a": 0.5}).controls().values()
    assert weaker == regaze.Reweight({"red": 0.4, "a": 2.0})
    assert weaker.controls() == {}
    # Words of one list that a prompt lacks may be left out.
    spec = regaze.Reweight({"red": 2.5, "green": 3.0}, absent="skip")
    assert torch.equal(paint(spec), want)
    with pytest.raises(ValueError, match="unknown absent 'drop'; known: raise, skip"):
        regaze.Reweight({"red": 2.5}, absent="drop")


@pytest.mark.parametrize("maps", ["own", "first"])
def test_a_word_has_a_window_of_its_own(maps: str) -> None:
    spec = regaze.Reweight({"red": 2.5}, maps=maps)
    late = paint(replace(spec, windows={"red": [0.5, 1.0]}))
    # The steps before are plain: of a prompt's own map nothing is scaled then.
    assert torch.allclose(late, paint(replace(spec, start=0.5)), atol=1e-5)
    assert torch.equal(paint(replace(spec, windows={"red": [0.0, 1.0]})), paint(spec))
    assert not torch.equal(late, paint(spec))


def test_a_prompt_as_people_write_it() -> None:
    assert read_weights("(a red:1.4) cat, (blue:0.5) sky") == (
        "a red cat, blue sky", {"a red": 1.4, "blue": 0.5},
    )  # fmt: skip
    for wrong in ("(a red) cat", "((red:2) cat:3)", "red) cat"):
        with pytest.raises(ValueError, match="write a strength as"):
            read_weights(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regaze.NAG(phi=-1), "phi must be"),
        (lambda: regaze.NAG(alpha=2), "alpha must be"),
        (lambda: regaze.NAG(norm="l3"), "unknown norm"),
        (lambda: regaze.NAG(negative=3), "negative must be a text"),
        (lambda: regaze.NAG(negative="x", embeddings="y.safetensors"), "not both"),
        (lambda: regaze.attach(tiny("sd3"), regaze.SLG()), "say which blocks"),
        (lambda: regaze.attach(tiny("sd3"), regaze.STG()), "stg@mochi"),
        (lambda: regaze.STG(layers=(1,), skip="residual"), "unknown skip"),
        (lambda: regaze.Reweight({"red": "x"}), "must be a finite number"),
        (lambda: regaze.Reweight({"": 2.0}), "no word or column number"),
        (lambda: regaze.Reweight({"red": -1.0}, how="logits"), "needs 0 or more"),
        (lambda: regaze.Reweight(["red"]), "words must be"),
        (lambda: regaze.Reweight({"red": 2.0}, windows={"cat": [0, 1]}), "gives no strength"),
        (lambda: regaze.Reweight({"red": 2.0}, windows={"red": 0.5}), "windows must be"),
        (lambda: regaze.Reweight({"red": 2.0}, windows=["red"]), "windows must be"),
        (lambda: regaze.Reweight({"red": 2.0}, windows={"red": [0.5, 0.2]}), "must lie within"),
        (
            lambda: regaze.Reweight({"red": 2.0}, "logits", maps="first", windows={"red": [0, 1]}),
            "mix columns of two maps",
        ),
        (lambda: regaze.Regions([((0, 0, 2, 1), "x")]), "in shares of the picture"),
        (lambda: regaze.Regions([((0, 0, 1), "x")]), "is no place"),
        (lambda: regaze.Regions(["x"]), "no pair of a place and a prompt"),
        (lambda: regaze.Regions([((0, 0, 1, 1), 3)]), "no pair of a place and a prompt"),
        (lambda: regaze.Regions([], every=(0, 1)), "every must be"),
        (lambda: regaze.Regions([], base=1.5), "base must be"),
        (lambda: regaze.Regions([], overlap="both"), "unknown overlap 'both'"),
    ],
)
def test_settings_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_words_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="'green' isn't in the prompt; its tokens are"):
        paint(regaze.Reweight({"green": 2.0}))
    with pytest.raises(ValueError, match="column 99 doesn't exist"):
        paint(regaze.Reweight({99: 2.0}))
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    with (
        regaze.attach(pipe, regaze.Reweight({"red": 2.0})),
        pytest.raises(ValueError, match="was given embeddings .* give column numbers"),
    ):
        kind.run(pipe)


def test_masks_of_other_proportions() -> None:
    mask = np.ones((10, 30))
    with pytest.raises(ValueError, match=r"a mask of 10 x 30 .* have the proportions"):
        paint(regaze.Regions([(mask, "a red circle")]))


def test_regions_that_overlap_need_a_rule() -> None:
    left, right = ((0, 0, 0.6, 1), "a green circle"), ((0.5, 0, 1, 1), "a red square")
    mask = np.zeros((16, 16))
    mask[:, 7:] = 1
    for other in (right, (mask, "a red square")):
        with pytest.raises(ValueError, match="0 'a green circle' and 1 .* overlap; say"):
            paint(regaze.Regions([left, other]))
    # Whose tokens they are is cut out of the other's box.
    settings: dict[str, Any] = {"base": 0.0, "stop": 1.0}
    for rule, edge in (("first", 0.6), ("last", 0.5)):
        cut = [((0, 0, edge, 1), left[1]), ((edge, 0, 1, 1), right[1])]
        want = paint(regaze.Regions(cut, **settings))
        assert torch.equal(paint(regaze.Regions([left, right], overlap=rule, **settings)), want)
    shared = paint(regaze.Regions([left, right], overlap="all", **settings))
    assert not torch.allclose(shared, want, atol=1e-3)
    paint(regaze.Regions([((0, 0, 0.5, 1), left[1]), right]))  # They only touch.


@pytest.mark.parametrize("family", ["pixart", "qwen"])
def test_models_that_would_mix_two_texts(family: str) -> None:
    for spec in (regaze.NAG(), regaze.Regions([((0, 0, 1, 1), "x")])):
        with pytest.raises(ValueError, match="isn't known to keep two texts apart"):
            regaze.attach(tiny(family), spec)


def test_no_text_to_image_model() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet: Any = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler())
    for spec in (regaze.NAG(), regaze.Regions([((0, 0, 1, 1), "x")]), regaze.Reweight({1: 2.0})):
        with pytest.raises(ValueError, match="has no attention to text"):
            regaze.attach(pipe, spec)


def test_what_a_model_lacks() -> None:
    with pytest.raises(ValueError, match="blocks of UNet2DConditionModel can't be left out: they"):
        regaze.attach(tiny("sd"), regaze.SLG(layers=("mid",)))
    with pytest.raises(ValueError, match="PixArtTransformer2DModel can't be left out: which"):
        regaze.attach(tiny("pixart"), regaze.STG(layers=(1,)))
    with pytest.raises(ValueError, match='text_stream="shared" is a form of SD3'):
        regaze.attach(tiny("flux"), regaze.NAG(text_stream="shared"))
    pipe, kind = tiny("flux"), FAMILIES["flux"]
    without = regaze.NAG(embeddings={"text": noise(1, 7, WIDTH)})
    with regaze.attach(pipe, without), pytest.raises(ValueError, match='needs "pooled"'):
        kind.run(pipe)
    with (
        regaze.attach(tiny("sd"), regaze.NAG()),
        pytest.raises(ValueError, match="no text encoder"),
    ):
        FAMILIES["sd"].run(tiny("sd"), guided=False)
    wide = regaze.NAG(embeddings={"text": noise(1, 7, WIDTH + 1)})
    with regaze.attach(tiny("sd"), wide), pytest.raises(ValueError, match="are of size 17"):
        FAMILIES["sd"].run(tiny("sd"))
    three = regaze.NAG(embeddings={"text": noise(3, 7, WIDTH)})
    with regaze.attach(tiny("sd"), three), pytest.raises(ValueError, match="of 3 prompts"):
        FAMILIES["sd"].run(tiny("sd"))
    with regaze.attach(tiny("sd").unet, regaze.NAG()), pytest.raises(ValueError, match="bare"):
        tiny("sd").unet(noise(1, 4, 8, 8), 1, noise(1, 5, WIDTH))


def test_a_learned_word_is_all_of_its_vectors() -> None:
    """Textual inversion: the prompt's one word is three tokens, also in a phrase."""
    pipe: Any = quiet(tiny_painter.fresh().pipeline)
    vectors = noise(3, pipe.unet.config.cross_attention_dim, seed=4)
    pipe.load_textual_inversion({"<cat>": vectors}, token="<cat>")

    def painted(spec: Any) -> Tensor:
        call = {"latents": noise(1, 4, 16, 16), "num_inference_steps": 1, "output_type": "latent"}
        with regaze.attach(pipe, spec):
            latents: Tensor = pipe("a red <cat>, a circle", **call)[0]
        return latents

    want = painted(regaze.Reweight({column: 3.0 for column in (3, 4, 5)}))
    assert torch.equal(painted(regaze.Reweight({"<cat>": 3.0})), want)
    want = painted(regaze.Reweight({8: 3.0}))
    assert torch.equal(painted(regaze.Reweight({"circle": 3.0})), want)
    want = painted(regaze.AttendAndExcite(tokens=[[[2, 3, 4, 5], 8]]))
    assert torch.equal(painted(regaze.AttendAndExcite(tokens=["red <cat>", "circle"])), want)
    prompt = read_prompt(pipe.tokenizer, "<cat> " * 3, 6, learned=True)
    assert prompt.find("<cat>") == [[1, 2, 3], [4]]
    assert prompt.pieces[-1] == "<|endoftext|>" and len(prompt.pieces) == 6


@pytest.fixture(scope="module")
def travelling() -> Any:
    """A pipeline for clips whose prompt changes from frame to frame."""
    base: Any = tiny_painter.shared().pipeline
    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, motion_max_seq_length=8,
    )  # fmt: skip
    unet: Any = UNetMotionModel.from_unet2d(base.unet, adapter)
    parts = (base.vae, base.text_encoder, base.tokenizer, unet.eval(), adapter, ddim())
    pipe = quiet(AnimateDiffPipeline(*parts))
    pipe.enable_free_noise(context_length=2, context_stride=1)
    return pipe


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        (regaze.Reweight({"circle": 3.0}), "which columns hold 'circle' isn't known"),
        (regaze.AttendAndExcite(tokens=["circle"]), "which columns hold which words isn't known"),
        (regaze.StructuredDiffusion(phrases=["red circle"]), "its words aren't known"),
        (regaze.NAG(negative="green"), ""),
    ],
)
def test_a_prompt_that_changes_from_frame_to_frame(
    travelling: Any, spec: Any, refused: str
) -> None:
    prompts = {0: "a red circle", 2: "a blue square and a circle"}
    call: dict[str, Any] = {
        "num_frames": 3, "num_inference_steps": 1, "latents": noise(1, 4, 3, 16, 16),
        "output_type": "latent", "guidance_scale": 3.0,
    }  # fmt: skip
    why = "because the prompt changes from frame to frame"
    wanted = pytest.raises(ValueError, match=f"{refused}, {why}") if refused else nullcontext()
    with regaze.attach(travelling, spec) as run, wanted:
        travelling(prompts, **call)
    assert run.report().fired == (not refused)
