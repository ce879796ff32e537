"""The kernel patch: edit the attention that some modules compute in one forward pass.

Processors are never replaced by ours: inside an edited module a torch-function mode waits for
calls of ``F.scaled_dot_product_attention``, where queries, keys and values are final (after
projections, LoRA, normalisation and rotary embedding) and heads aren't yet projected. What is
edited in a pass is known to the thread that runs it, so threads don't see each other's.
"""

from __future__ import annotations

import copy
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
from regaze.hooks.diffusion.call import Call, Editor, Entered
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
                raise RuntimeError(_missed(site, module, "it never ran in this pass"))


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
    mode = _Kernel(module, site, edits, chain, Entered.of(site, args, kwargs))
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


class _Kernel(modes.Mode):
    """Hands editors the kernel calls of one forward of a module that are its own attention."""

    def __init__(
        self, module: Any, site: Site, edits: Edits, chain: Sequence[Editor], entered: Entered
    ) -> None:
        super().__init__()
        self._module, self._site, self._edits, self._chain = module, site, edits, chain
        self.entered = entered
        self._queries: list[Tensor] = []
        self._seen: list[tuple[int, int, int]] = []
        self.factors: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        named = dict(zip(names, args, strict=False)) | named
        query, key, value = (named.pop(name) for name in names[:3])
        self._seen.append((len(query), query.shape[-2], key.shape[-2]))
        if not self._own(query, key):
            return func(query, key, value, **named)
        if named.get("is_causal"):
            raise NotImplementedError(
                f"{self._site.name} is causal, which no perturbation allows for"
            )
        self._queries.append(query)
        return self._edited(query, key, value, named)

    def _own(self, query: Tensor, key: Tensor) -> bool:
        """True if a call is the module's own attention.

        A second call on the same queries, with other keys, is an IP-Adapter's.
        """
        if any(_same(query, one) for one in self._queries):
            return False
        if self._site.kind == "cross":
            return key.shape[-2] == self._edits.layout.n_text
        rows = query.shape[-2]
        if self._edits.layout.segments:
            rows += sum(one.shape[-2] for one in self._queries)
        return rows == key.shape[-2]

    def _edited(self, query: Tensor, key: Tensor, value: Tensor, named: dict[str, Any]) -> Tensor:
        site = self._site
        if query.ndim != 4 or query.shape[1] != site.heads:
            raise RuntimeError(
                f"{site.name} calls its kernel with queries {tuple(query.shape)}, where (batch, "
                f"{site.heads} heads, tokens, size) was expected; it can't be edited"
            )

        def kernel(query: Tensor, key: Tensor, value: Tensor, **changed: Any) -> Tensor:
            settings = named | changed
            result: Tensor = F.scaled_dot_product_attention(query, key, value, **settings)
            return result

        scale = named.get("scale") or query.shape[-1] ** -0.5
        given: Tensor | None = None
        for editor in self._chain:
            call = Call(
                site, self._edits.layout, query, key, value, named.get("attn_mask"), scale, kernel,
                self.entered, self._module, self._edits.pass_, given,
                self.factors,
            )  # fmt: skip
            given = editor(call)
        shape = (*query.shape[:3], value.shape[-1])
        if given is None or given.shape != shape or given.dtype != query.dtype:
            what = None if given is None else (tuple(given.shape), given.dtype)
            raise RuntimeError(
                f"the edit of {site.name} made {what}, and the module uses {(shape, query.dtype)}"
            )
        return given

    def check(self) -> None:
        """Check that every row that entered the module was edited, once.

        Raises:
            RuntimeError: Some weren't, or it isn't known which were.
        """
        if not self.entered.covered([(len(q), q.shape[-2]) for q in self._queries]):
            raise RuntimeError(_missed(self._site, self._module, self._story()))

    def _story(self) -> str:
        if not self._seen:
            return (
                f"its processor {type(self._module.processor).__name__} made no call of "
                "scaled_dot_product_attention in this pass (another kernel, or step caching "
                "skipped the layer)"
            )
        wanted = "keys of the text" if self._site.kind == "cross" else "rows that are the columns"
        return (
            f"{self.entered} entered it, and its kernel calls had (batch, rows, columns) "
            f"{self._seen}: those with {wanted} hold other rows in all"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _missed(site: Site, module: Any, what: str) -> str:
    return (
        f"{site.name} ({type(module).__name__}) was to be edited, but {what}, so the edit would "
        "have been skipped silently; set the standard processor (set_default_attn_processor()), "
        "switch caching off, or choose other layers"
    )


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
