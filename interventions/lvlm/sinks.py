"""Attention sinks: the hidden dimensions that mark them, known for some models, found for others.

Massive activations sit in the same few dimensions at the first token and at visual sinks
(arXiv 2503.03321, section 3; dimensions of LLaVA-1.5 from seilk/VisAttnSink@98e62d6, of the
others from the paper), so the first token of any text shows them. A dimension that is as high on
the tokens behind it marks nothing: the threshold doesn't separate sinks by it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.checks import check_number
from regaze.hooks.host import Host, find_host
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.stack import paused
from regaze.hooks.targets import split_target

DEFAULT_TAU = 20 / 4096**0.5
"""The published threshold 20 at LLaVA-1.5-7B's hidden size, as a fraction of phi's bound."""

_TEXTS = (
    "Describe the image in detail.",
    "Is there a dog in the image? Answer with yes or no.",
    "What is the person on the left doing, and why?",
)


@dataclass(frozen=True)
class SinkProfile:
    """The hidden dimensions that mark sinks in a model.

    Attributes:
        sink_dims: The dimensions, strongest first.
        tau: Threshold as a fraction of sqrt(hidden size).
        strength: Mean |x_d| / RMS of the first token over the searched layers, per dimension.
        source: "known" (published) or "found".
        elsewhere: The same of the median token behind the first, per dimension.
        everywhere: Dimensions above the threshold on the first token and on the median one too,
            which tell no token from another: (dimension, first token's, median token's).
    """

    sink_dims: tuple[int, ...]
    tau: float
    strength: tuple[float, ...] = ()
    source: str = "found"
    elsewhere: tuple[float, ...] = ()
    everywhere: tuple[tuple[int, float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


# (model type, hidden size, layers, key/value heads) -> dimensions
_KNOWN = {
    ("llava", 4096, 32, 32): (2533, 1415),  # LLaVA-1.5-7B
    ("llava", 5120, 40, 40): (2100, 4743),  # LLaVA-1.5-13B
    ("qwen2_vl", 3584, 28, 4): (458, 2570),  # Qwen2-VL-7B
    ("internvl", 4096, 32, 8): (3584,),  # InternVL2-8B
}
_FOUND: MutableMapping[nn.Module, dict[float, SinkProfile]] = weakref.WeakKeyDictionary()


def known_sinks(host: Host) -> SinkProfile | None:
    """The published profile of a model, recognised by its shape."""
    key = (host.model_type, host.hidden_size, host.n_layers, host.n_kv_heads)
    dims = _KNOWN.get(key)
    tau = 20 / host.hidden_size**0.5
    return None if dims is None else SinkProfile(dims, tau, source="known")


def sink_values(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """phi: how strongly each token carries the sink dimensions.

    Args:
        hidden: "B T E", residual stream before a layer's norm.
        dims: Sink dimensions.

    Returns:
        "B T", between 0 and sqrt(E).

    Raises:
        ValueError: Several residual streams run side by side.
    """
    hidden = _one_stream(hidden)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=exact).float()
    rms = (norm.square() / hidden.shape[-1] + 1e-6).sqrt()
    phi: Tensor = hidden[..., list(dims)].float().abs().amax(-1) / rms
    return phi


def _one_stream(hidden: Tensor) -> Tensor:
    if hidden.ndim != 3:
        raise ValueError(
            "sinks show in the residual stream, but this model's layers pass on several streams "
            f"side by side (a tensor of {hidden.ndim} dimensions)"
        )
    return hidden


def discover_sinks(model: Any, processor: Any = None, tau: float | None = None) -> SinkProfile:
    """Find the hidden dimensions that mark sinks in a model.

    Runs a few short texts, looks at the residual stream entering layers 2 and up, and keeps the
    dimensions whose |x_d| / RMS exceeds tau sqrt(E) on the first token, and not on the median one
    of those behind it, in most of those layers.

    Args:
        model: A transformers model or pipeline.
        processor: Processor of the model; without one, arbitrary token ids follow the BOS token.
        tau: Threshold as a fraction of sqrt(hidden size).

    Returns:
        The profile; ``sink_dims`` is empty if nothing stands out.

    Raises:
        TypeError: Neither a model nor a pipeline that holds one.
        ValueError: Its text layers can't be told, or tau is out of its domain.
    """
    return find_sinks(find_host(*split_target(model, processor), unknown="check"), tau)


def find_sinks(host: Host, tau: float | None = None) -> SinkProfile:
    """`discover_sinks` on a host; remembered per model."""
    tau = DEFAULT_TAU if tau is None else tau
    # A vector's largest value is at most sqrt(E) of its root mean square.
    check_number("sinks", "tau", tau, low=0, high=1, why="a fraction of sqrt(hidden size)")
    found = _FOUND.setdefault(host.tower, {})
    if tau not in found:
        found[tau] = _search(host, tau)
    return found[tau]


@torch.no_grad()
def _search(host: Host, tau: float) -> SinkProfile:
    seen: list[list[Tensor]] = []
    here = threading.get_ident()

    @sees_keywords
    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != here:  # Another thread may run the model meanwhile.
            return
        hidden = _one_stream(args[0] if args else kwargs["hidden_states"])[0].float().cpu()
        phi = hidden.abs() / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        seen[-1].append(torch.stack([phi[0], phi[1:].median(0).values]))

    module: Any = host.tower
    searched = module.layers[min(2, host.n_layers - 1) :]
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in searched]
    try:
        # Weights that are offloaded have no device; their hooks move the ids.
        device = module.get_input_embeddings().weight.device
        device = torch.device("cpu") if device.type == "meta" else device
        with paused(module):
            for ids in _prompts(host):
                seen.append([])
                module(input_ids=ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    phi = torch.stack([torch.stack(layers) for layers in seen]).mean(0)  # "L 2 E"
    high = phi > tau * host.hidden_size**0.5
    first, others = phi.mean(0)

    def ranked(layers: Tensor) -> list[int]:
        often = layers.float().mean(0) > 0.5
        return [int(d) for d in first.argsort(descending=True) if often[d]]

    dims = ranked(high[:, 0] & ~high[:, 1])
    return SinkProfile(
        tuple(dims),
        tau,
        tuple(round(float(first[d]), 3) for d in dims),
        elsewhere=tuple(round(float(others[d]), 3) for d in dims),
        everywhere=tuple(
            (d, round(float(first[d]), 3), round(float(others[d]), 3)) for d in ranked(high.all(1))
        ),
    )


def _prompts(host: Host) -> list[Tensor]:
    tokenizer = getattr(host.processor, "tokenizer", host.processor)
    if callable(tokenizer):
        return [torch.tensor([tokenizer(text)["input_ids"]], device="cpu") for text in _TEXTS]
    config: Any = host.tower.config
    generator = torch.Generator().manual_seed(0)
    bos = [config.bos_token_id] if getattr(config, "bos_token_id", None) is not None else []
    size = min(config.vocab_size, 1000)
    low = min(10, size - 1)
    rest = [
        torch.randint(low, size, (16,), generator=generator, device="cpu").tolist() for _ in _TEXTS
    ]
    return [torch.tensor([bos + ids], device="cpu") for ids in rest]
