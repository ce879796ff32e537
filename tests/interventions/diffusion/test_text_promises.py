"""Promises of methods that edit how the picture reads texts, beside those of all methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_work import attention_work
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from methods import METHODS
from safetensors.torch import load_file
from scenes import differ
from tiny_pipelines import FAMILIES, TEXT, WIDTH, noise, quiet, tiny
from torch import Tensor

import regaze


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_several_images_of_a_prompt() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(1, True) | {"latents": kind.call(2, True)["latents"]}
    text = noise(1, 7, WIDTH, seed=9)
    with regaze.attach(pipe, regaze.NAG(embeddings={"text": text})):
        both = pipe(**call, num_images_per_prompt=2)[0]
        second = pipe(**call | {"latents": call["latents"][1:]})[0]
    assert differ(both[1:], second) < 1e-5


@pytest.mark.parametrize("family", ["flux", "wan"])
@pytest.mark.parametrize("method", ["nag", "regions"])
def test_several_images_of_one_prompts_embeddings(family: str, method: str) -> None:
    """The denoiser is given one row of text, which it broadcasts over its rows of pictures."""
    pipe, kind = tiny(family), FAMILIES[family]
    count = "num_videos_per_prompt" if family == "wan" else "num_images_per_prompt"
    one = kind.call(1, True) | {"latents": kind.call(2, True)["latents"]}
    two = {
        name: torch.cat([x, x]) if isinstance(x, Tensor) and name != "latents" else x
        for name, x in one.items()
    }
    with regaze.attach(pipe, METHODS[method].on(family)) as run:
        got, want = pipe(**one, **{count: 2})[0], pipe(**two)[0]
    assert differ(got, want) < 1e-5
    spec: Any = run.specs[0]
    with spec.literal().within(pipe, kind.running(batch=2)):
        assert differ(got, pipe(**one, **{count: 2})[0]) < 1e-5
    assert differ(got, pipe(**two)[0]) > 1e-2


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "wan"])
def test_guidance_beside_it_leads_away_from_what_it_predicts(family: str) -> None:
    """The branch reads both texts, too: where nothing is perturbed, guidance adds nothing."""
    pipe, kind = tiny(family), FAMILIES[family]
    spec = METHODS["nag"].on(family)
    with regaze.attach(pipe, spec):
        alone = kind.run(pipe)
    if family in ("sd3", "flux"):
        with pytest.raises(ValueError, match="more text than the prompt's"):
            regaze.attach(pipe, spec, regaze.PAG(layers=(1,)))
        return
    nothing = regaze.SoftPAG(u=1e-9, layers=kind.perturb)
    with regaze.attach(pipe, spec, nothing) as run:
        beside = kind.run(pipe)
    assert differ(beside, alone) < 1e-5
    assert "adds to what the denoiser is called with" in str(run.report())


def test_the_negative_prompt_of_guidance_is_taken_if_no_other_is_given() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    negative = noise(2, TEXT, WIDTH, seed=2)
    with regaze.attach(pipe, regaze.NAG()):
        got = kind.run(pipe)
    with regaze.attach(pipe, regaze.NAG(embeddings={"text": negative})):
        assert torch.equal(got, kind.run(pipe))


def test_a_negative_that_is_the_prompt_changes_nothing() -> None:
    pipe, kind = tiny("flux"), FAMILIES["flux"]
    call = kind.call(2, False)
    same = {"text": call["prompt_embeds"], "pooled": call["pooled_prompt_embeds"]}
    with regaze.attach(pipe, regaze.NAG(embeddings=same)):
        got = kind.run(pipe, guided=False)
    assert differ(got, kind.run(pipe, guided=False)) < 1e-5


def test_windows_in_steps_and_in_training_time() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    text = {"text": noise(1, 7, WIDTH, seed=9)}
    windows: tuple[tuple[dict[str, Any], int | None], ...] = (
        ({}, 3),
        ({"stop": 0.5}, 2),
        ({"start": 0.6}, 1),
        ({"until": 0.5}, None),
    )
    for window, steps in windows:
        with regaze.attach(pipe, regaze.NAG(embeddings=text, **window)) as run:
            kind.run(pipe)
        times = [float(t) for t in pipe.scheduler.timesteps]
        want = sum(t >= 500 for t in times) if steps is None else steps
        assert run.report().interventions[0].steps == want


def nag(family: str) -> regaze.NAG:
    """A spec whose second text is longer than the first, for two samples."""
    pooled = FAMILIES[family].call(2, False)["pooled_prompt_embeds"]
    more = {"text": noise(2, TEXT + 2, WIDTH, seed=9), "pooled": torch.randn_like(pooled)}
    return regaze.NAG(embeddings=more)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_blocks_of_two_streams_hold_one_picture(family: str) -> None:
    pipe, seen = tiny(family), set()
    block = pipe.transformer.transformer_blocks[0]
    for name in ("ff", "ff_context"):
        block.get_submodule(name).register_forward_hook(
            lambda _, given, out, name=name: seen.add((name, len(given[0]), given[0].shape[1]))
        )
    with regaze.attach(pipe, nag(family)):
        FAMILIES[family].run(pipe, guided=False)
    assert {rows for name, rows, _ in seen if name == "ff"} == {2}
    assert {(rows, n) for name, rows, n in seen if name == "ff_context"} == {(4, TEXT + 2)}


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_measuring_computes_no_attention(family: str) -> None:
    """In the first step, which is measured, and in the third, which isn't."""
    pipe, each = tiny(family), [0]
    spec = nag(family) if family != "sd" else regaze.NAG(embeddings={"text": noise(1, 7, WIDTH)})

    def end(*_: Any) -> dict[str, Any]:
        each.append(counted.logits)
        return {}

    with attention_work() as counted, regaze.attach(pipe, spec):
        FAMILIES[family].run(pipe, guided=False, callback_on_step_end=end)
    assert each[1] == each[3] - each[2] > 0


def test_an_adapter_of_pictures_reads_each_samples_own() -> None:
    kind = FAMILIES["flux"]
    pipe = quiet(kind.build())
    size = pipe.transformer.inner_dim
    torch.manual_seed(3)
    for block in pipe.transformer.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(size, size, num_tokens=(3,)))
    call, pictures, spec = kind.call(2, False), noise(2, 1, 3, size, seed=4), nag("flux")

    def paint(rows: slice) -> Tensor:
        own = {k: x[rows] if k.endswith(("embeds", "latents")) else x for k, x in call.items()}
        more = {"joint_attention_kwargs": {"ip_hidden_states": [pictures[rows]]}}
        negative = load_file(spec.embeddings)
        part = regaze.NAG(embeddings={k: x[rows].contiguous() for k, x in negative.items()})
        with regaze.attach(pipe, part):
            found: Tensor = pipe(**own, **more)[0]
        return found

    both = paint(slice(0, 2))
    assert differ(both[1:], paint(slice(1, 2))) < 1e-5
    pictures = pictures + 1
    assert differ(paint(slice(0, 2)), both) > 1e-3
