"""Enhance-A-Video: exactness, promises and bad inputs on video transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, quiet, state, tiny
from tiny_videos import VIDEOS

import regaze
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import EnhanceAVideo, from_dict, parse

MODELS = ("wan", "cogvideox", "hunyuan")
_PIPES: dict[str, Any] = {}


def video(name: str) -> Any:
    return _PIPES.setdefault(name, quiet(VIDEOS[name].build()))


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("per", ["item", "call"])
@pytest.mark.parametrize("family", MODELS)
def test_it_equals_whole_maps_and_leaves_nothing(family: str, per: str, guided: bool) -> None:
    pipe, kind = video(family), VIDEOS[family]
    plain = kind.run(pipe, guided=guided)
    before = state(pipe.transformer)
    with regaze.attach(pipe, EnhanceAVideo(per=per, layers=(1, 3))) as run:
        got = kind.run(pipe, guided=guided)
    spec: Any = run.specs[0]
    assert spec.weight == (3.4 if family == "cogvideox" else 4.0)
    with literally(pipe, kind.running(guided), [spec.literal()]):
        want = kind.run(pipe, guided=guided)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-3 * scale
    (report,) = run.report().interventions
    assert report.fired
    assert all(layer.effect is not None and layer.effect > 0 for layer in report.layers)
    assert state(pipe.transformer) == before
    assert torch.equal(kind.run(pipe, guided=guided), plain)


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("per", ["item", "call"])
def test_temporal_attention_has_the_maps_of_its_own_calls(per: str, guided: bool) -> None:
    pipe, kind = video("motion"), VIDEOS["motion"]
    plain = kind.run(pipe, 2, guided=guided)
    with regaze.attach(pipe, EnhanceAVideo(weight=4, per=per)) as run:
        got = kind.run(pipe, 2, guided=guided)
        single = kind.run(pipe, 1, guided=guided)
    spec: Any = run.specs[0]
    assert spec.layers and all("motion_modules" in name for name in spec.layers)
    with literally(pipe, kind.running(guided, batch=2), [spec.literal()]):
        want = kind.run(pipe, 2, guided=guided)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-3 * scale
    assert ((got[:1] - single).abs().max() < 1e-5 * scale) == (per == "item")
    assert torch.equal(kind.run(pipe, 2, guided=guided), plain)


@pytest.mark.parametrize("family", MODELS)
def test_a_batch_gives_what_single_prompts_give(family: str) -> None:
    pipe, kind = video(family), VIDEOS[family]
    with regaze.attach(pipe, EnhanceAVideo()):
        batch, single = kind.run(pipe, 2), kind.run(pipe, 1)
    assert (batch[:1] - single).abs().max() < 1e-5 * batch.abs().max()
    with regaze.attach(pipe, EnhanceAVideo(per="call")):
        assert (kind.run(pipe, 2)[:1] - kind.run(pipe, 1)).abs().max() > 1e-5


def test_it_acts_beside_guidance_and_in_its_steps_alone() -> None:
    pipe, kind = video("cogvideox"), VIDEOS["cogvideox"]
    spec = EnhanceAVideo(layers=(0, 3), stop=0.5)
    with regaze.attach(pipe, spec, regaze.PAG(layers=(2,))) as run:
        got = kind.run(pipe, num_inference_steps=4)
    assert run.report().interventions[0].steps == 2
    specs: Any = run.specs
    with literally(pipe, kind.running(), [one.literal() for one in specs]):
        want = kind.run(pipe, num_inference_steps=4)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_bad_inputs_raise() -> None:
    with pytest.raises(ValueError, match="no weight was published for SD3Transformer2DModel"):
        regaze.attach(tiny("sd3"), EnhanceAVideo())
    with pytest.raises(ValueError, match="normalises what its attention returns, so a factor on"):
        regaze.attach(video("mochi"), EnhanceAVideo(weight=4))
    with pytest.raises(ValueError, match="no attention of UNet2DConditionModel sees several fra"):
        regaze.attach(tiny("sd"), EnhanceAVideo(weight=4))
    with pytest.raises(ValueError, match="is self-attention, .*; choose temporal attention"):
        regaze.attach(tiny("animatediff"), EnhanceAVideo(weight=4, layers=(1,)))
    with pytest.raises(ValueError, match="unknown per 'batch'"):
        EnhanceAVideo(per="batch")
    with pytest.raises(ValueError, match="layers holds 1.5"):
        EnhanceAVideo(layers=(1.5,))  # type: ignore[arg-type]
    with regaze.attach(tiny("sd3"), EnhanceAVideo(weight=4)), pytest.raises(
        ValueError, match="make 4 x 3, and frames that see each other are needed"
    ):  # fmt: skip
        FAMILIES["sd3"].run(tiny("sd3"))
    pipe, kind = video("wan"), VIDEOS["wan"]
    still = kind.call(1, True)["latents"][:, :, :1]
    with regaze.attach(pipe, EnhanceAVideo()), pytest.raises(
        ValueError, match="a clip of two latent frames or more"
    ):  # fmt: skip
        kind.run(pipe, 1, latents=still, num_frames=1)


def test_specs_survive_json_and_their_own_labels() -> None:
    for spec in (EnhanceAVideo(), EnhanceAVideo(weight=2, per="call", layers=(1, "blocks.2"))):
        assert from_dict(spec.to_dict()) == spec == parse(spec.label)
    assert EnhanceAVideo.preset("cogvideox").weight == 3.4
