"""Promises of TPG beside those of all methods (test_promises.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from methods import METHODS
from scenes import stage
from tiny_pipelines import FAMILIES, tiny

import regaze
from regaze.interventions import TPG


def test_any_blocks_of_a_spatial_transformer_shuffle_it_once() -> None:
    pipe, kind = tiny("sdxl"), FAMILIES["sdxl"]
    path = "mid_block.attentions.0.transformer_blocks"
    runs = []
    for layers in ((f"{path}.0",), (f"{path}.1",), ("mid",)):
        with regaze.attach(pipe, TPG(layers=layers)):
            runs.append(kind.run(pipe))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_seed_repeats_a_run_whatever_the_global_generator_does() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    with regaze.attach(pipe, TPG()):
        one = kind.run(pipe)
        torch.manual_seed(7)
        state = torch.random.get_rng_state()
        assert torch.equal(kind.run(pipe), one)
        assert torch.equal(torch.random.get_rng_state(), state)
    with regaze.attach(pipe, TPG(seed=1)):
        assert not torch.equal(kind.run(pipe), one)


def test_permutations_differ_from_step_to_step_and_from_place_to_place() -> None:
    spec = TPG()
    draws = [spec.permutation(p, t, 30) for p in ("a", "b") for t in (1.0, 2.0)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert all(sorted(draw.tolist()) == list(range(30)) for draw in draws)


def test_by_default_it_acts_in_the_deepest_down_block_that_attends() -> None:
    with regaze.attach(tiny("sdxl"), TPG()) as run:
        (spec,) = run.specs
    assert all(str(layer).startswith("down_blocks.0.") for layer in spec.layers)  # type: ignore[attr-defined]
    assert len(spec.layers) == 1  # type: ignore[attr-defined]


def test_bad_inputs_raise() -> None:
    for family in ("sd3", "flux", "wan", "pixart"):
        with pytest.raises(ValueError, match="tpg: .* has no spatial transformers"):
            regaze.attach(tiny(family), TPG())
    motion = "up_blocks.1.motion_modules.0.transformer_blocks.0.attn1"
    with pytest.raises(ValueError, match="isn't self-attention inside a spatial transformer"):
        regaze.attach(tiny("animatediff"), TPG(layers=(motion,)))
    with pytest.raises(ValueError, match="seed must be a whole number, got 0.5"):
        TPG(seed=0.5)  # type: ignore[arg-type]
    assert TPG.preset("sdxl") == TPG(layers=("down_blocks.2",))


@pytest.mark.parametrize(("scene", "name"), [("animatediff", "flow_warp"), ("sd", "regions")])
def test_an_edit_by_place_stays_out_of_transformers_that_are_shuffled(
    scene: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe, kind = stage(scene)
    spec = METHODS[name].on(scene)
    both = "one method shuffles the tokens of mid.* by where in the picture they are"
    if name == "flow_warp":  # In the decoder alone.
        with regaze.attach(pipe, TPG(layers=("mid",)), spec) as run:
            kind.run(pipe)
        assert all(one.fired for one in run.report().interventions)
        spec = dataclasses.replace(spec, layers=("mid",))
    with (
        regaze.attach(pipe, TPG(layers=("mid",)), spec),
        pytest.raises(ValueError, match=both),
    ):
        kind.run(pipe)
