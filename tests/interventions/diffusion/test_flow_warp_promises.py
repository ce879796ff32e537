"""Promises of flow warping beside exactness: undo, no-ops, proof, surroundings, clear errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flows import random_flow
from tiny_pipelines import FAMILIES, TEXT, WIDTH, noise, quiet, state, tiny
from torch._dynamo.testing import CompileCounterWithBackend

import regaze
from regaze.hooks.diffusion import sites
from regaze.interventions import FlowWarp, from_dict, parse

FRAMES = 3
FLOW = random_flow(FRAMES)
DIFFERENT = ("sd", "sd3", "flux", "controlnet")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("family", DIFFERENT)
def test_detaching_restores_the_pipeline_in_any_order(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe, FRAMES), state(denoiser)
    first = regaze.attach(pipe, FlowWarp(flow=FLOW))
    second = regaze.attach(pipe, regaze.PAG(layers=kind.perturb))
    assert not torch.equal(kind.run(pipe, FRAMES), plain)
    first.detach()
    kind.run(pipe, FRAMES)
    second.detach()
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe, FRAMES), plain)


@pytest.mark.parametrize("family", DIFFERENT)
def test_nothing_stays_after_an_exception(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe, FRAMES), state(denoiser)
    with regaze.attach(pipe, FlowWarp(flow=FLOW)) as run:
        target = denoiser.get_submodule(run.specs[0].layers[-1])  # type: ignore[attr-defined]
        stock = target.processor

        def fails(*args: Any, **kwargs: Any) -> Any:
            raise KeyError("out of memory, say")

        object.__setattr__(target, "processor", fails)
        with pytest.raises(KeyError):
            kind.run(pipe, FRAMES)
        target.processor = stock
        kind.run(pipe, FRAMES)
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe, FRAMES), plain)


@pytest.mark.parametrize("static", ["previous", "own"])
def test_weight_zero_is_an_exact_no_op(static: str) -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    plain = kind.run(pipe, FRAMES)
    with regaze.attach(pipe, FlowWarp(weight=0, static=static)) as run:
        assert torch.equal(kind.run(pipe, FRAMES), plain)
    assert run.report().interventions[0].exempt


def test_the_report_says_where_and_when_it_acted() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    with regaze.attach(pipe, FlowWarp(flow=FLOW, start=0.2, stop=0.8)) as run:
        kind.run(pipe, FRAMES, num_inference_steps=10)
    (report,) = run.report().interventions
    assert (report.fired, report.steps) == (True, 6)
    decoder = [s.name for s in sites(pipe) if s.kind == "self" and s.block.startswith("up_")]
    assert [layer.name for layer in report.layers] == decoder
    for layer in report.layers:
        assert layer.calls == 6
        assert layer.heads == pytest.approx(2 / 3)  # Not those of the first frame.
        assert layer.effect > 0


def test_a_transformer_is_edited_in_the_second_half_of_its_layers() -> None:
    with regaze.attach(tiny("sd3"), FlowWarp(flow=FLOW)) as run:
        spec = run.specs[0]
    assert spec.layers == ("transformer_blocks.2.attn", "transformer_blocks.3.attn")  # type: ignore[attr-defined]


def test_specs_survive_json_and_their_own_labels() -> None:
    for spec in (
        FlowWarp(),
        FlowWarp(flow="a.npz", weight=1, threshold=None, layers=("mid", 3), recursive=True),
        FlowWarp(static="own", axis="both", start=0.1, stop=0.5),
    ):
        assert from_dict(spec.to_dict()) == spec == parse(spec.label)


# -- surroundings ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["wrapped", "blocks"])
def test_compiled_denoisers_run_uncompiled_while_edited(way: str) -> None:
    torch._dynamo.reset()
    pipe, kind = quiet(FAMILIES["flux"].build()), FAMILIES["flux"]
    with regaze.attach(pipe, FlowWarp(flow=FLOW)):
        want = kind.run(pipe, FRAMES)
    counter = CompileCounterWithBackend("eager")
    if way == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend=counter)
    else:
        pipe.transformer.compile_repeated_blocks(backend=counter)
    plain, graphs = kind.run(pipe, FRAMES), counter.frame_count
    with regaze.attach(pipe, FlowWarp(flow=FLOW)) as run:
        assert torch.equal(kind.run(pipe, FRAMES), want)
    assert "uncompiled" in run.report().interventions[0].note
    assert torch.equal(kind.run(pipe, FRAMES), plain)
    assert counter.frame_count == graphs > 0


def test_compilation_in_place_hides_layers_and_raises() -> None:
    pipe = quiet(FAMILIES["flux"].build())
    pipe.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="compiled in place"):
        regaze.attach(pipe, FlowWarp(flow=FLOW))
    regaze.attach(pipe, FlowWarp(weight=0)).detach()


def test_a_copy_of_an_attached_model_is_the_plain_model() -> None:
    unet = tiny("sd").unet
    call = (noise(FRAMES, 4, 8, 6), torch.tensor(500), noise(FRAMES, TEXT, WIDTH, seed=1))
    with torch.no_grad():
        plain = unet(*call).sample
        with regaze.attach(unet, FlowWarp(flow=FLOW)):
            assert torch.equal(copy.deepcopy(unet)(*call).sample, plain)
            assert not torch.equal(unet(*call).sample, plain)


# -- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 1.5}, "weight must be a finite number in"),
        ({"weight": float("nan")}, "weight must be"),
        ({"threshold": -1}, "threshold must be"),
        ({"start": 0.5, "stop": 0.5}, "it would never act"),
        ({"static": "prevous"}, "did you mean previous"),
        ({"axis": "rows"}, "axis"),
        ({"recursive": 1}, "recursive must be true or false"),
        ({"recursive": True, "axis": "both"}, "recursive goes with axis=query only"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (True,)}, "layers holds True"),
        ({"flow": 3}, "a flow must be an array"),
    ],
)
def test_wrong_fields_raise(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"flow_warp: .*{message}"):
        FlowWarp(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "flow is missing"),
        ({"flow": FLOW, "layers": ("up_block.7",)}, "nearest"),
        ({"flow": FLOW, "layers": (9,)}, "there is no layer 9"),
    ],
)
def test_attaching_says_what_does_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"flow_warp: .*{message}"):
        regaze.attach(tiny("sd"), FlowWarp(**fields))
    with pytest.raises(OSError, match="nowhere"):
        regaze.attach(tiny("sd"), FlowWarp(flow="nowhere.npy"))


def test_attention_over_frames_is_refused() -> None:
    name = next(s.name for s in sites(tiny("animatediff")) if s.kind == "temporal")
    with pytest.raises(ValueError, match="attends over frames"):
        regaze.attach(tiny("animatediff"), FlowWarp(flow=FLOW, layers=(name,)))
    pipe = tiny("wan")
    with (
        regaze.attach(pipe, FlowWarp(flow=FLOW)),
        pytest.raises(ValueError, match="2 frames in one sequence"),
    ):
        FAMILIES["wan"].run(pipe, FRAMES)


@pytest.mark.parametrize(
    ("frames", "flow", "more", "message"),
    [
        (1, FLOW, {}, "that of 3 frames, and the pipeline paints 1"),
        (4, FLOW, {}, "that of 3 frames, and the pipeline paints 4"),
        (
            6,
            FLOW,
            {},
            "that of 3 frames, and the pipeline paints 6",
        ),  # Two clips, or two images each?
        (3, np.zeros((2, 48, 64, 2)), {}, "64 x 48 pixels doesn't fit pictures of 6 x 8 latent"),
        (3, np.zeros((2, 64, 64, 2)), {}, "their shapes differ"),
    ],
)
def test_clips_that_do_not_fit_the_flow_raise(
    frames: int, flow: Any, more: dict[str, Any], message: str
) -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    before = state(pipe.unet)
    with regaze.attach(pipe, FlowWarp(flow=flow)), pytest.raises(ValueError, match=message):
        kind.run(pipe, frames, **more)
    assert state(pipe.unet) == before
