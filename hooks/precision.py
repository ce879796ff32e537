"""The precision of float32 matrix products, which users may lower for speed."""

from __future__ import annotations

import torch

_LOWERED = {"tf32": torch.float16, "bf16": torch.bfloat16}
_SAID = {"high": "tf32", "medium": "bf16"}


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to whose precision the factors of matrix products may be rounded.

    ``torch.set_float32_matmul_precision`` and the switches of each backend let products of float32
    tensors round their factors: to tf32, which has float16's 10 bits, or to bfloat16.

    Args:
        dtype: The tensors' dtype.
        device: The device that multiplies them.
    """
    if dtype != torch.float32:
        return dtype
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    said = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if said is None:  # Before torch 2.9 there is one switch for all backends.
        said = _SAID.get(torch.get_float32_matmul_precision(), "")
    return _LOWERED.get(str(said), dtype)
