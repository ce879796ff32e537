"""Counts a model's passes, and the time before and after the first token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regaze.evals.runs.cost import now


class Meter:
    """Counts the passes of a text tower, and the time before and after the first token.

    Attributes:
        forwards: Passes since `start`.
        columns: Rows times columns in them.
        prefill_s: Seconds until first tokens were predicted, since `start`.
        decode_s: Seconds after that.
        logits: "B V", at the last row of the pass that predicted the first token.
    """

    def __init__(self, model: nn.Module, tower: nn.Module) -> None:
        self.model, self.tower = model, tower
        self.logits: Tensor | None = None
        self._watching = False
        self._first = 0.0
        self.start()

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Count inside. Enter it after interventions are attached, so that what they add counts."""
        handles = [
            self.tower.register_forward_pre_hook(self._pass),
            # Interventions pack their columns inside of whatever stands before the tower.
            self._first_layer().register_forward_pre_hook(self._count, with_kwargs=True),
            self.model.register_forward_hook(self._end),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def start(self) -> None:
        """Reset counts, times and peak memory for a new batch."""
        self.forwards = self.columns = 0
        self.prefill_s = self.decode_s = 0.0
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Time the answers made inside; `watch` tells which pass predicts the first token."""
        self.logits = None
        began = self._first = now()
        yield
        self.prefill_s += self._first - began
        self.decode_s += now() - self._first

    def watch(self) -> None:
        """Take the model's next pass as the one that predicts the first token."""
        self._watching = True

    def _first_layer(self) -> nn.Module:
        layers: Any = self.tower.layers
        first: nn.Module = layers[0]
        return first

    def _pass(self, module: nn.Module, args: Any) -> None:
        self.forwards += 1

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering: Tensor = args[0] if args else kwargs["hidden_states"]
        self.columns += entering.shape[:-1][-2:].numel()  # "... B T D"

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._watching:
            self._watching = False
            self.logits = output.logits[:, -1]
            self._first = now()
