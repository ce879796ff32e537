"""The seat: edit the kernel calls of some attention modules while a block of code runs.

Processors are never replaced by ours: inside an edited module a torch-function mode waits for the
call of ``F.scaled_dot_product_attention``, where queries, keys and values are final (after
projections, LoRA, normalisation and rotary embedding) and heads aren't yet projected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regaze.hooks.diffusion.sites import Layout, Site

# Processors that compute otherwise what AttnProcessor2_0 computes by the kernel.
_WITHOUT_KERNEL = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")
_NATIVE = "native"


@dataclass(frozen=True)
class Call:
    """One kernel call of an edited module.

    Attributes:
        site: Where.
        layout: How the forward pass's tokens are laid out.
        query: "B H N D".
        key: "B G N D".
        value: "B G N D".
        mask: As given to the kernel.
        scale: Factor of the logits.
        kernel: The stock kernel with the call's mask and scale: ``kernel(query, key, value)``.
    """

    site: Site
    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    kernel: Callable[..., Tensor]

    @cached_property
    def output(self) -> Tensor:
        """The unedited head outputs, "B H N D"; computed once, so never to be changed in place."""
        result: Tensor = self.kernel(self.query, self.key, self.value)
        return result

    def image(self) -> slice:
        """Where the image's tokens are.

        Raises:
            ValueError: It can't be told in this pass.
        """
        return self.layout.image(self.site.order, self.query.shape[2])

    def visible(self) -> Tensor | None:
        """Tokens that aren't padding, "B 1 N 1", if the mask says so."""
        if self.mask is None or self.mask.shape[-2] != 1:
            return None
        mask = self.mask if self.mask.ndim == 4 else self.mask[:, None]
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return seen.transpose(-1, -2)[:, :1]

    def at_temperature(self, tau: float) -> Tensor:
        """The head outputs with all logits, mask included, divided by tau."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return self.kernel(self.query / tau, self.key, self.value)
        return self.kernel(self.query / tau, self.key, self.value, attn_mask=self.mask / tau)


Editor = Callable[[Call], Tensor]
"""Makes the head outputs of a call, "B H N D"."""


class _Kernel(TorchFunctionMode):
    """Hands an editor the first kernel call; of self- and joint attention the first square one."""

    def __init__(self, site: Site, layout: Layout, editor: Editor) -> None:
        super().__init__()
        self.site, self.layout, self.editor = site, layout, editor
        self.edited = 0
        self.seen: list[tuple[int, int]] = []

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
        self.seen.append((query.shape[-2], key.shape[-2]))
        # Later calls belong to an IP-Adapter, whose keys are its own.
        square = query.shape[-2] == key.shape[-2] or self.site.kind == "cross"
        if self.edited or not square:
            return func(query, key, value, **named)
        if named.get("is_causal"):
            raise NotImplementedError(
                f"{self.site.name} is causal, which no perturbation allows for"
            )
        self.edited += 1

        def kernel(query: Tensor, key: Tensor, value: Tensor, **changed: Any) -> Tensor:
            settings = named | changed
            result: Tensor = F.scaled_dot_product_attention(query, key, value, **settings)
            return result

        scale = named.get("scale") or query.shape[-1] ** -0.5
        mask = named.get("attn_mask")
        return self.editor(Call(self.site, self.layout, query, key, value, mask, scale, kernel))


@contextmanager
def editing(
    denoiser: nn.Module, sites: Sequence[Site], layout: Layout, editor: Editor
) -> Iterator[None]:
    """Edit the kernel calls of some sites in the forward pass that runs inside.

    Args:
        denoiser: The model.
        sites: The attention modules to edit; no other is touched.
        layout: How the pass's tokens are laid out.
        editor: Computes the head outputs of each call.

    Raises:
        RuntimeError: An edited module ran without calling the kernel, or didn't run.
    """
    kernels = {site.name: _Kernel(site, layout, editor) for site in sites}
    with ExitStack() as stack:
        for site in sites:
            module = denoiser.get_submodule(site.name)
            stack.enter_context(_on_kernel(module))
            stack.enter_context(_around(module, kernels[site.name]))
        yield
    for site in sites:
        if not kernels[site.name].edited:
            raise RuntimeError(_missed(denoiser.get_submodule(site.name), kernels[site.name]))


@contextmanager
def _around(module: nn.Module, mode: _Kernel) -> Iterator[None]:
    """Enter the mode in every forward pass of the module, and leave it also after an exception."""
    entered = 0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal entered
        mode.__enter__()  # type: ignore[no-untyped-call]
        entered += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal entered
        # Another's hook may have raised before `enter`; the innermost mode would be another's then.
        if entered:
            entered -= 1
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    handles = [
        module.register_forward_pre_hook(enter),
        # Before hooks of others, so that these don't run in the mode.
        module.register_forward_hook(leave, prepend=True, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _on_kernel(module: Any) -> Iterator[None]:
    """Let a module compute attention by torch's kernel, and by what it had before afterwards."""
    processor = module.processor
    if hasattr(processor, "_attention_backend"):
        before = vars(processor).get("_attention_backend", processor)
        processor._attention_backend = _NATIVE
        try:
            yield
        finally:
            if before is processor:
                del processor._attention_backend
            else:
                processor._attention_backend = before
    elif type(processor).__name__ in _WITHOUT_KERNEL:
        # Here, so that models of transformers can be attached to without loading diffusers.
        from diffusers.models.attention_processor import AttnProcessor2_0

        module.processor = AttnProcessor2_0()
        try:
            yield
        finally:
            module.processor = processor
    else:
        yield


def _missed(module: Any, mode: _Kernel) -> str:
    name, processor = mode.site.name, type(module.processor).__name__
    if mode.seen:
        what = f"its kernel calls had (rows, columns) {mode.seen}, none of them square"
    else:
        what = (
            f"its processor {processor} made no call of scaled_dot_product_attention in this pass "
            "(another kernel, or step caching skipped the layer)"
        )
    return (
        f"{name} was to be edited, but {what}, so the edit would have been skipped silently; set "
        "the standard processor (set_default_attn_processor()), switch caching off, or choose "
        "other layers"
    )
