"""Flex attention on a CPU, without the compiler."""

from __future__ import annotations

import functools

import pytest
from torch.nn.attention import flex_attention as flex
from transformers import masking_utils
from transformers.integrations import flex_attention as flex_integration


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention without the compiler, which would take minutes."""
    uncompiled = functools.wraps(flex.create_block_mask)(
        lambda *args, _compile=True, **kwargs: flex.create_block_mask(*args, **kwargs)
    )
    monkeypatch.setattr(masking_utils, "create_block_mask", uncompiled)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(
        flex_integration,
        "compile_friendly_flex_attention",
        lambda query, key, value, training=False, **options: flex.flex_attention(
            query, key, value, **options
        ),
    )
