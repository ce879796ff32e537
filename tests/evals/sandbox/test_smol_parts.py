"""The parts of `smol`: the vision tower and the delta against what they must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_parts
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlamaConfig

from regaze.evals.sandbox.smol.delta import Delta, load_delta, merge, save_delta
from regaze.evals.sandbox.smol.vision import config, imagenet_head, tower, tower_weights


def lite0(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-lite0's features as its definition reads: B0 with ReLU6, without gates."""

    def step(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = w[f"{conv}.weight"]
        side = kernel.shape[-1]
        if stride == 2:  # as TensorFlow pads: the odd one at the end
            x = F.pad(x, [(side - 2) // 2, (side - 1) // 2] * 2)
        padding = 0 if stride == 2 else side // 2
        x = F.conv2d(x, kernel, stride=stride, padding=padding, groups=groups)
        mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"], eps=1e-3)

    x = F.relu6(step(x, "_conv_stem", "_bn0", 2))
    block = 0
    for repeats, stride, expand in [
        *((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6))
    ]:
        for number in range(repeats):
            name, y = f"_blocks.{block}", x
            if expand > 1:
                y = F.relu6(step(y, f"{name}._expand_conv", f"{name}._bn0"))
            by = stride if number == 0 else 1
            y = step(y, f"{name}._depthwise_conv", f"{name}._bn1", by, groups=y.shape[1])
            y = step(F.relu6(y), f"{name}._project_conv", f"{name}._bn2")
            x = x + y if number else y
            block += 1
    return F.relu6(step(x, "_conv_head", "_bn1"))


@pytest.mark.parametrize("side", [64, 96])
def test_the_vision_tower_is_lite0_bit_for_bit(side: int) -> None:
    weights = small_parts.vision()
    picture = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = tower(weights, side)(picture).last_hidden_state
    assert got.shape == (2, 1280, side // 32, side // 32)
    assert torch.equal(got, lite0(weights, picture))
    assert 0.01 < float(got.mean()) < 6


def test_a_tensor_without_a_place_is_an_error_and_so_is_a_missing_one() -> None:
    weights = small_parts.vision()
    with pytest.raises(ValueError, match="_other.weight has no place"):
        tower_weights({**weights, "_other.weight": torch.zeros(1)})
    del weights["_blocks.3._bn1.bias"]
    with pytest.raises(RuntimeError, match="Missing key.*blocks.3"):
        tower(weights, 64)


def test_the_imagenet_head_stays_with_the_parts() -> None:
    weights = small_parts.vision()
    weight, bias = imagenet_head(weights)
    assert weight.shape == (1000, 1280) and bias.shape == (1000,)
    assert not any("_fc" in name for name in tower_weights(weights))


@pytest.fixture
def model() -> FastVlmForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=small_parts.HIDDEN,
        intermediate_size=96,
        num_hidden_layers=small_parts.LAYERS,
        num_attention_heads=small_parts.HEADS,
        num_key_value_heads=small_parts.PAIRS,
    )
    vision = config(64)
    return FastVlmForConditionalGeneration(FastVlmConfig(vision_config=vision, text_config=text))


def test_a_delta_is_written_as_float16_and_added_with_its_scale(
    model: nn.Module, tmp_path: Path
) -> None:
    made = small_parts.delta()
    save_delta(made, tmp_path / "delta.safetensors")
    read = load_delta(tmp_path / "delta.safetensors")
    assert read.about == made.about and {x.dtype for x in read.tensors.values()} == {torch.float16}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    merge(model, read)
    after = model.state_dict()
    for name, x in before.items():
        if "multi_modal_projector" in name:
            key = name.replace("model.multi_modal_projector", "projector")
            assert torch.equal(after[name], made.tensors[key].half().float()), name
        elif "self_attn" in name:
            _, _, _, layer, _, target, _ = name.split(".")
            a, b = (made.tensors[f"lora.{layer}.{target}.{k}"].half().double() for k in "AB")
            torch.testing.assert_close(after[name].double() - x.double(), 0.5 * (b @ a))
        else:
            assert torch.equal(after[name], x), name


def test_a_delta_of_another_model_or_layout_is_an_error(model: nn.Module, tmp_path: Path) -> None:
    made = small_parts.delta()

    def changed(**more: Tensor | None) -> Delta:
        tensors = {k: x for k, x in {**made.tensors, **more}.items() if x is not None}
        return Delta(tensors, made.about)

    for key, value, said in (
        ("lora.1.q_proj.B", None, "lora.1.q_proj.A without lora.1.q_proj.B"),
        ("lora.1.q_proj.A", None, "lora.1.q_proj.B has no place"),
        ("lora.9.q_proj.A", torch.zeros(2, 64), "lora.9.q_proj.A without"),
        ("more", torch.zeros(1), "more has no place"),
        ("projector.linear_1.bias", torch.zeros(3), r"of \(3,\); the model has the shape \(64,\)"),
        ("projector.linear_3.bias", torch.zeros(3), "the model has no such weight"),
    ):
        with pytest.raises(ValueError, match=said):
            merge(model, changed(**{key: value}))
    path = tmp_path / "delta.safetensors"
    save_delta(Delta(made.tensors, replace(made.about, version=1)), path)
    with pytest.raises(ValueError, match="layout 1, and this regaze reads 2"):
        load_delta(path)
