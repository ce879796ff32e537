"""Runs of a denoiser with other attention, to see what reaches which token; this thread's alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import modes
from regaze.hooks.diffusion.containers import copy_containers
from regaze.hooks.diffusion.literal_maps import bias_of
from regaze.hooks.diffusion.perturb import as_query_heads

Answer = Callable[[str, Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]
"""A function that answers a kernel call: path of the module, query, key, value, settings."""
Seen = dict[str, list[tuple[Tensor, Tensor]]]
"""Sketches of queries and keys by module, in the order of its kernel calls."""
_SKETCH = 8


class _Here(threading.local):
    """The attention modules that this thread is in, while it probes."""

    inside: list[str] | None = None


_HERE = _Here()


def attention_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The modules that attend, by path."""
    return {
        path: module
        for path, module in denoiser.named_modules()
        if hasattr(module, "processor")
        and (hasattr(module, "heads") or hasattr(module, "num_heads"))
    }


class _Kernel(modes.Mode):
    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not _HERE.inside:
            return func(*args, **named)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        named = dict(zip(names, args, strict=False)) | named
        query, key, value = (named.pop(name) for name in names[:3])
        return self._answer(_HERE.inside[-1], query, key, value, named)


@contextmanager
def answering(denoiser: nn.Module, answer: Answer) -> Iterator[None]:
    """Answer the kernel calls of the attention modules in passes inside."""
    paths = {id(module): path for path, module in attention_modules(denoiser).items()}

    def enter(module: nn.Module, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if _HERE.inside is None:
            return call(*args, **kwargs)
        _HERE.inside.append(paths[id(module)])
        try:
            return call(*args, **kwargs)
        finally:
            _HERE.inside.pop()

    calls, before, depth = Calls(), _HERE.inside, torch._C._len_torch_function_stack()
    try:
        for module in attention_modules(denoiser).values():
            calls.around(module, enter, inner=True)
        _HERE.inside = []
        with _Kernel(answer):
            yield
    finally:
        _HERE.inside = before
        modes.restore(depth, sys.exc_info()[1])
        calls.release()


def predict(denoiser: Any, call: Mapping[str, Any]) -> Tensor:
    """The denoiser's prediction, around whatever else is attached to its call.

    Raises:
        TypeError: Its output isn't a tensor.
    """
    output = denoiser._call_impl(**copy_containers(dict(call)))
    first = output if isinstance(output, Tensor) else output[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"its output is a {type(first).__name__}, not a tensor")
    return first


def muted(denoiser: Any, call: Mapping[str, Any]) -> Seen:
    """Inputs of each attention call where attention gives zeros: no token hears of another."""
    seen: Seen = {}

    def mute(path: str, query: Tensor, key: Tensor, value: Tensor, named: Any) -> Tensor:
        seen.setdefault(path, []).append((_sketch(query), _sketch(key)))
        return query.new_zeros((*query.shape[:-1], value.shape[-1]))

    with answering(denoiser, mute):
        predict(denoiser, call)
    return seen


def _sketch(x: Tensor) -> Tensor:
    """A few random numbers for each token, "B N S", which keep a map of what is large: its size."""
    made = torch.Generator().manual_seed(0)
    weights = torch.randn(
        x.shape[1], x.shape[3], _SKETCH, generator=made, dtype=torch.float32, device="cpu"
    ).to(x.device)
    return torch.einsum("bhnd,hds->bns", x.float(), weights)


def reached(before: Tensor, after: Tensor) -> Tensor:
    """The distance that each token moved, "N"; 0 up to rounding where nothing reached it."""
    moved = (after - before).norm(dim=-1).amax(0)
    found: Tensor = moved.masked_fill(moved <= 1e-5 * before.norm(dim=-1).amax(), 0)
    return found


def by_maps(denoiser: Any, call: Mapping[str, Any], pictures: Mapping[str, slice]) -> Tensor:
    """The denoiser's prediction with explicit N x N maps, in which picture rows see themselves.

    Args:
        denoiser: The model.
        call: Arguments of the denoiser's call.
        pictures: By module, the rows that are to see nothing but themselves; others' maps stay.
    """

    def attend(path: str, query: Tensor, key: Tensor, value: Tensor, named: Any) -> Tensor:
        if path not in pictures:
            return F.scaled_dot_product_attention(query, key, value, **named)
        if named.get("is_causal"):
            raise ValueError(f"{path} is causal, which no perturbation allows for")
        heads = query.shape[1]
        key, value = (as_query_heads(x.float(), heads) for x in (key, value))
        logits = query.float() @ key.mT * (named.get("scale") or query.shape[-1] ** -0.5)
        weights = (logits + bias_of(named.get("attn_mask"), logits)).softmax(-1).nan_to_num(0)
        rows = pictures[path]
        weights[..., rows, :] = torch.eye(weights.shape[-1], dtype=torch.float32, device="cpu").to(
            weights
        )[rows]
        out: Tensor = (weights @ value).to(query.dtype)
        return out

    with answering(denoiser, attend):
        return predict(denoiser, call)
