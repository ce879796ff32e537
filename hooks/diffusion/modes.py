"""Torch-function modes that interrupts can't leave behind.

A Python function of torch pops the mode for the time of its call, in a context manager
(``torch.overrides._pop_mode_temporarily``). An interrupt at that manager's own first or last line
leaves its generator suspended: the mode is off the stack, and comes back whenever the generator
is collected, in the middle of something else.
"""

from __future__ import annotations

import inspect
from types import GeneratorType, TracebackType

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode_temporarily

_POPPING = inspect.unwrap(_pop_mode_temporarily).__code__


class Mode(TorchFunctionMode):
    """A torch-function mode that takes nobody else off the stack when it ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Pop the mode, unless an interrupt has lost it already."""
        if _get_current_function_mode() is self:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]


def restore(depth: int, error: BaseException | None) -> None:
    """Take modes of this class off the stack until it is as deep as it was.

    Args:
        depth: Number of modes on the stack below the pass.
        error: Error that ends the pass; None if it returns.
    """
    while error is not None:
        _finish(error.__traceback__)
        error = error.__context__
    while torch._C._len_torch_function_stack() > depth:
        last = torch._C._len_torch_function_stack() - 1
        if not isinstance(torch._C._get_function_stack_at(last), Mode):
            break
        torch._C._pop_torch_function_stack()


def _finish(trace: TracebackType | None) -> None:
    """Let torch's suspended generators push their modes now, not when they are collected."""
    while trace is not None:
        made = getattr(trace.tb_frame.f_locals.get("self"), "gen", None)
        if isinstance(made, GeneratorType) and made.gi_code is _POPPING:
            made.close()
        trace = trace.tb_next
