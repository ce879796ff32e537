"""SmolLM2 and its tokenizer out of a GGUF file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
"""Placeholder of an image's cell in a prompt."""


def check_gguf() -> None:
    """Check that GGUF files can be read.

    Raises:
        ValueError: The package ``gguf`` is missing.
    """
    if find_spec("gguf") is None:
        raise ValueError(
            "reading the language model needs the package gguf, once: pip install 'regaze[smol]'"
        )


def read_language(file: Path) -> LlamaForCausalLM:
    """The language model, its 4-bit weights as float32.

    Raises:
        ValueError: See `check_gguf`.
    """
    check_gguf()
    loader: Any = LlamaForCausalLM
    model: LlamaForCausalLM = loader.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with the image's token after all others, padding on the left.

    Raises:
        ValueError: See `check_gguf`.
    """
    check_gguf()
    loader: Any = AutoTokenizer
    tokenizer: PreTrainedTokenizerFast = loader.from_pretrained(
        file.parent, gguf_file=file.name, padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer
