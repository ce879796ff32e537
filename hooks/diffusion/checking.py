"""A denoiser whose class isn't known: a family proposed for it, and proven, or refused.

At `attach` a `Family` is proposed from the parts that the denoiser is made of. In the first pass
of each shape the proposal is proven on that call (`regaze.hooks.diffusion.proof`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.diffusion import kernel
from regaze.hooks.diffusion.families import CHECKED, FAMILIES, Family, Kind, Rule
from regaze.hooks.diffusion.layouts import Layout
from regaze.hooks.diffusion.probes import attention_modules
from regaze.hooks.diffusion.proof import Proof, Proven, unproven

_UNET = ("down_blocks", "mid_block", "up_blocks")


def propose(denoiser: Any) -> None:
    """Propose what a denoiser of an unknown class may be, to be proven in its first pass.

    Args:
        denoiser: The model, not compiled.

    Raises:
        ValueError: It has no attention to edit, or its parent's can't be edited.
    """
    parents = [FAMILIES[c.__name__] for c in type(denoiser).__mro__ if c.__name__ in FAMILIES]
    if parents and parents[0].refuse:
        raise unproven(denoiser, parents[0].refuse)
    modules = attention_modules(denoiser)
    if not modules:
        raise unproven(denoiser, "none of its modules has heads and a processor, as attention has")
    family = parents[0] if parents else _of_parts(denoiser, modules)
    CHECKED[denoiser] = replace(family, layout=_Prover(), chain=False, uneven=None, proven=True)


def _of_parts(denoiser: Any, modules: Mapping[str, nn.Module]) -> Family:
    """A family for the attention modules that there are."""
    tops = tuple(dict.fromkeys(path.partition(".")[0] for path in modules))
    if set(tops) <= set(_UNET):
        base = FAMILIES["UNet2DConditionModel"]
    else:
        base = Family(tuple(Rule(re.escape(p), _kind(m)) for p, m in modules.items()), tops)
    arguments = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    return replace(
        base,
        sample=arguments[0],
        text="encoder_hidden_states" if "encoder_hidden_states" in arguments else "",
        per_token=tuple({name for one in FAMILIES.values() for name in one.per_token}),
    )


def _kind(module: Any) -> Kind:
    return "cross" if getattr(module, "is_cross_attention", False) else "joint"


class _Prover:
    """Reads layouts, each of which is proven when a call of its shapes comes first."""

    def __init__(self) -> None:
        self._proven: dict[Any, tuple[int, Proven]] = {}

    def __call__(self, denoiser: Any, call: Mapping[str, Any]) -> Layout:
        family = CHECKED[denoiser]
        batch = len(call[family.sample])
        key = tuple((n, tuple(v.shape[1:])) for n, v in call.items() if isinstance(v, Tensor))
        largest, layout = self._proven.get(key, (0, None))
        if layout is None or largest < batch:
            with torch.no_grad(), kernel.cleared():
                layout = Proof(denoiser, family, call, batch).layout()
            self._proven[key] = batch, layout
        return layout
