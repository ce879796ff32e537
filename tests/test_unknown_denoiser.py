"""Denoisers of unknown classes: found out by trying, with the right values, or refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from literal_denoisers import alone, blurred, literally, prediction, soft
from tiny_calls import GRID, HEIGHT, TEXT, TOKENS, WIDTH, noise, step, unet_call
from tiny_denoisers import TINY, livened
from torch import Tensor, nn

import regaze
from regaze.hooks.diffusion.families import CHECKED
from regaze.hooks.diffusion.proof import Proven
from regaze.hooks.diffusion.sites import find_sites, read_layout
from regaze.hooks.diffusion.works import Attend
from regaze.interventions import PAG, SEG, SoftPAG

SCALE = 1.5


class Layer(nn.Module):
    """Joint attention of one stream by diffusers' own module, then cross-attention."""

    def __init__(self, crosses: bool) -> None:
        super().__init__()
        self.look = Attention(WIDTH, heads=4, dim_head=4)
        self.read = Attention(WIDTH, WIDTH, heads=4, dim_head=4) if crosses else None

    def forward(self, x: Tensor, text: Tensor) -> Any:
        x = x + self.look(x)
        return x if self.read is None else x + self.read(x, encoder_hidden_states=text)


class Painter(diffusers.ModelMixin, ConfigMixin):  # type: ignore[misc]
    """An own transformer.

    Args:
        order: Its stream's order: "text-image", "image-text", "image", or "both": the other way
            round in the second layer.
        fault: Another peculiarity of it, by name.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, order: str = "image", fault: str = "") -> None:
        super().__init__()
        self.cut = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.thoughts = nn.ModuleList(Layer(order == "image") for _ in range(3))
        self.out = nn.Linear(WIDTH, 16)
        self.order, self.fault = order, fault

    def forward(
        self, latent: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        x, words = self.cut(latent), encoder_hidden_states
        height, width = x.shape[-2:]
        x = x.flatten(2).mT if self.fault != "columns" else x.mT.flatten(2).mT
        if self.fault == "pools":
            x = x + words.mean(1, keepdim=True)
        if self.fault == "hears":
            words = words + x.mean(1, keepdim=True)
        if self.fault == "batch":
            x = x + x.mean(0)
        x = x + timestep[:, None, None] / 1000
        n = x.shape[1]
        joint = {"image": [x], "text-image": [words, x], "image-text": [x, words]}
        first = "text-image" if self.order == "both" else self.order
        x = torch.cat(joint[first], 1)
        layers = list(self.thoughts)
        for number, layer in enumerate(reversed(layers) if self.fault == "order" else layers):
            if self.order == "both" and number == 1:
                x = torch.cat([x[:, TEXT:], x[:, :TEXT]], 1)
            if self.fault == "noise":
                x = x + 0.1 * torch.randn_like(x)
            x = layer(x, words)
        x = x[:, TEXT:] if self.order == "text-image" else x[:, :n]
        x = self.out(x).mT.unflatten(2, (height, width))
        return (nn.functional.pixel_shuffle(x, 2),)


def painter(order: str = "image", fault: str = "") -> Any:
    torch.manual_seed(0)
    return livened(Painter(order, fault))


def call(batch: int) -> dict[str, Any]:
    return {
        "latent": noise(batch, 4, 8, 6), "timestep": step(batch),
        "encoder_hidden_states": noise(batch, TEXT, WIDTH, seed=1),
    }  # fmt: skip


@torch.no_grad()
def run(net: Any, arguments: dict[str, Any]) -> Tensor:
    return prediction(net(**arguments))


def picture(order: str) -> Tensor:
    rows = torch.zeros(TOKENS + (0 if order == "image" else TEXT), dtype=torch.bool)
    rows[TEXT if order == "text-image" else 0 :][:TOKENS] = True
    return rows


METHODS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "pag": (PAG, {}, alone),
    "seg": (SEG, {"sigma": 1.0}, blurred(1.0, (1, *GRID))),
    "softpag": (SoftPAG, {"u": 0.6, "target": "uniform"}, soft("uniform", 0.6)),
}


@pytest.mark.parametrize("order", ["image", "text-image", "image-text"])
@pytest.mark.parametrize("method", METHODS)
def test_an_own_transformer_equals_literal_maps(order: str, method: str) -> None:
    net, (spec, settings, edit) = painter(order), METHODS[method]
    at = ("thoughts.0.look", "thoughts.2.look")
    plain = run(net, call(2))
    perturbed = literally(net, call(2), {path: [picture(order)] for path in at}, edit)
    with regaze.attach(net, spec(scale=SCALE, layers=at, **settings), unknown="check") as attached:
        got = run(net, call(2))
        again = run(net, call(1))
        report = attached.report()
    want = plain + SCALE * (plain - perturbed)
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(again, want[:1], rtol=1e-4, atol=2e-5)
    assert report.fired
    (one,) = report.interventions
    assert one.note == "whole extra passes: what its blocks read of each other isn't known"
    assert [(layer.layer, layer.calls) for layer in one.layers] == [(0, 2), (2, 2)]
    assert torch.equal(run(net, call(2)), plain)


def test_numbers_count_self_attention_alone_and_one_branch_is_perturbed() -> None:
    net = painter()
    plain = run(net, call(2))
    perturbed = literally(net, call(2), {"thoughts.1.look": [picture("image")]}, alone)
    spec = PAG(scale=SCALE, layers=(1,))
    with regaze.attach(net, spec, cond_rows=slice(1, 2), unknown="check"):
        got = run(net, call(2))
    torch.testing.assert_close(got, plain + SCALE * (plain - perturbed)[1:], rtol=1e-4, atol=2e-5)


class MyUNet(diffusers.UNet2DConditionModel):  # type: ignore[misc]
    """A subclass with a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Renamed(diffusers.ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net by another name, with its parts."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        inside = TINY["UNet2DConditionModel"].build("UNet2DConditionModel")
        for name, part in inside.named_children():
            self.add_module(name, part)
        self.inside = [inside]

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        return self.inside[0](sample, timestep, encoder_hidden_states)


def unet(kind: str) -> Any:
    torch.manual_seed(0)
    tiny = TINY["UNet2DConditionModel"]
    return (livened(MyUNet(**tiny.config)) if kind == "subclass" else Renamed()).eval()


@pytest.mark.parametrize("kind", ["subclass", "renamed"])
def test_a_unet_by_another_name(kind: str) -> None:
    net = unet(kind)
    plain = run(net, unet_call(2))
    with pytest.raises(ValueError, match='isn\'t known here.*unknown="check"'):
        regaze.attach(net, PAG())
    attached = regaze.attach(net, PAG(scale=SCALE), unknown="check")
    got = run(net, unet_call(2))
    paths = [layer.name for layer in attached.report().interventions[0].layers]
    known = TINY["UNet2DConditionModel"].build("UNet2DConditionModel")
    known.load_state_dict(net.state_dict())
    assert isinstance(read_layout(net, unet_call(2)), Proven)
    assert [s.name for s in find_sites(net)] == [s.name for s in find_sites(known)]
    mine, theirs = (read_layout(one, unet_call(2)) for one in (net, known))
    assert mine.finest == theirs.finest
    for site in find_sites(known):
        tokens = HEIGHT * 6 // 4**site.level
        assert mine.grid(site, tokens) == theirs.grid(site, tokens) is not None
    assert {site.level for site in find_sites(known)} == {0, 1}
    with regaze.attach(known, PAG(scale=SCALE), fork=False) as other:
        want = run(known, unet_call(2))
        assert paths == [layer.name for layer in other.report().interventions[0].layers]
    assert torch.equal(got, want)
    attached.detach()
    assert torch.equal(run(net, unet_call(2)), plain)
    with pytest.raises(ValueError, match="isn't known here"):
        regaze.attach(net, PAG())
    assert net not in CHECKED


def test_a_subclass_whose_streams_lie_the_other_way_round_is_right_all_the_same() -> None:
    class Lies(diffusers.SD3Transformer2DModel):  # type: ignore[misc]
        """A transformer whose processors put the text first, where its parent has the picture."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    class TextFirst:
        def __call__(
            self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *a: Any, **k: Any
        ) -> Any:
            def heads(x: Tensor) -> Any:
                return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

            x, text = hidden_states, encoder_hidden_states
            q = torch.cat([heads(attn.add_q_proj(text)), heads(attn.to_q(x))], 2)
            k_ = torch.cat([heads(attn.add_k_proj(text)), heads(attn.to_k(x))], 2)
            v = torch.cat([heads(attn.add_v_proj(text)), heads(attn.to_v(x))], 2)
            out = nn.functional.scaled_dot_product_attention(q, k_, v).transpose(1, 2).flatten(2)
            n = text.shape[1]
            out, words = attn.to_out[0](out[:, n:]), out[:, :n]
            return out, words if attn.context_pre_only else attn.to_add_out(words)

    tiny = TINY["SD3Transformer2DModel"]
    torch.manual_seed(0)
    net = livened(Lies(**tiny.config))
    at = [s.name for s in find_sites(tiny.build("SD3Transformer2DModel")) if s.layer is not None]
    for path in at:
        attention: Any = net.get_submodule(path)
        attention.processor = TextFirst()
    plain = run(net, tiny.call(2))
    images = {path: [picture("text-image")] for path in at}
    perturbed = literally(net, tiny.call(2), images, alone)
    with regaze.attach(net, PAG(scale=SCALE, layers=tuple(at)), unknown="check"):
        got = run(net, tiny.call(2))
    torch.testing.assert_close(got, plain + SCALE * (plain - perturbed), rtol=1e-4, atol=2e-5)


def test_one_is_accepted_where_products_are_rounded() -> None:
    net = painter()
    torch.set_float32_matmul_precision("medium")
    try:
        with regaze.attach(net, PAG(scale=SCALE), unknown="check") as attached:
            run(net, call(2))
        assert attached.report().fired
    finally:
        torch.set_float32_matmul_precision("highest")


class Biased:
    """Attention with a map of its own, by the kernel's name for part of it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        q, k, v = (
            proj(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for proj in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self.how == "by hand":
            out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        elif self.how == "causal":
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            half = q.shape[2] // 2
            parts = [
                nn.functional.scaled_dot_product_attention(q[:, :, s], k[:, :, s], v[:, :, s])
                for s in (slice(0, half), slice(half, None))
            ]
            out = torch.cat(parts, 2)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("order", "fault", "words"),
    [
        ("both", "", r"of 17 tokens the picture's are slice\(5, 17.*slice\(0, 12"),
        ("text-image", "pools", "row 5 hears both of latent and of encoder_hidden_states"),
        ("text-image", "hears", "row 0 hears both of latent and of encoder_hidden_states"),
        ("image", "order", "thoughts.2.look runs in another place"),
        ("image", "batch", "sample 0 of a batch gives something else alone"),
        ("image", "noise", "something else each time"),
        ("image", "by hand", "thoughts.1.look made no call of scaled_dot_product_attention"),
        ("image", "causal", "thoughts.1.look is causal"),
        ("image", "parts", "thoughts.1.look calls its kernel on 6 of the 12 rows"),
    ],
)
def test_what_cannot_be_proven_says_why(order: str, fault: str, words: str) -> None:
    net = painter(order, fault)
    if fault in ("by hand", "causal", "parts"):
        net.thoughts[1].look.processor = Biased(fault)
    plain = net.state_dict().keys()
    with regaze.attach(net, PAG(layers=(0,)), unknown="check"):
        with pytest.raises(ValueError, match=words):
            run(net, call(2))
        with pytest.raises(ValueError, match=words):
            run(net, call(2))
    assert net.state_dict().keys() == plain
    assert type(net) is Painter


def test_a_batch_that_grows_is_proven_again() -> None:
    net = painter("image", "batch")
    with regaze.attach(net, PAG(layers=(0,)), unknown="check"):
        run(net, call(1))
        with pytest.raises(ValueError, match="sample 0 of a batch gives something else alone"):
            run(net, call(2))


def test_a_grid_that_rows_do_not_follow_counts_as_unknown() -> None:
    net = painter("image", "columns")
    with regaze.attach(net, SEG(layers=(0,), sigma=1.0), unknown="check"):
        assert read_layout(net, call(1)).finest is None
        with pytest.raises(ValueError, match="needs the grid"):
            run(net, call(1))
    plain = run(net, call(1))
    perturbed = literally(net, call(1), {"thoughts.0.look": [picture("image")]}, alone)
    with regaze.attach(net, PAG(scale=SCALE, layers=(0,)), unknown="check"):
        got = run(net, call(1))
    torch.testing.assert_close(got, plain + SCALE * (plain - perturbed), rtol=1e-4, atol=2e-5)


def test_other_methods_and_models_without_attention_are_refused() -> None:
    net = painter()

    class Other:
        label, acts_on = "other", "diffusers pipelines"

        def resolve(self, host: Any) -> Other:
            return self

        def bind(self, host: Any) -> Any:
            return Attend(host.layers)

    with pytest.raises(ValueError, match="other needs more of a denoiser.*PAG, SEG, SoftPAG"):
        regaze.attach(net, Other(), unknown="check")
    with pytest.raises(ValueError, match="none of its modules has heads and a processor"):
        regaze.attach(Bare(), PAG(), unknown="check")
    with pytest.raises(ValueError, match="Refused isn't known here.*linear"):
        regaze.attach(Refused.__new__(Refused), PAG(), unknown="check")
    with pytest.raises(ValueError, match="unknown must be"):
        regaze.attach(net, PAG(), unknown="guess")  # type: ignore[arg-type]
    compiled = torch.compile(net)
    with pytest.raises(ValueError, match="is compiled"):
        regaze.attach(compiled, PAG(), unknown="check")


class Bare(diffusers.ModelMixin, ConfigMixin):  # type: ignore[misc]
    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, sample: Tensor) -> Any:
        return (self.line(sample),)


class Refused(diffusers.SanaTransformer2DModel):  # type: ignore[misc]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)
