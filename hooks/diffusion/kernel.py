"""The kernel patch: edit the attention that some modules compute in one forward pass.

Processors are never replaced by ours: inside an edited module a torch-function mode
(`KernelCalls`) waits for calls of ``F.scaled_dot_product_attention``, where queries, keys and
values are final (after projections, LoRA, normalisation and rotary embedding) and heads aren't yet
projected. What is edited in a pass is known to the thread that runs it, so threads don't see each
other's.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import modes
from regaze.hooks.diffusion.call import Editor, Entered
from regaze.hooks.diffusion.kernel_calls import KernelCalls, missed
from regaze.hooks.diffusion.sites import Layout, Site

# Processors that compute otherwise what AttnProcessor2_0 computes by the kernel.
_WITHOUT_KERNEL = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")
_NATIVE = "native"


class _Here(threading.local):
    """This thread's edits, the edited module that runs, and the number of its passes."""

    edits: Edits | None = None
    module: Any = None
    passes: int = 0


_HERE = _Here()


class Edits:
    """The edits of one forward pass of a denoiser.

    Args:
        denoiser: The model.
        editors: By site, what makes the head outputs of its calls, one after the other.
        layout: Layout of the pass's tokens.
        calls: Record of what runs around the modules' calls; modules that nothing runs around yet
            are added.
        pass_: Pass that the calls belong to, if any.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        editors: Mapping[Site, Sequence[Editor]],
        layout: Layout,
        calls: Calls,
        pass_: Any = None,
    ) -> None:
        self.layout, self.calls, self.pass_ = layout, calls, pass_
        self._denoiser = denoiser
        self._sites: dict[int, tuple[Site, Sequence[Editor]]] = {}
        self._runs: dict[str, int] = {}
        for site, chain in editors.items():
            module: Any = denoiser.get_submodule(site.name)
            watch(calls, module)
            self._sites[id(module)] = (site, chain)

    def of(self, module: nn.Module) -> tuple[Site, Sequence[Editor]] | None:
        """The site of a module that is edited, and what edits it."""
        return self._sites.get(id(module))

    def count(self, site: Site) -> None:
        """Count a forward of a site's module of which every row was edited."""
        self._runs[site.name] = self._runs.get(site.name, 0) + 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Edit the pass that this thread runs inside, and nothing else that it edits outside.

        Raises:
            RuntimeError: A module that was to be edited never ran.
        """
        before = _HERE.edits
        try:
            _HERE.edits = self
            yield
        finally:
            _HERE.edits = before
        for site, _ in self._sites.values():
            module: Any = self._denoiser.get_submodule(site.name)
            # What came off in the middle of a pass isn't missed.
            if site.name not in self._runs and self.calls.covers(module):
                raise RuntimeError(missed(site, module, "it never ran in this pass"))


@contextmanager
def editing(
    denoiser: nn.Module, sites: Sequence[Site], layout: Layout, editor: Editor
) -> Iterator[None]:
    """Edit the kernel calls of some sites in the forward pass that runs inside.

    Args:
        denoiser: The model.
        sites: The attention modules to edit; no other is touched.
        layout: Layout of the pass's tokens.
        editor: Computes the head outputs of each call.

    Raises:
        RuntimeError: An edited module ran without calling the kernel, or didn't run.
    """
    calls = Calls()
    try:
        with Edits(denoiser, {site: [editor] for site in sites}, layout, calls).applied():
            yield
    finally:
        calls.release()


def watch(calls: Calls, module: Any) -> None:
    """Let a module's attention be edited by passes that want to."""
    if not calls.covers(module):
        calls.around(module, _attend, inner=True)
    processor = module.processor
    if _needs_switch(processor) and not calls.covers(processor):
        calls.around(processor, _on_kernel)


@contextmanager
def cleared() -> Iterator[None]:
    """Run a denoiser's pass, and let nothing outlive it, whatever ends it and at whatever line."""
    before, depth = dict(vars(_HERE)), torch._C._len_torch_function_stack()
    try:
        try:
            _HERE.passes += 1
            yield
        finally:
            _restore(before, depth)
    finally:  # Again, should an interrupt have come in the first one's way.
        _restore(before, depth)


def _restore(before: Mapping[str, Any], depth: int) -> None:
    _HERE.edits, _HERE.module = before.get("edits"), before.get("module")
    _HERE.passes = before.get("passes", 0)
    modes.restore(depth, sys.exc_info()[1])


# -- around one module's forward ---------------------------------------------------------------


def _attend(module: nn.Module, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a module's forward, edited if the pass of this thread edits it."""
    edits = _HERE.edits
    found = None if edits is None else edits.of(module)
    if edits is None or found is None:
        if edits is None:
            _refuse_outside()
        return call(*args, **kwargs)
    site, chain = found
    watch(edits.calls, module)  # Another processor may have been set meanwhile.
    mode = KernelCalls(
        module, site, edits.layout, edits.pass_, chain, Entered.of(site, args, kwargs)
    )
    outer = _HERE.module
    try:
        _HERE.module = module
        with mode:
            output = call(*args, **kwargs)
    finally:
        _HERE.module = outer
    mode.check()
    edits.count(site)
    for factor in mode.factors:
        output = _amplified(output, factor, mode.entered, site)
    return output


def _refuse_outside() -> None:
    """Refuse to run a layer of an attachment where its edit isn't known.

    Raises:
        RuntimeError: It runs in a backward pass, or the denoiser isn't running.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a layer with an intervention runs anew in the backward pass, where its edit isn't "
            "known any more, so the gradient would be wrong; switch gradient checkpointing off "
            "(disable_gradient_checkpointing()), or detach before training"
        )
    if not _HERE.passes:
        raise RuntimeError(
            "a layer with an intervention runs outside of a call of its denoiser (its forward or "
            "its blocks were called by hand), where nothing would act: call the denoiser itself, "
            "denoiser(...), or detach first"
        )


def _amplified(output: Any, factor: Tensor, entered: Entered, site: Site) -> Any:
    """A module's output with its picture's rows multiplied."""
    streams = output if isinstance(output, tuple) else (output,)
    first = streams[0]
    if site.kind not in ("self", "joint", "temporal") or first.shape[:2] != (
        entered.batch,
        entered.tokens,
    ):
        raise RuntimeError(
            f"{site.name} returns {tuple(first.shape)} for {entered}, so which rows are the "
            "picture's isn't known, which this edit needs; choose other layers"
        )
    scaled = first * factor.to(first.dtype)[:, None, None]
    return (scaled, *streams[1:]) if isinstance(output, tuple) else scaled


# -- processors on other kernels ---------------------------------------------------------------


def _needs_switch(processor: Any) -> bool:
    return hasattr(processor, "_attention_backend") or type(processor).__name__ in _WITHOUT_KERNEL


def _on_kernel(processor: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Let an edited module compute attention by torch's kernel, in this thread and this once."""
    if _HERE.module is None or not args or args[0] is not _HERE.module:
        return call(*args, **kwargs)
    if hasattr(processor, "_attention_backend"):
        switched: Any = copy.copy(processor)
        switched._attention_backend = _NATIVE
    else:
        # Here, so that models of transformers can be attached to without loading diffusers.
        from diffusers.models.attention_processor import AttnProcessor2_0

        switched = AttnProcessor2_0()
    return switched(*args, **kwargs)
