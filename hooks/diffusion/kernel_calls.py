"""The kernel calls of one forward of an attention module: which are its own, and their edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.diffusion import modes
from regaze.hooks.diffusion.call import Call, Editor, Entered
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Layout, Site


class KernelCalls(modes.Mode):
    """Hands editors the kernel calls of one forward of a module that are its own attention.

    Args:
        module: The attention module.
        site: Its site.
        layout: Layout of the pass's tokens.
        pass_: Pass that the forward belongs to, if any.
        chain: What makes the head outputs of its calls, one after the other.
        entered: What the module was called with.

    Attributes:
        factors: Factors on the module's output that editors asked for, in their order.
    """

    def __init__(
        self,
        module: Any,
        site: Site,
        layout: Layout,
        pass_: Pass | None,
        chain: Sequence[Editor],
        entered: Entered,
    ) -> None:
        super().__init__()
        self._module, self._site, self._chain = module, site, chain
        self._layout, self._pass = layout, pass_
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
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        named = dict(zip(names, args, strict=False)) | dict(kwargs or {})
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
            return key.shape[-2] == self._layout.n_text
        rows = query.shape[-2]
        if self._layout.segments:
            rows += sum(one.shape[-2] for one in self._queries)
        return rows == key.shape[-2]

    def _edited(self, query: Tensor, key: Tensor, value: Tensor, named: dict[str, Any]) -> Tensor:
        site = self._site
        if query.ndim != 4 or query.shape[1] != site.heads:
            raise RuntimeError(
                f"{site.name} calls its kernel with queries {tuple(query.shape)}, where (batch, "
                f"{site.heads} heads, tokens, size) was expected; it can't be edited"
            )

        device = query.device.type
        if torch.is_autocast_enabled(device):
            # As the kernel would take them; edits are exact in what they choose to compute in.
            with torch.autocast(device, enabled=False):
                lower = torch.get_autocast_dtype(device)
                query, key, value = (_lowered(x, lower) for x in (query, key, value))
                named["attn_mask"] = _lowered(named.get("attn_mask"), lower)
                return self._edited(query, key, value, named)

        def kernel(query: Tensor, key: Tensor, value: Tensor, **changed: Any) -> Tensor:
            settings = named | changed
            result: Tensor = F.scaled_dot_product_attention(query, key, value, **settings)
            return result

        scale = named.get("scale") or query.shape[-1] ** -0.5
        given: Tensor | None = None
        for editor in self._chain:
            call = Call(
                site, self._layout, query, key, value, named.get("attn_mask"), scale, kernel,
                self.entered, self._module, self._pass, given,
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
            raise RuntimeError(missed(self._site, self._module, self._story()))

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


def _lowered(x: Any, dtype: torch.dtype) -> Any:
    """What a kernel gets of one of its arguments under ``torch.autocast``."""
    wanted = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if wanted else x


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def missed(site: Site, module: Any, what: str) -> str:
    """The message for rows that were to be edited, and weren't."""
    return (
        f"{site.name} ({type(module).__name__}) was to be edited, but {what}, so the edit would "
        "have been skipped silently; set the standard processor (set_default_attn_processor()), "
        "switch caching off, or choose other layers"
    )
