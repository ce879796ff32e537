"""IP-Adapters: attention to pictures beside that to the text, which no method edits."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    IPAdapterAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from methods import METHODS
from scenes import differ, steps
from tiny_pipelines import FAMILIES, TEXT, WIDTH, noise, quiet
from torch import Tensor, nn

import regaze
from regaze.hooks.diffusion.literal import WholeForm, literally
from regaze.hooks.diffusion.literal_latents import LatentForm, moved_literally

PICTURE = 6
"""Size of a picture's embedding."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def projection(adapters: int, width: int, tokens: int) -> Any:
    return MultiIPAdapterImageProjection(
        [ImageProjection(PICTURE, width, tokens) for _ in range(adapters)]
    )


@functools.cache
def with_two_adapters(family: str) -> Any:
    """A pipeline that tests leave as it was; each picture has as many tokens as the text."""
    pipe = quiet(FAMILIES[family].build())
    torch.manual_seed(3)
    processors: dict[str, Any] = {}
    for name, old in pipe.unet.attn_processors.items():
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        new = IPAdapterAttnProcessor2_0(width, WIDTH, num_tokens=(TEXT, TEXT), scale=[0.7, 0.4])
        processors[name] = old if "attn1" in name else new
    pipe.unet.set_attn_processor(processors)
    pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"
    pipe.unet.encoder_hid_proj = projection(2, WIDTH, TEXT)
    return pipe


def pictures(images: int, guided: bool, masked: bool) -> dict[str, Any]:
    """For each adapter several pictures, each in a part of the picture or everywhere."""
    rows = 2 if guided else 1
    call: dict[str, Any] = {
        "ip_adapter_image_embeds": [noise(rows, images, PICTURE, seed=40 + i) for i in range(2)]
    }
    if masked:
        masks = [(noise(1, images, 64, 48, seed=60 + i) > 0).float() for i in range(2)]
        call["cross_attention_kwargs"] = {"ip_adapter_masks": masks}
    return call


def written_out(pipe: Any, form: Any, manner: Any) -> Any:
    if isinstance(form, WholeForm):
        return form.within(pipe, manner)
    if isinstance(form, LatentForm):
        return moved_literally(pipe, manner, form)
    return literally(pipe, manner, [form])


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masked"])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "alone"])
@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("sd", name) for name in ("pag", "nag", "regions", "reweight", "a_star")),
        *(("controlnet", name) for name in ("pag", "nag", "regions", "reweight")),
        ("sd", "primecomposer"),
    ],
)
def test_cross_attention_to_pictures_stays(
    family: str, method: str, guided: bool, masked: bool
) -> None:
    pipe, kind = with_two_adapters(family), FAMILIES[family]

    def run() -> Tensor:
        return kind.run(pipe, guided=guided, **pictures(2, guided, masked), **steps(method))

    plain = run()
    with regaze.attach(pipe, METHODS[method].on(family)) as attached:
        got = run()
    spec: Any = attached.specs[0]
    with written_out(pipe, spec.literal(), kind.running(guided)):
        want = run()
    assert differ(got, want) < 1e-5
    assert differ(want, plain) > 1e-3
    assert torch.equal(run(), plain)


def test_tokens_are_not_shuffled_under_masks() -> None:
    """A block that knows of places isn't the same on shuffled tokens."""
    pipe, kind = with_two_adapters("sd"), FAMILIES["sd"]
    with regaze.attach(pipe, METHODS["tpg"].on("sd")) as run:
        got = kind.run(pipe, **pictures(1, True, masked=False))
        with pytest.raises(ValueError, match="masks of an IP-Adapter say where.*leave the masks"):
            kind.run(pipe, **pictures(1, True, masked=True))
    spec: Any = run.specs[0]
    with written_out(pipe, spec.literal(), kind.running()):
        assert differ(got, kind.run(pipe, **pictures(1, True, masked=False))) < 1e-5


def test_masks_of_as_many_adapters_as_rows_are_not_cut() -> None:
    """Two masks for the two adapters, and one prompt with guidance: two rows."""
    pipe, kind = with_two_adapters("sd"), FAMILIES["sd"]
    call = pictures(1, True, masked=True)
    listed = call["cross_attention_kwargs"]["ip_adapter_masks"]
    stacked = {"ip_adapter_masks": torch.cat(listed)}
    with regaze.attach(pipe, METHODS["pag"].on("sd")):
        want = kind.run(pipe, 1, **call)
        got = kind.run(pipe, 1, **call | {"cross_attention_kwargs": stacked})
    assert torch.equal(got, want)


class _Pictures(nn.Module):
    """Pictures as SD3's adapter is given them: their tokens, and the time."""

    def forward(self, embeds: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        return embeds, timestep.reshape(-1, 1).expand(len(embeds), 20) / 1000


def joint(family: str) -> Any:
    pipe = quiet(FAMILIES[family].build())
    model = pipe.transformer
    torch.manual_seed(3)
    processors = dict(model.attn_processors)
    for name in processors:
        if family == "flux" and name.startswith("transformer_blocks"):
            processors[name] = FluxIPAdapterAttnProcessor(32, 32, num_tokens=(2,), scale=0.7)
        elif family != "flux":
            processors[name] = SD3IPAdapterJointAttnProcessor2_0(32, 24, 8, 20, scale=0.7)
    model.set_attn_processor(processors)
    model.encoder_hid_proj = projection(1, 32, 2)
    model.image_proj = _Pictures()
    return pipe


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "alone"])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_joint_attention_to_pictures_stays(family: str, guided: bool) -> None:
    """Away from the prompt's own text there is nowhere to go, whatever the pictures are."""
    pipe, kind, prompts = joint(family), FAMILIES[family], 2
    rows = prompts * (2 if guided else 1)
    call: dict[str, Any] = {
        "joint_attention_kwargs": {"ip_adapter_image_embeds": noise(rows, 3, 24, seed=40)}
    }
    if family == "flux":  # Two prompts, and a picture for each of them twice.
        call = {
            "ip_adapter_image_embeds": [noise(prompts, 1, PICTURE, seed=40)],
            "negative_ip_adapter_image_embeds": [noise(prompts, 1, PICTURE, seed=41)],
        }

    def run() -> Tensor:
        return kind.run(pipe, guided=guided, **copy.deepcopy(call))

    own = kind.call(prompts, guided)
    text, pooled = own["prompt_embeds"], own["pooled_prompt_embeds"]
    plain = run()
    spec = regaze.NAG(embeddings={"text": text, "pooled": pooled})
    with regaze.attach(pipe, spec):
        assert differ(run(), plain) < 1e-5
    with regaze.attach(pipe, regaze.NAG(embeddings={"text": text.flip(0), "pooled": pooled})):
        assert differ(run(), plain) > 1e-3
    form: Any = spec.literal()
    with (
        form.within(pipe, kind.running(guided)),
        pytest.raises(NotImplementedError, match="beside an IP-Adapter's"),
    ):
        run()
