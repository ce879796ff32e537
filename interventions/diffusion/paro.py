"""PAROAttention: tokens put in an order in which a head's map is one of blocks, most left out.

A head that attends along time, or down the columns of a picture, has a map of many thin diagonals;
in another order of the axes (frames, rows, columns) of its tokens the same map is a few blocks. A
calibration (`regaze.interventions.diffusion.paro_survey`, `regaze discover paro`) chooses for each
head one of the six orders, and from the sums of its maps' blocks which blocks are computed: for
each step of the first half of the steps, and for all of the second half together. Text keeps its
place and stays dense, with the picture's last tokens if these fill no block.

Reordering alone changes nothing: attention doesn't know the order of tokens, and rotary embedding
has acted before. Zhao et al., arXiv 2506.16054, sections 4.1 and 4.2; there is no released code.

The paper's integers (section 4.3: queries, keys, weights and values in 8 or 4 bits) are left out:
how a running softmax is scaled for them isn't published, torch's kernels get no faster by rounded
numbers, and rounding makes of a last bit's difference a whole step, so that a batch wouldn't give
what single prompts give. Orders that suit integers can be chosen all the same (``alpha``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, shown
from regaze.hooks.diffusion.blocks import KERNELS, Blocks
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.interventions.base import register
from regaze.interventions.diffusion.paro_plan import Plan, group_of, permutation, read
from regaze.interventions.diffusion.sparse import Part, Sparse, image_first
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen


@register
@dataclass(frozen=True)
class PARO(ByLayers):
    """Attention reordered for each head and computed by blocks, as a calibration chose.

    Attributes:
        plan: The calibration's file, from ``regaze discover paro``.
        digest: The first 16 digits of the file's SHA-256, filled in when the spec is resolved.
        layers: Some of the calibrated layers, as in `Guided.layers`; by default all of them.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends.
        kernel: The kernel of the blocks, as in `RadialAttention`.
    """

    name: ClassVar[str] = "paro"
    summary: ClassVar[str] = "faster attention: tokens reordered for each head, few blocks computed"
    paper: ClassVar[str] = "arXiv 2506.16054"
    acts_on: ClassVar[str] = "diffusers pipelines"

    plan: str | None = None
    digest: str | None = None
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    kernel: str = "auto"

    def check(self) -> None:
        """Check the fields' domains."""
        for name in ("plan", "digest"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"paro: {name} must be text, got {shown(value)}")
        check_choice(self.name, "kernel", self.kernel, KERNELS)
        check_where(self.name, self.layers, self.start, self.stop, empty=True)

    def idle(self) -> PARO:
        """The same without layers."""
        return replace(self, layers=())

    def literal(self) -> AttendForm:
        """Dense attention in each head's order, whose logits outside of its blocks are -inf."""
        plan = read(self.plan or "")

        def edit(m: Map) -> Tensor:
            total = m.logits.shape[-1]
            blocks, index = _reordered(plan, m.site.name, m.image, total, m.step[0])
            index = index.to(m.logits.device)
            order = index[None, :, :, None].expand_as(m.query)
            query, key = (x.gather(2, order) for x in (m.query, m.key))
            bias = m.bias.expand_as(m.logits)
            bias = bias.gather(2, index[None, :, :, None].expand_as(bias))
            bias = bias.gather(3, index[None, :, None, :].expand_as(bias))
            logits = query @ key.transpose(-1, -2) * m.scale + bias
            kept = blocks.mask().to(logits.device)
            weights = logits.masked_fill(~kept, -torch.inf).softmax(-1)
            back = index.argsort(-1)
            weights = weights.gather(2, back[None, :, :, None].expand_as(weights))
            return weights.gather(3, back[None, :, None, :].expand_as(weights))

        return AttendForm(self.layers or (), edit, self.start, self.stop)

    def resolve(self, host: Host) -> PARO:
        """Read the calibration, and fill in its digest and layers.

        Raises:
            ValueError: There is none, it is of another model, or the file isn't the one that this
                spec was resolved with.
        """
        if self.plan is None:
            raise ValueError(
                "paro: it needs a calibration: make one with `regaze discover paro` and give its "
                "file as plan"
            )
        plan = read(self.plan)
        if self.digest not in (None, plan.digest):
            raise ValueError(
                f"paro: {self.plan} has changed since this spec was made: its digest is "
                f"{plan.digest}, not {self.digest}; leave digest out to use it"
            )
        plan.fits(host)
        sites = self._sites(host, plan)
        return replace(self, digest=plan.digest, layers=tuple(site.name for site in sites))

    def bind(self, host: Host) -> Sparse:
        """Make the edit."""
        plan = read(self.plan or "")
        return Sparse(
            tuple(self._sites(host, plan)), self.start, self.stop,
            partial(_part_of, plan), self.kernel, fits=plan.is_of,  # type: ignore[arg-type]
        )  # fmt: skip

    def _sites(self, host: Host, plan: Plan) -> list[Site]:
        known = list(plan.orders)
        found = chosen(self.name, host, known if self.layers is None else self.layers)
        for site in found:
            if site.name not in plan.orders:
                raise ValueError(
                    f"paro: {site.name} wasn't calibrated; the layers of {self.plan} are "
                    f"{', '.join(known)}"
                )
        return found


def _part_of(plan: Plan, call: Call) -> Part:
    """A call's blocks and orders.

    Raises:
        ValueError: The clip's size or the number of steps isn't the calibration's.
    """
    image = call.image()
    plan.check_grid(call.layout.grid(call.site, image.stop - image.start), call.site.name)
    running = None if call.pass_ is None else call.pass_.running
    step = 0
    if plan.groups > 1:
        if running is None or running.step is None:
            raise ValueError(
                "paro: blocks differ from step to step, and only a running pipeline knows its "
                "step: attach to the pipeline"
            )
        step, steps = running.step
        plan.check_steps(steps)
    return Part(*_reordered(plan, call.site.name, image, call.query.shape[2], step))


def _reordered(plan: Plan, site: str, image: slice, total: int, step: int) -> tuple[Blocks, Tensor]:
    """A layer's blocks in a step, and the order of tokens that they are in, "H N"."""
    key = group_of(step, plan.steps), image.start, image.stop, total
    known = plan.parts.get(site)
    if known is not None and known[0] == key:
        return known[1:]
    mask = plan.mask(site, key[0])
    number = -(-total // plan.size)
    keep = torch.ones(len(mask), number, number, dtype=torch.bool, device="cpu")
    keep[:, : mask.shape[1], : mask.shape[1]] = mask
    length = image.stop - image.start
    picture, others = image_first(image, total).split((length, total - length))
    index = torch.stack([
        torch.cat([picture[permutation(plan.grid, order)], others]) for order in plan.orders[site]
    ])  # fmt: skip
    blocks = Blocks(keep, plan.size, total)
    plan.parts[site] = key, blocks, index
    return blocks, index
