"""The cost of answering: time before and after the first token, passes of the model, memory."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_PEAKS = ("peak_bytes", "rss_bytes")
_EARLIER = {
    "look_prompts": "carve_prompts",
    "look_tokens": "carve_tokens",
    "look_s": "carve_seconds",
}


@dataclass(frozen=True)
class Cost:
    """Sums over batches; of peaks the highest.

    Attributes:
        items: Answers.
        seconds: From opening the images to the last token.
        prefill_s: Until the first token of each answer was predicted.
        decode_s: After that.
        prompt_tokens: Tokens of all prompts, images included, as if each had been read by itself.
        new_tokens: Generated tokens.
        forwards: Passes of the text tower.
        columns: Rows times columns that went through it, padding and whatever an intervention adds
            included: with a shared prefix fewer than ``prompt_tokens + new_tokens``.
        peak_bytes: Most memory allocated on a GPU; 0 on the CPU.
        rss_bytes: Most memory the process ever held.
        extra: Costs of preparing questions, by name. CARVE: ``carve_prompts`` read only to find
            out what to show, ``carve_tokens`` generated in doing so, and ``carve_seconds``, which
            neither ``prefill_s`` nor ``decode_s`` holds; ``forwards`` and ``columns`` count its
            passes too.
    """

    items: int = 0
    seconds: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    forwards: int = 0
    columns: int = 0
    peak_bytes: int = 0
    rss_bytes: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """All of them together."""
        rows = [asdict(cost) for cost in costs]
        extra: Counter[str] = Counter()
        for row in rows:
            extra.update(row.pop("extra"))
        sums = {
            f.name: (max if f.name in _PEAKS else sum)([row[f.name] for row in rows] or [0])
            for f in fields(cls)
            if f.name != "extra"
        }
        return cls(**sums, extra=dict(extra))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cost:
        """The inverse of `to_dict`, also for what an earlier version wrote."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        old = {new: values[was] for was, new in _EARLIER.items() if values.get(was)}
        return cls(**{**known, "extra": {**known.get("extra", {}), **old}})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return asdict(self)

    @property
    def items_per_s(self) -> float | None:
        """Answers per second; None if nothing was measured."""
        return _rate(self.items, self.seconds)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens per second before the first token; a shared prefix counts for each item."""
        return _rate(self.prompt_tokens, self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Generated tokens per second after the first; None where answers are one token long."""
        return _rate(self.new_tokens - self.items, self.decode_s)


def now() -> float:
    """Seconds of a clock, once all GPUs have done what they were told to."""
    import torch  # Where costs are only read, it isn't needed.

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gpu_bytes() -> int:
    """Most memory allocated on this process's GPUs since the meter started; 0 on the CPU."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0
    return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))


def peak_process_bytes() -> int:
    """Most memory this process ever held; 0 where the system doesn't tell."""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 and count > 0 else None
