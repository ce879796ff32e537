"""The subject of verification: a model under test, as the checks see it, whatever its kind."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regaze.hooks import Attachment
from regaze.hooks.precision import product_dtype
from regaze.interventions import Intervention

_LONG = 1.0

Which = Literal[0, 1, "both"]
"""The first input alone, the second one alone, or both as one batch."""
Outputs = Mapping[str, Tensor]
"""Outputs of a model for one input, by the promise that compares them."""


def median(once: Callable[[], float]) -> float:
    """The median of three times, or the first one if it is long enough to tell."""
    first = once()
    return first if first > _LONG else statistics.median([first, once(), once()])


class Subject(ABC):
    """A model under test.

    Attributes:
        parts: The promises about outputs that `run` gives.
        what: Name of the outputs, for readers.
        inputs: Description of the model's inputs, for readers.
        one_batch: Reason why two inputs can't be one batch; empty if they can.
        further: Number of other inputs that can stand in for the first one.
        tolerances: Largest difference that rounding may make, as a share of the spread of the
            outputs, by dtype.
    """

    parts: tuple[str, ...]
    what: str
    inputs: str
    one_batch: str = ""
    further: int = 0
    tolerances: Mapping[torch.dtype, float]

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The part that is edited."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of layers that can be edited."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Class, dtype, device and attention of the model, JSON-able."""

    @abstractmethod
    def attach(self, specs: Sequence[Intervention]) -> Attachment:
        """Attach methods, as a user would."""

    @abstractmethod
    def literally(self, forms: Sequence[Any]) -> AbstractContextManager[Any]:
        """Run literal forms, in order, in runs of the first input inside."""

    @abstractmethod
    def run(self, which: Which) -> list[Outputs]:
        """The model's outputs, an entry for each input."""

    @abstractmethod
    def timed(self) -> Mapping[str, Callable[[], float]]:
        """Ways to take the time, in seconds, by what is timed."""

    def shared(self) -> AbstractContextManager[Any]:
        """Make the model one that two threads can share as far as the plain one can be."""
        return nullcontext()

    def instead(self, number: int) -> AbstractContextManager[None]:
        """Make the first input the further one of that number inside."""
        raise NotImplementedError("there are no further inputs")

    def in_float32(self) -> AbstractContextManager[None]:
        """Hold the same weights and inputs in float32 inside, to see what rounding does.

        Raises:
            NotImplementedError: They wouldn't be the same.
        """
        raise NotImplementedError("pipelines draw other noise in float32")

    def prepared(self, spec: Intervention) -> Intervention:
        """A spec with what it needs to act on these inputs."""
        return spec

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def tolerance(self) -> float:
        """Largest difference that rounding may make in this dtype."""
        device = next(self.module.parameters()).device
        dtype = product_dtype(self.dtype, device)
        return self.tolerances.get(dtype, max(self.tolerances.values()))

    def state(self) -> dict[str, Any]:
        """All that an attachment could leave behind."""
        left: dict[str, Any] = {"modes": torch._C._len_torch_function_stack()}
        for name, module in self.module.named_modules():
            config = getattr(module, "config", None)
            left[name] = (
                sorted(vars(module)),
                [(key, id(child)) for key, child in module._modules.items()],
                [(k, id(p), getattr(p, "requires_grad", 0)) for k, p in module._parameters.items()],
                id(getattr(module, "processor", None)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                getattr(config, "_attn_implementation_internal", None),
            )  # fmt: skip
        return left
