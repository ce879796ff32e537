"""Direct effects: what they sum to, against the residual stream taken apart by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from heads import subject
from torch import Tensor

from regaze.evals.analysis.direct import DirectEffect, direct_effects, right_signs
from regaze.evals.analysis.frozen import fit, freeze


def rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_heads_and_all_else_add_up_to_the_difference_of_logits(family: str) -> None:
    of = subject(family, batch_size=3)
    (batch,) = of.batches()
    yes, no = of.answerer.yes_no or ([], [])
    found = direct_effects(of.host, of, batch, yes, no)
    gemma = family == "gemma3"
    kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        output = output[0] if isinstance(output, tuple) else output
        kept[module] = given[:, -1].double(), output[:, -1].double()

    tower: Any = of.host.tower
    handles = [
        module.register_forward_hook(keep, with_kwargs=True)
        for layer in tower.layers
        for module in (layer, *layer.children(), layer.self_attn.o_proj)
    ] + [tower.norm.register_forward_hook(keep, with_kwargs=True)]
    logits = of.read(batch).logits[:, -1].double()
    for handle in handles:
        handle.remove()

    eps = float(tower.norm.eps if gemma else tower.norm.variance_epsilon)

    def gain(norm: Any) -> Tensor:
        weight: Tensor = norm.weight.double()
        return 1 + weight if gemma else weight

    table = of.model.get_output_embeddings().weight.double()
    stream = kept[tower.norm][0]
    for row in range(3):
        one = yes[int(logits[row, yes].argmax())]
        other = no[int(logits[row, no].argmax())]
        difference = logits[row, one] - logits[row, other]
        assert found.difference[row] == pytest.approx(float(difference), abs=1e-4)
        towards = (table[one] - table[other]) * gain(tower.norm) * rms(stream[row], eps)
        rest = kept[tower.layers[0]][0][row] @ towards
        for number, layer in enumerate(tower.layers):
            mlp_norm = layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm
            rest = rest + (kept[layer][1][row] - kept[mlp_norm][0][row]) @ towards
            outputs = kept[layer.self_attn.o_proj][0][row]
            for head in range(of.host.n_heads):
                alone = torch.zeros_like(outputs).view(of.host.n_heads, -1)
                alone[head] = outputs.view(of.host.n_heads, -1)[head]
                put = alone.flatten() @ layer.self_attn.o_proj.weight.double().mT
                if gemma:
                    norm = layer.post_attention_layernorm
                    put = put * gain(norm) * rms(kept[norm][0][row], eps)
                assert found.heads[number][row, head] == pytest.approx(
                    float(put @ towards), rel=1e-3, abs=1e-4
                )
        assert found.rest[row] == pytest.approx(float(rest), rel=1e-3, abs=1e-3)


def test_maps_are_towards_what_is_right() -> None:
    of = subject("llava")
    made = DirectEffect(of)
    for batch in of.batches():
        made.add(batch)
    right, yes = made.maps()
    (batch,) = subject("llava", 3).batches()
    single = direct_effects(of.host, of, batch, *(of.answerer.yes_no or ([], [])))
    signs = right_signs(["yes", "no", "no"])
    for layer, effects in single.heads.items():
        torch.testing.assert_close(yes.values[layer], effects.mean(0), rtol=1e-3, atol=1e-4)
        want = (effects * signs[:, None]).mean(0)
        torch.testing.assert_close(right.values[layer], want, rtol=1e-3, atol=1e-4)


def test_norms_are_told_by_what_they_do() -> None:
    x, direction = torch.randn(2, 8), torch.randn(2, 8).double()
    layer_norm = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(layer_norm.weight)
    torch.nn.init.normal_(layer_norm.bias)
    root = torch.nn.RMSNorm(8)
    torch.nn.init.normal_(root.weight)
    for norm in (layer_norm, root):
        assert isinstance(norm, torch.nn.Module)
        after = norm(x).detach()
        frozen = freeze(norm, x, after, torch.float32)
        assert frozen is not None
        shift = 0 if norm is root else layer_norm.bias.detach().double()
        want = (direction * (after.double() - shift)).sum(-1)
        got = (frozen.back(direction) * x.double()).sum(-1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert freeze(root, x, x.tanh(), torch.float32) is None
    assert fit(x.double(), -2 * x.double(), torch.float32) is not None
    assert fit(x.double(), x.double() + 0.01 * x.double().norm(), torch.float32) is None


def test_what_isn_t_known_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject("llava")
    (batch, *_) = of.batches()
    ids = of.answerer.yes_no or ([], [])
    layer: Any = of.host.tower.layers[1]  # type: ignore[index]
    handle = layer.self_attn.register_forward_hook(lambda m, a, out: (out[0].tanh(), out[1]))
    with pytest.raises(ValueError, match="layer 1 doesn't add its attention"):
        direct_effects(of.host, of, batch, *ids)
    handle.remove()
    head = of.model.lm_head.register_forward_hook(lambda m, a, out: out.tanh())
    with pytest.raises(ValueError, match="unembedding"):
        direct_effects(of.host, of, batch, *ids)
    head.remove()
    monkeypatch.setattr(type(of.task), "yes_no", False)
    with pytest.raises(ValueError, match="isn't answered by yes or no"):
        DirectEffect(of)
