"""Tokens that were merged, as token merging does: their number says nothing of where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flows import random_flow
from making import MASK, compose, move
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, TEXT, WIDTH, noise, quiet
from torch import Tensor, nn

import regaze
from regaze.hooks.diffusion import Layout, capture, sites
from regaze.hooks.diffusion.literal import literally
from regaze.hooks.diffusion.sites import read_layout

MERGED = 4
"""As many tokens become one as a level has more than the next."""
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0"


def built() -> Any:
    return quiet(FAMILIES["sd"].build())


def merge(denoiser: Any, layer: str = LAYER, which: tuple[int, ...] = (1, 2)) -> None:
    """Let a block's attention see means of neighbours only, and spread what it gives."""
    block = denoiser.get_submodule(layer)

    def fewer(_: Any, args: Any, hidden: Tensor) -> Tensor:
        means: Tensor = hidden.unflatten(1, (-1, MERGED)).mean(2)
        return means

    def more(_: Any, args: Any, hidden: Tensor) -> Tensor:
        return hidden.repeat_interleave(MERGED, 1)

    for number in which:
        block.get_submodule(f"norm{number}").register_forward_hook(fewer)
        block.get_submodule(f"attn{number}").register_forward_hook(more)


def two_places() -> Any:
    text = {"text": noise(2, TEXT, WIDTH, seed=9)}
    return regaze.Regions([((0, 0, 0.5, 1), "one"), (MASK, "two")], stop=1, overlap="all",
                          embeddings=text)  # fmt: skip


GEOMETRIC: dict[str, Any] = {
    "seg": lambda: regaze.SEG(scale=1.5, sigma=1.0, layers=("up_blocks.1",)),
    "flow_warp": lambda: regaze.FlowWarp(flow=random_flow(2), layers=("up_blocks.1",)),
    "regions": two_places,
    "primecomposer": compose,
    "attend_and_excite": lambda: move(
        regaze.AttendAndExcite, "sd", layers=("up_blocks.1",), refine=""
    ),
}
WRONG = rf"{LAYER}.attn\d attends with 12 image tokens, and the picture has 8 x 6 there.*merging"


@pytest.mark.parametrize("method", GEOMETRIC)
def test_as_many_tokens_as_another_level_has_are_no_grid(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe, kind = built(), FAMILIES["sd"]
    spec = GEOMETRIC[method]()
    with regaze.attach(pipe, spec) as run:
        kind.run(pipe)
    assert run.report().fired
    merge(pipe.unet)
    plain = kind.run(pipe)
    with regaze.attach(pipe, spec), pytest.raises((ValueError, RuntimeError), match=WRONG):
        kind.run(pipe)
    assert torch.equal(kind.run(pipe), plain)


def test_maps_of_words_have_no_grid_either() -> None:
    pipe = built()
    merge(pipe.unet)
    with capture(pipe, layers=["up_blocks.1"]), pytest.raises(ValueError, match=WRONG):
        FAMILIES["sd"].run(pipe)


def test_what_needs_no_places_acts_on_merged_tokens() -> None:
    pipe, kind = built(), FAMILIES["sd"]
    merge(pipe.unet)
    plain = kind.run(pipe)
    spec = regaze.PAG(scale=1.5, layers=("up_blocks.1",))
    with regaze.attach(pipe, spec):
        got = kind.run(pipe)
    with literally(pipe, kind.running(), [spec.literal()]):
        want = kind.run(pipe)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert not torch.allclose(got, plain, atol=1e-3)


def test_a_site_has_the_grid_of_its_blocks_level() -> None:
    unet = built().unet
    call = {"sample": torch.zeros(1, 4, HEIGHT + 1, COLUMNS + 1)}
    layout = read_layout(unet, call)
    seen: dict[str, int] = {}
    for site in sites(unet):
        module: nn.Module = unet.get_submodule(site.name)
        module.register_forward_pre_hook(
            lambda _, args, name=site.name: seen.update({name: args[0].shape[1]})
        )
    unet(**call, timestep=1, encoder_hidden_states=torch.zeros(1, TEXT, WIDTH))
    grids = {site.block: layout.grid(site, seen[site.name]) for site in sites(unet)}
    assert grids == {"down_blocks.0": (9, 7), "mid_block": (5, 4), "up_blocks.1": (9, 7)}
    flat = Layout((2, 8, 6), 0, halves=False)
    with pytest.raises(ValueError, match="attends with 48 image tokens.*2 x 8 x 6"):
        flat.grid(sites(unet)[0], 48)  # One frame's, of two.
