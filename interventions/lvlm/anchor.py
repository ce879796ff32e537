"""AnchorAttention: a long prompt's rows see the few columns that come near their largest logits.

Rows come in superblocks of ``step`` blocks of ``block`` rows. In a superblock that begins at S,
every row sees the first ``init`` columns and those from S on. The largest of its logits there is
its anchor, near the largest of all. Of the columns between, those are seen too, by all rows of the
superblock and in whole (stripes), for which in some of its blocks

    mean of the block's queries . key >= mean of the block's anchors - theta.

Zhang et al., "Difference-aware sparse attention with stripe granularity", arXiv 2505.23520,
section 3, algorithms 1 to 3. In the released Triton kernel the first columns are a whole
superblock, of which chosen stripes count twice, and the block right before S is never seen. Here,
as in the paper, each column is seen once or not at all. Decode steps are as always.

`anchor_stripes` computes the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number, shown
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Pass
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.anchor_stripes import anchored
from regaze.interventions.lvlm.common import choose_layers
from regaze.interventions.meter import Meter

ALL = 1e30
"""A threshold that keeps every column: nothing is changed."""


@register
@dataclass(frozen=True)
class AnchorAttention(Intervention):
    """Read long prompts sparsely: near columns, and those that come near their largest logits.

    Attributes:
        theta: The greatest gap between a column and its block's anchor; 12 in the paper and the
            code. With 1e30 or more, attention is the unmodified model's, bit for bit.
        block: Rows per block; the queries of a block are averaged.
        step: Blocks per superblock; a superblock shares its stripes.
        init: Number of first columns that every row sees: one block in the paper.
        layers: Layers to edit; by default all layers without a window.
    """

    name: ClassVar[str] = "anchor"
    summary: ClassVar[str] = "read long prompts faster: columns near each row's largest logits"
    paper: ClassVar[str] = "arXiv 2505.23520"
    needs_image_columns: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Preset]] = {
        "llama-3.1-8b": Preset(
            {"theta": 12.0, "block": 128, "step": 16}, "arXiv 2505.23520, section 4.1"
        ),
    }

    theta: float = 12.0
    block: int = 128
    step: int = 16
    init: int = 128
    layers: tuple[int, ...] | None = None

    @property
    def shares_prefix(self) -> bool:
        """False: the columns that an image's rows see depend on where superblocks begin."""
        return False

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("anchor", "theta", self.theta)
        for name in ("block", "step", "init"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"anchor: {name} must be a number of 1 or more, got {shown(value)}"
                )

    def idle(self) -> AnchorAttention:
        """The same with all columns kept."""
        return replace(self, theta=ALL)

    def literal(self) -> MapForm:
        """Logits of columns that aren't kept set to -inf."""

        def edit(z: Tensor, m: Map) -> Tensor:
            if not bool(m.prompt[..., -1:].all()):
                return z
            seen = z.masked_fill(~m.seen, -torch.inf)
            count, span = z.shape[-1], self.block * self.step
            kept = torch.ones_like(z, dtype=torch.bool)
            for start in range(span, count, span):
                first, rows = min(self.init, start), slice(start, min(start + span, count))
                near = torch.cat([seen[..., rows, :first], seen[..., rows, start:]], -1)
                anchors, between = near.amax(-1), z[..., rows, first:start]
                chosen = torch.zeros_like(between[..., 0, :], dtype=torch.bool)
                for at in range(0, anchors.shape[-1], self.block):
                    some = slice(at, at + self.block)
                    anchor = anchors[..., some].mean(-1, keepdim=True)
                    # The mean of queries has the mean of their logits.
                    chosen |= between[..., some, :].mean(-2) >= anchor - self.theta
                kept[..., rows, first:start] = chosen[..., None, :]
            return z.masked_fill(~kept, -torch.inf)

        return MapForm(self.layers or () if self.theta < ALL else (), edit)

    def resolve(self, host: Host) -> AnchorAttention:
        """Choose the layers.

        Raises:
            ValueError: A layer attends within a window, or all do.
        """
        whole = [at for at, site in enumerate(host.sites) if site.kind == "full"]
        if not whole:
            raise ValueError(
                f"anchor: every layer of this {host.model_type} attends within a window, so there "
                "is nothing to save"
            )
        layers = choose_layers("anchor", host, self.layers, whole)
        for layer in layers:
            if host.site(layer).kind != "full":
                raise ValueError(
                    f"anchor: layer {layer} attends within a window already; leave it out of layers"
                )
        return replace(self, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if all columns are kept."""
        return _AnchorEdit(self)


class _AnchorEdit(Edit):
    def __init__(self, spec: AnchorAttention) -> None:
        super().__init__(spec.layers or () if spec.theta < ALL else ())
        self.spec, self.meter = spec, Meter()
        self.real: tuple[tuple[int, int], ...] = ()

    def begin(self, pass_: Pass) -> None:
        if not self.layers or not self.takes(pass_):
            return
        if pass_.past:
            raise NotImplementedError(
                "anchor: the prompt comes in parts, and which columns a row sees depends on where "
                "it began: read prompts at once (no prefill_chunk_size, no cached beginning)"
            )
        if pass_.n_last > 1:
            raise NotImplementedError(
                "anchor: generated tokens stand in one block with the prompt, and their rows see "
                "all columns: leave the assistant, prompt_lookup_num_tokens and use_cache=False out"
            )
        real = ~pass_.tokens.is_kind(Kind.PAD)[:, : pass_.length]
        self.real = tuple(map(_range, real))

    def takes(self, pass_: Pass) -> bool:
        return not pass_.tokens.generated and not pass_.again and pass_.ahead is None

    def take_over(self, layer: int, call: Call, stock: Stock) -> Attention | None:
        if max(stop - start for start, stop in self.real) <= self.spec.block * self.spec.step:
            return None
        if call.kwargs.get("softcap") is not None:
            raise NotImplementedError(
                f"anchor: layer {layer} caps its logits, which its kernels don't; leave it out"
            )
        done = self._attend(call)
        self.meter.clock(call.query.device, lambda: self._attend(call), lambda: call.run(stock))
        return done

    def told(self) -> str:
        return str(self.meter)

    def _attend(self, call: Call) -> Attention:
        batch, heads, rows, _ = call.query.shape
        out = call.query.new_zeros(batch, rows, heads, call.value.shape[-1])
        maps = call.query.new_zeros(batch, heads, rows, call.key.shape[2]) if call.maps else None
        for sample, (start, stop) in enumerate(self.real):
            some = slice(start, stop)
            query, key, value = (x[sample, :, some] for x in (call.query, call.key, call.value))
            mask = _mask_of(call, sample, some)
            made, density, weights = anchored(
                query, key, value, call.scaling, self.spec, mask, maps=call.maps
            )
            self.meter.see(density)
            out[sample, some] = made.transpose(0, 1)
            if maps is not None and weights is not None:
                maps[sample, :, some, some] = weights.to(maps.dtype)
        return out, maps


def _mask_of(call: Call, sample: int, some: slice) -> Tensor | None:
    """The own columns that a sample's rows see, bool "1|H N N"; None if all up to each row.

    Raises:
        NotImplementedError: They don't see all that came before, or by other numbers.
    """
    mask = call.mask
    if not isinstance(mask, Tensor) or mask.ndim == 2:
        return None
    own = mask[sample if len(mask) > 1 else 0, :, some, some]
    seen = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    before = torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    if not bool((seen | ~before).all()) or own.is_floating_point() and bool((own[seen] != 0).any()):
        raise NotImplementedError(
            "anchor: this model's mask hides earlier columns or adds to logits, so which of them "
            "may be left out isn't known; leave the layer out, or hide columns by -inf or "
            "torch.finfo(dtype).min, if they were hidden by -1e9, which is a bias like any other"
        )
    return None if bool((seen == before).all()) else seen


def _range(real: Tensor) -> tuple[int, int]:
    """The range of places that hold a sample's tokens.

    Raises:
        NotImplementedError: Padding lies between them.
    """
    at = real.nonzero().flatten()
    start, stop = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
    if stop - start != len(at):
        raise NotImplementedError("anchor: padding lies between a prompt's tokens")
    return start, stop
