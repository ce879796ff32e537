"""Finding and choosing attention modules, and the grid of their tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from literal_denoisers import changed_rows
from tiny_calls import unet_call
from tiny_denoisers import TINY, UNET, livened
from tiny_pipelines import FAMILIES, tiny

import regaze
from regaze.hooks.diffusion import Layout, Site, native_grid, sites
from regaze.hooks.diffusion.sites import TEMPORAL, TEXT, choose, find_sites, read_layout

CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("family", "kinds", "order"),
    [
        ("sd", {"self": 4, "cross": 4}, "image"),
        ("sdxl", {"self": 5, "cross": 5}, "image"),
        ("sd3", {"joint": 4}, "image-text"),
        ("sd35", {"joint": 4, "self": 2}, "image-text"),
        ("flux", {"joint": 4}, "text-image"),
        ("pixart", {"self": 4, "cross": 4}, "image"),
        ("wan", {"self": 4, "cross": 4}, "image"),
        ("qwen", {"joint": 4}, "text-image"),
    ],
)
def test_every_attention_module_is_found_and_told_apart(
    family: str, kinds: dict[str, int], order: str
) -> None:
    found = sites(tiny(family))
    assert Counter(site.kind for site in found) == kinds
    layers = [site for site in found if site.layer is not None]
    assert [site.layer for site in layers] == list(range(len(layers)))
    assert {site.order for site in layers} == {order}
    denoiser = getattr(tiny(family), FAMILIES[family].denoiser)
    assert all(denoiser.get_submodule(s.name).heads == s.heads for s in found)
    assert all(s.name.startswith(s.block + ".") for s in found)


def test_temporal_attention_is_none_of_the_numbered_layers() -> None:
    found = sites(tiny("animatediff"))
    temporal = [site for site in found if "motion_modules" in site.name]
    assert temporal
    assert {site.kind for site in temporal} == {"temporal"}
    assert {site.layer for site in temporal} == {None}
    assert [choose(found, [temporal[0].name])[0]] == temporal[:1]


@pytest.mark.parametrize("family", ["sd", "sd35", "flux", "animatediff"])
def test_layers_are_numbered_in_the_order_in_which_they_run(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    ran: list[str] = []
    handles = [
        denoiser.get_submodule(site.name).register_forward_pre_hook(
            lambda m, a, name=site.name: ran.append(name)
        )
        for site in sites(pipe)
        if site.layer is not None
    ]
    kind.run(pipe, guided=False, num_inference_steps=1)
    for handle in handles:
        handle.remove()
    assert ran == [site.name for site in sites(pipe) if site.layer is not None]


def older(kind: str) -> Any:
    """U-Nets of older models, whose blocks attend otherwise."""
    blocks: dict[str, Any]
    if kind == "simple":
        blocks = {"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
                  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                  "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D")}  # fmt: skip
    else:
        blocks = {"only_cross_attention": kind == "only cross"}
    torch.manual_seed(0)
    net: Any = diffusers.UNet2DConditionModel(**UNET | blocks)
    if kind == "twice self":
        middle = net.mid_block.attentions[0].transformer_blocks
        middle[0] = BasicTransformerBlock(16, 2, 8, double_self_attention=True)
    return livened(net)


@pytest.mark.parametrize("kind", ["usual", "simple", "only cross", "twice self"])
def test_blocks_of_older_unets_are_what_they_attend_to(kind: str) -> None:
    net = older(kind)
    found = find_sites(net)
    call = unet_call(2)
    other = call | {"encoder_hidden_states": call["encoder_hidden_states"] + 1}
    seen = changed_rows(net, call, other)
    want = {}
    for name, calls in seen.items():
        by_text = [bool(keys.any()) for _, keys in calls]
        want[name] = "cross" if any(by_text) else "self"
    assert {site.name: site.kind for site in found} == want
    numbers = [site.layer for site in found if site.kind == "self"]
    assert numbers == list(range(len(numbers)))
    assert {s.layer for s in found if s.kind == "cross"} <= {None}
    kinds = Counter(site.kind for site in found)
    assert kinds == {
        "usual": {"self": 4, "cross": 4}, "simple": {"cross": 4},
        "only cross": {"self": 1, "cross": 7}, "twice self": {"self": 4, "cross": 4},
    }[kind]  # fmt: skip


def test_the_text_of_hunyuan_video_15_has_all_three_streams() -> None:
    name = "HunyuanVideo15Transformer3DModel"
    call = TINY[name].call(2)
    layout, net = read_layout(TINY[name].build(name), call), TINY[name].build(name)
    seen = changed_rows(net, call, call | {"hidden_states": call["hidden_states"] + 1})
    rows = [rows for calls in seen.values() for rows, _ in calls if len(rows) > layout.n_text]
    assert rows
    for reached in rows:
        assert int(reached.sum()) == layout.n_image
        assert layout.image("image-text", len(reached)) == slice(0, layout.n_image)
        assert layout.text("image-text", len(reached)) == slice(layout.n_image, len(reached))


def test_a_second_image_attention_has_no_number() -> None:
    names = {site.name: site.layer for site in sites(tiny("sd35"))}
    assert names["transformer_blocks.1.attn"] == 1
    assert names["transformer_blocks.1.attn2"] is None
    assert names["transformer_blocks.2.attn"] == 2


@pytest.mark.parametrize(
    ("wanted", "layers"),
    [
        (["mid"], [1]), (["mid_block"], [1]), ([3], [3]), (["L3", 0], [0, 3]), (["up"], [2, 3]),
        (["down_blocks.0"], [0]), (["attentions.0"], [0, 1, 2]), (["(down|up)_blocks"], [0, 2, 3]),
        (["mid_block.attentions.0.transformer_blocks.0.attn1"], [1]),
    ],
)  # fmt: skip
def test_layers_are_chosen_as_in_diffusers(wanted: list[Any], layers: list[int]) -> None:
    assert [site.layer for site in choose(sites(tiny("sd")), wanted)] == layers


def test_a_number_in_a_path_is_matched_whole() -> None:
    found = [site for site in sites(tiny("sd3"))]
    assert [site.layer for site in choose(found, ["blocks.1"])] == [1]


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (regaze.PAG(layers=("mid_blok",)), "nearest: mid_block"),
        (regaze.PAG(layers=(4,)), "L0 to L3"),
        (regaze.PAG(layers=("L17",)), "4 layers"),
        (regaze.PAG(layers=(CROSS,)), "cross-attention"),
        (regaze.PAG(layers=("mid(",)), "no regular expression"),
        (regaze.SoftPAG(heads={"L1": [4]}), "head 4 of L1"),
        (regaze.SoftPAG(heads="L9H0"), "no layer"),
    ],
)  # fmt: skip
def test_what_does_not_exist_raises_with_the_nearest(spec: Any, hint: str) -> None:
    pipe = tiny("sd")
    with pytest.raises(ValueError, match=hint):
        regaze.attach(pipe, spec)
    assert not pipe.unet._forward_hooks


def test_a_bare_denoiser_has_sites_and_other_things_have_none() -> None:
    assert sites(tiny("sd").unet) == sites(tiny("sd"))
    with pytest.raises(TypeError, match="no diffusers pipeline"):
        sites(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("finest", "level", "tokens", "grid"),
    [
        ((8, 6), 0, 48, (8, 6)), ((8, 6), 1, 12, (4, 3)), ((8, 6), 2, 4, (2, 2)),
        ((9, 7), 1, 20, (5, 4)), ((8, 6), 4, 1, (1, 1)), (None, 0, 48, None),
    ],
)  # fmt: skip
def test_grids_follow_the_latents_and_the_level(
    finest: tuple[int, ...] | None, level: int, tokens: int, grid: tuple[int, ...] | None
) -> None:
    site = Site("attn", "self", "block", 0, 2, "image", level)
    layout = Layout(finest, 5, halves=True)
    assert layout.grid(site, tokens) == grid
    if grid is not None:
        with pytest.raises(ValueError, match=f"attends with {tokens + 1} image tokens"):
            layout.grid(site, tokens + 1)


@pytest.mark.parametrize("size", [8, (9, 6)])
def test_the_native_grid_is_that_of_the_tokens(size: Any) -> None:
    unet = tiny("sd").unet
    before = unet.config.sample_size
    unet.register_to_config(sample_size=size)
    rows, columns = (size, size) if isinstance(size, int) else size
    seen: dict[str, int] = {}
    handles = [
        unet.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: seen.update({name: args[0].shape[1]})
        )
        for site in sites(unet)
    ]
    try:
        text = torch.zeros(1, 3, unet.config.cross_attention_dim)
        with torch.no_grad():
            unet(torch.zeros(1, 4, rows, columns), 1, encoder_hidden_states=text)
        grids = {site.name: native_grid(unet, site) for site in sites(unet)}
    finally:
        unet.register_to_config(sample_size=before)
        for handle in handles:
            handle.remove()
    assert seen == {name: grid[0] * grid[1] for name, grid in grids.items() if grid}
    assert len(set(seen.values())) > 1


def test_a_transformers_native_grid_counts_patches() -> None:
    pipe = tiny("sd3")
    config = pipe.transformer.config
    side = config.sample_size // config.patch_size
    assert {native_grid(pipe.transformer, site) for site in sites(pipe)} == {(side, side)}
    flux = tiny("flux")
    assert {native_grid(flux.transformer, site) for site in sites(flux)} == {None}


CROSSES = "cross-attention: image tokens attend to text, so that its map isn't square; it can't be"


@pytest.mark.parametrize("wanted", [CROSS, "mid_block.+attn2"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_cross_attention_layer_says_why_it_cannot_be_perturbed(family: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=CROSSES):
        regaze.attach(tiny(family), regaze.PAG(layers=(wanted,)))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("LTXVideoTransformer3DModel", "transformer_blocks.1.attn2"),
        ("LTX2VideoTransformer3DModel", "blocks.1.attn2"),
        ("Kandinsky5Transformer3DModel", "cross_attention"),
    ],
)
def test_cross_attention_of_any_spelling_has_no_number(name: str, layer: str) -> None:
    net = TINY[name].build(name)
    found = sites(net)
    assert {s.layer for s in found if s.kind == "cross"} == {None}
    assert [s.layer for s in found if s.layer is not None] == list(
        range(sum(s.kind in ("self", "joint") for s in found))
    )
    with pytest.raises(ValueError, match=CROSSES):
        regaze.attach(net, regaze.PAG(layers=(layer,)))


def test_attention_over_sound_or_text_alone_cannot_be_perturbed() -> None:
    for name, layer in (
        ("LTX2VideoTransformer3DModel", "audio_attn1"),
        ("Lumina2Transformer2DModel", "context_refiner.0.attn"),
    ):
        with pytest.raises(ValueError, match="something else than the image"):
            regaze.attach(TINY[name].build(name), regaze.PAG(layers=(layer,)))


def test_temporal_layers_are_a_group_of_their_own() -> None:
    found = sites(tiny("animatediff"))
    chosen = choose(found, ["motion_modules"], TEMPORAL)
    assert chosen == [site for site in found if site.kind == "temporal"]
    assert choose(found, ["mid_block"], TEMPORAL) == [s for s in chosen if s.block == "mid_block"]
    with pytest.raises(ValueError, match="self-attention.*choose temporal attention"):
        choose(found, ["L0"], TEMPORAL)
    with pytest.raises(ValueError, match="sees other frames.*choose cross- or joint"):
        choose(found, ["motion_modules"], TEXT)
    with pytest.raises(ValueError, match="matches no temporal- attention|matches no such"):
        choose(sites(tiny("sd")), ["motion"], TEMPORAL)
