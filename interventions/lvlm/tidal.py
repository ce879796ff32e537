"""TidalDecode: while decoding, most layers attend to the columns that a few layers chose.

In a decode step, layers before the first selection layer attend as always. A selection layer does
too, and keeps, for each head, the ``budget`` columns of largest logits; the layers behind it attend
to these columns alone, up to the next selection layer. Prompts are read as always. Yang et al.,
"Position persistent sparse attention", arXiv 2410.05076, section 3 and algorithm 1; reference code
DerrickYLJ/TidalDecode@7cd5ab3 (src/tidal_build/modify_llama.py), whose PyTorch form masks what
wasn't chosen and so saves nothing; here only the chosen keys and values are read.

Keys and values of sparse layers are computed from sparse attention and stay so in the cache: the
paper's optional cache correction is left out, as in its evaluation. Layers with a window of their
own attend as always and select nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.attention import visible_columns
from regaze.hooks.checks import check_choice, check_indices
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers

ALL = 2**31 - 1
"""A budget that keeps every column: nothing is changed."""


@register
@dataclass(frozen=True)
class TidalDecode(Intervention):
    """Attend sparsely while decoding, to columns that selection layers chose.

    Attributes:
        budget: Number of columns that each head keeps; with as many as there are columns or more,
            attention is the unmodified model's, bit for bit. 256 in the README's example.
        select: Selection layers; by default 2 and 13 of 32, at the same depth in other models.
        layers: Layers that may attend sparsely; by default all without a window behind the first
            selection layer.
        choose: Columns kept: the "top" ones, or as a control the "recent" ones, as many.
    """

    name: ClassVar[str] = "tidal"
    summary: ClassVar[str] = "decode faster: most layers attend to columns that a few layers chose"
    paper: ClassVar[str] = "arXiv 2410.05076"
    needs_image_columns: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "llama-3-8b": Preset(
            {"budget": 128, "select": (2, 13)},
            "DerrickYLJ/TidalDecode@7cd5ab3 examples/run_tidal_llama.sh",
        ),
    }

    budget: int = 256
    select: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    choose: Literal["top", "recent"] = "top"

    def check(self) -> None:
        """Check the fields' domains."""
        if type(self.budget) is not int or not 1 <= self.budget <= ALL:
            raise ValueError(
                f"tidal: budget must be a number of columns, 1 or more, got {self.budget!r}"
            )
        check_choice("tidal", "choose", self.choose, ("top", "recent"))

    def controls(self) -> Mapping[str, Intervention]:
        """Name the control: as many columns, the most recent ones."""
        return {"recent columns": replace(self, choose="recent")} if self.choose == "top" else {}

    def idle(self) -> TidalDecode:
        """The same with all columns kept."""
        return replace(self, budget=ALL)

    def literal(self) -> MapForm | None:
        """Logits of columns that weren't chosen set to -inf; None for the control."""
        if self.choose != "top":
            return None
        kept: list[Tensor] = []

        def edit(z: Tensor, m: Map) -> Tensor:
            if bool(m.prompt[..., -1:].all()) or z.shape[-1] <= self.budget:
                return z
            if m.layer in (self.select or ()):
                z_seen = z.masked_fill(~m.seen, -torch.inf)
                lowest = z_seen.sort(-1, descending=True).values[..., self.budget - 1, None]
                kept[:] = [z_seen >= lowest]
                return z
            return z.masked_fill(~kept[0], -torch.inf)

        return MapForm(self._acting, edit)

    @property
    def _acting(self) -> tuple[int, ...]:
        select = self.select or ()
        behind = [layer for layer in self.layers or () if select and layer > min(select)]
        return tuple(sorted({*select, *behind})) if behind else ()

    def resolve(self, host: Host) -> TidalDecode:
        """Choose the layers.

        Raises:
            ValueError: No layer sees all columns, or a selection layer is one with a window.
        """
        whole = [at for at, site in enumerate(host.sites) if site.kind == "full"]
        if not whole:
            raise ValueError(
                f"TidalDecode: every layer of this {host.model_type} attends within a window, so "
                "there is nothing to save"
            )
        given = self.select
        if given is None:
            n = len(host.sites)
            near = {min(whole, key=lambda at: abs(at - at_depth(d, n))) for d in (2, 13)}
            given = tuple(host.sites[at].layer for at in sorted(near))
        check_indices("tidal", "select", given, host.n_layers, f"this {host.model_type}")
        if not given:
            raise ValueError("tidal: select needs at least one layer")
        for layer in given:
            if host.site(layer).kind != "full":
                raise ValueError(
                    f"tidal: layer {layer} attends within a window, so it can't select among all "
                    "columns"
                )
        layers = choose_layers("tidal", host, self.layers, whole)
        for layer in layers:
            if host.site(layer).kind != "full":
                raise ValueError(
                    f"tidal: layer {layer} attends within a window already; leave it out of layers"
                )
        return replace(self, select=tuple(sorted(given)), layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if all columns are kept."""
        return _TidalEdit(self)


class _TidalEdit(Edit):
    def __init__(self, spec: TidalDecode) -> None:
        super().__init__(spec._acting if spec.budget < ALL else ())
        self.spec, self.select_at = spec, frozenset(spec.select or ())
        self.chosen = torch.empty(0)

    def take_over(self, layer: int, call: Call, stock: Stock) -> Attention | None:
        if call.key.shape[2] <= self.spec.budget:
            return None
        if layer in self.select_at:
            self.chosen = choose_columns(call, self.spec.budget, self.spec.choose)
            return None
        return attend_to(call, self.chosen.to(call.key.device))


def _masks(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Mask of the newest row, "B|1 1|H 1 K" bool, and the bias of its logits."""
    if call.mask is None:
        return None, None
    rows = torch.zeros(len(call.query), 1, dtype=torch.long, device=call.query.device)
    n_keys = call.key.shape[2]
    return visible_columns(
        call.mask, rows, n_keys, query_offset=n_keys - 1, causal=call.causal, window=None
    )


def choose_columns(call: Call, budget: int, choose: str = "top") -> Tensor:
    """The columns that each head of a decode step keeps.

    Args:
        call: The step's attention call, of one row per sample.
        budget: Number of columns, fewer than there are.
        choose: "top" by logits, or "recent".

    Returns:
        "B H budget" indices.
    """
    batch, heads = call.query.shape[:2]
    visible, bias = _masks(call)
    if choose == "recent":
        logits = torch.arange(call.key.shape[2], device=call.key.device).float()
        logits = logits.expand(batch, heads, 1, -1)
    else:
        group = heads // call.key.shape[1]
        query = call.query.reshape(batch, -1, group, call.query.shape[-1])
        logits = (query @ call.key.transpose(-1, -2)).reshape(batch, heads, 1, -1).float()
        logits = logits * call.scaling
    if bias is not None:
        logits = logits + bias
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    return logits[:, :, 0].topk(budget, dim=-1, sorted=False).indices


def attend_to(call: Call, chosen: Tensor) -> Attention:
    """Attention of a decode step to some columns alone: "B 1 H D", and maps if the call has them.

    Args:
        call: The call.
        chosen: "B H n" columns.
    """
    batch, heads, _, size = call.query.shape
    group = heads // call.key.shape[1]
    sample = torch.arange(batch, device=chosen.device)[:, None, None]
    owner = (torch.arange(heads, device=chosen.device) // group)[:, None]
    key, value = call.key[sample, owner, chosen], call.value[sample, owner, chosen]
    logits = (call.query.float() * call.scaling) @ key.float().transpose(-1, -2)
    softcap = call.kwargs.get("softcap")
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    visible, bias = _masks(call)
    at = chosen[:, :, None]
    if bias is not None:
        logits = logits + bias.expand(batch, heads, 1, -1).gather(-1, at)
    if visible is not None:
        seen = visible.expand(batch, heads, 1, -1).gather(-1, at)
        logits = logits.masked_fill(~seen, -torch.inf)
    weights = logits.softmax(-1)
    out = (weights @ value.float()).transpose(1, 2).to(call.query.dtype)
    if not call.maps:
        return out, None
    maps = weights.new_zeros(batch, heads, 1, call.key.shape[2]).scatter(-1, at, weights)
    return out, maps.to(call.query.dtype)
