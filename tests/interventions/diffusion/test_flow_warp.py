"""Flow-warped attention equals literally edited maps, in every family and with every option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flows import edit_maps, random_flow
from largest import largest
from tiny_pipelines import FAMILIES, quiet, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion import Call, Host, Layout, Site
from regaze.hooks.diffusion.literal import literally
from regaze.interventions import FlowWarp
from regaze.interventions.diffusion.flow import Flow

FRAMES = 3
FLOW = random_flow(FRAMES)
VISIBLE = np.random.default_rng(1).random(FLOW.shape[:3]) < 0.6
SEEN = Flow(FLOW, VISIBLE)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def paint(family: str, pipe: Any, images: int = 1, guided: bool = True, **more: Any) -> Tensor:
    """A clip's latents, every frame from noise of its own."""
    kind = FAMILIES[family]
    if images > 1:
        latents = kind.call(FRAMES * images, guided)["latents"]
        more |= {"num_images_per_prompt": images, "latents": latents}
    if family == "animatediff":  # Its frames are those of one video.
        return kind.run(pipe, 2, guided, **more)
    if family == "qwen":
        call = kind.call(2, guided)
        masks = {k: torch.cat([v, v[:1]]) for k, v in call.items() if k.endswith("mask")}
        return kind.run(pipe, FRAMES, guided, **masks, **more)
    return kind.run(pipe, FRAMES, guided, **more)


def check(
    family: str, spec: FlowWarp, visible: Any = None, images: int = 1, guided: bool = True,
    pipe: Any = None, within: float = 1e-5,
) -> None:  # fmt: skip
    """A clip with the edit attached against literally edited maps."""
    pipe, kind = pipe or tiny(family), FAMILIES[family]
    plain = paint(family, pipe, images, guided)
    with regaze.attach(pipe, spec) as run:
        got = paint(family, pipe, images, guided)
    assert run.report().fired
    specs: Any = run.specs
    inner = FRAMES if family == "animatediff" else 1
    running = kind.running(guided, 2 if inner > 1 else FRAMES * images, images, inner)
    with literally(pipe, running, [one.literal() for one in specs]):
        want = paint(family, pipe, images, guided)
    scale = plain.abs().max()
    assert ((got - want).abs().max() / scale).item() < within
    assert ((got - plain).abs().max() / scale).item() > 1e-3


WARPS = [family for family in FAMILIES if family != "wan"]
OPTIONS: dict[str, dict[str, Any]] = {
    "weight": {"weight": 1.0},
    "own": {"static": "own", "weight": 0.8},
    "unmasked": {"threshold": None},
    "both axes": {"axis": "both"},
    "both axes, own": {"axis": "both", "static": "own", "weight": 1.0},
    "recursive": {"recursive": True},
    "recursive, own": {"recursive": True, "static": "own", "weight": 0.8},
}


@pytest.mark.parametrize("family", WARPS)
def test_every_family_equals_literal_maps(family: str) -> None:
    check(family, FlowWarp(flow=FLOW))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_every_option_does(family: str, option: str) -> None:
    check(family, FlowWarp(flow=FLOW, **OPTIONS[option]))


@pytest.mark.parametrize("option", ["own", "both axes", "recursive"])
def test_padded_text_and_separate_branches(option: str) -> None:
    check("qwen", FlowWarp(flow=FLOW, **OPTIONS[option]))


@pytest.mark.parametrize("option", ["weight", "both axes, own", "recursive"])
def test_what_is_not_visible_keeps_its_own_map(option: str) -> None:
    check("sd", FlowWarp(flow=SEEN, **OPTIONS[option]), VISIBLE)


@pytest.mark.parametrize("option", ["weight", "both axes", "recursive"])
def test_several_images_per_prompt(option: str) -> None:
    check("sd", FlowWarp(flow=FLOW, **OPTIONS[option]), images=2)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_without_classifier_free_guidance(family: str) -> None:
    check(family, FlowWarp(flow=FLOW), guided=False)


@pytest.mark.parametrize("layers", [("down_blocks", "mid", "up_blocks"), (0,), ("L1", "mid")])
def test_chosen_layers(layers: tuple[str | int, ...]) -> None:
    check("sd", FlowWarp(flow=FLOW, layers=layers, recursive=True))


# -- on single calls ---------------------------------------------------------------------------

GRID = (5, 4)
SITE = Site("up_blocks.0.attn1", "self", "up_blocks.0", 0, 2, "image")


def attend(
    spec: FlowWarp, query: Tensor, key: Tensor, value: Tensor, branches: int = 1, images: int = 1
) -> Tensor:
    """The edited heads of a call on a grid of 5 x 4 tokens, for a flow of as many pixels."""
    layout = Layout(GRID, 0, True, branches, images)
    call = Call(
        SITE, layout, query, key, value, None, query.shape[-1] ** -0.5,
        lambda *a, **named: F.scaled_dot_product_attention(*a, **named),
    )  # fmt: skip
    output: Tensor = spec.bind(Host("Toy", (SITE,))).attend(call)
    return output


def heads(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, 20, 6, generator=generator, dtype=dtype)


def shift(dx: int, dy: int, frames: int = FRAMES) -> np.ndarray:
    return np.broadcast_to(np.array([dx, dy], np.float32), (frames - 1, *GRID, 2))


@pytest.mark.parametrize("option", OPTIONS)
def test_double_precision(option: str) -> None:
    query, key, value = (heads(2 * FRAMES * 2, seed) for seed in range(3))
    flow = np.random.default_rng(0).normal(size=(FRAMES - 1, *GRID, 2)).astype(np.float32)
    spec = FlowWarp(flow=flow, **OPTIONS[option])
    got = attend(spec, query, key, value, 2, 2)
    maps = (query @ key.mT / 6**0.5).softmax(-1)
    want = edit_maps(maps, slice(0, 20), GRID, spec, (2, FRAMES, 2)) @ value
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize("recursive", [False, True])
def test_a_shift_by_whole_tokens_rolls_the_rows_of_the_map(recursive: bool) -> None:
    query, key, value = (heads(FRAMES, seed) for seed in range(3))
    spec = FlowWarp(flow=shift(-1, 2), weight=1, recursive=recursive)
    got = attend(spec, query, key, value).unflatten(2, GRID)
    frame = 0 if recursive else 1
    plain = F.scaled_dot_product_attention(query[frame], key[frame], value[2]).unflatten(1, GRID)
    by = (2, -2) if not recursive else (4, -4)
    rolled = plain.roll((-by[0], -by[1] // 2), (1, 2))
    # Inside, where nothing came in over the edge.
    inside = slice(None), slice(0, GRID[0] - by[0]), slice(-by[1] // 2, None)
    torch.testing.assert_close(got[2][inside], rolled[inside])


@pytest.mark.parametrize("option", OPTIONS)
def test_without_motion_equal_queries_and_keys_are_left_alone(option: str) -> None:
    query, key = (heads(1, seed).repeat(FRAMES, 1, 1, 1) for seed in range(2))
    value = heads(FRAMES, 2)
    plain = F.scaled_dot_product_attention(query, key, value)
    got = attend(FlowWarp(flow=shift(0, 0), **OPTIONS[option]), query, key, value)
    torch.testing.assert_close(got, plain)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_first_frame_is_unedited_and_branches_are_edited_alike(option: str) -> None:
    query, key, value = (heads(FRAMES, seed) for seed in range(3))
    spec = FlowWarp(flow=shift(1, 1), **OPTIONS[option])
    alone = attend(spec, query, key, value)
    assert torch.equal(alone[0], F.scaled_dot_product_attention(query, key, value)[0])
    two = [torch.cat([x, x]) for x in (query, key, value)]
    twice = attend(spec, two[0], two[1], two[2], branches=2)
    torch.testing.assert_close(twice, torch.cat([alone, alone]))


def test_images_of_a_prompt_are_edited_as_if_alone() -> None:
    query, key, value = (heads(2 * FRAMES, seed) for seed in range(3))
    spec = FlowWarp(flow=shift(1, 0), recursive=True)
    both = attend(spec, query, key, value, images=2)
    second = attend(spec, query[1::2], key[1::2], value[1::2])
    torch.testing.assert_close(both[1::2], second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_to_single(dtype: torch.dtype) -> None:
    query, key, value = (heads(FRAMES, seed).to(dtype) for seed in range(3))
    for options in OPTIONS.values():
        spec = FlowWarp(flow=0.37 * shift(1, 2), **{"threshold": 0, **options})
        got = attend(spec, query, key, value)
        want = attend(spec, query.float(), key.float(), value.float())
        assert got.dtype == dtype
        assert (got.float() - want).abs().max() < 2e-2


@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_is_as_large_as_the_map_of_a_single_head(option: str) -> None:
    grid, frames = (48, 48), 3
    flow = np.ones((frames - 1, *grid, 2), np.float32)
    query, key, value = (torch.randn(frames, 2, 48 * 48, 8) for _ in range(3))
    layout = Layout(grid, 0, True)
    call = Call(SITE, layout, query, key, value, None, 8**-0.5, F.scaled_dot_product_attention)
    edit = FlowWarp(flow=flow, **OPTIONS[option]).bind(Host("Toy", (SITE,)))
    with largest() as watched, torch.no_grad():
        edit.attend(call)
    assert 0 < watched.numbers < (48 * 48) ** 2 / 8


# -- with guidance beside it -------------------------------------------------------------------


def test_it_acts_in_perturbed_branches_too() -> None:
    """Guidance leads away from what the edited model would predict."""
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    spec, guidance = FlowWarp(flow=FLOW), regaze.PAG(scale=1.5, layers=("mid",))
    with regaze.attach(pipe, spec, guidance) as run:
        got = paint("sd", pipe)
    specs: Any = run.specs
    with literally(pipe, kind.running(True, FRAMES), [one.literal() for one in specs]):
        want = paint("sd", pipe)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert run.report().fired
    with regaze.attach(pipe, guidance, spec):
        assert torch.equal(paint("sd", pipe), got)  # The order doesn't matter.


@pytest.mark.parametrize("layers", [("mid",), ("up_blocks",), ("L3",)])
@pytest.mark.parametrize("recursive", [False, True])
def test_a_fork_beside_it_equals_a_whole_extra_pass(
    layers: tuple[str, ...], recursive: bool
) -> None:
    pipe = tiny("sd")
    every = ("down_blocks", "mid", "up_blocks")
    specs = [FlowWarp(flow=FLOW, layers=every, recursive=recursive), regaze.PAG(layers=layers)]
    latents = []
    for fork in (True, False):
        with regaze.attach(pipe, *specs, fork=fork) as run:
            latents.append(paint("sd", pipe))
        assert run.report().fired
    assert (latents[0] - latents[1]).abs().max() < 1e-5 * latents[1].abs().max()


def test_it_acts_in_the_gradient_pass_of_latent_updates_too() -> None:
    pipe = tiny("sd")
    spec, update = FlowWarp(flow=FLOW, layers=("down_blocks",)), regaze.AStar(tokens=(1, 2))
    with regaze.attach(pipe, update, spec) as run:
        both = paint("sd", pipe)
    assert run.report().fired
    with regaze.attach(pipe, spec, update):
        assert torch.equal(paint("sd", pipe), both)
    for alone in (update, spec):
        with regaze.attach(pipe, alone):
            assert not torch.equal(paint("sd", pipe), both)


def test_two_on_one_layer_clash_unless_they_take_turns() -> None:
    pipe = quiet(FAMILIES["sd"].build())
    spec = FlowWarp(flow=FLOW)
    with pytest.raises(ValueError, match="two interventions edit the attention of up_blocks.1"):
        regaze.attach(pipe, spec, replace(spec, axis="both"))
    with regaze.attach(pipe, spec), pytest.raises(ValueError, match="other layers or other steps"):
        regaze.attach(pipe, replace(spec, layers=("L2",)))
    assert not pipe.unet._forward_hooks
    with regaze.attach(pipe, replace(spec, stop=0.5), replace(spec, start=0.5)) as run:
        paint("sd", pipe)
    assert [one.steps for one in run.report().interventions] == [2, 1]
