"""Devices and dtypes of a model, by the names that users give."""

from __future__ import annotations

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtype(name: str, *more: str) -> torch.dtype:
    """The dtype of that name.

    Args:
        name: The name of a dtype that models compute in.
        *more: Other names that the caller knows, for the message.

    Raises:
        ValueError: No such dtype.
    """
    found = next((one for one in _DTYPES if str(one) == f"torch.{name}"), None)
    if found is None:
        *others, last = (*more, *(str(one).removeprefix("torch.") for one in _DTYPES))
        raise ValueError(f"unknown dtype {name!r}: use {', '.join(others)} or {last}")
    return found


def device(name: str | None) -> str:
    """The device to use, checked to be there.

    Args:
        name: As in torch, e.g. ``cuda:1``. Default: the first GPU, else the CPU.

    Raises:
        ValueError: No such device here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Whatever a build that lacks this kind of device, or has too few, makes it raise.
        torch.zeros(1, device=name)
        there = torch.device(name).type != "meta"
    except (AssertionError, NotImplementedError, RuntimeError):
        there = False
    if not there:
        count = torch.cuda.device_count()
        here = f"cpu, or cuda:0 to cuda:{count - 1}" if count else "cpu; there is no GPU here"
        raise ValueError(f"there is no device {name!r} for a model here: use {here}")
    return name
