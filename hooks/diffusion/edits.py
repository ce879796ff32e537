"""What a method asks of a denoiser: edits of its own branches, or guidance by perturbed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regaze.hooks.diffusion.seat import Call
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.report import LayerReport


@dataclass(frozen=True)
class Edit:
    """Attention edited in the pipeline's own branches.

    Attributes:
        sites: Where; none makes it a no-op.
        attend: The head outputs of a call, "B H N D", edited. The batch holds
            ``call.layout.branches`` branches one after the other.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
    """

    sites: tuple[Site, ...]
    attend: Callable[[Call], Tensor]
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Guidance:
    """One perturbed branch and its weight.

    Attributes:
        sites: Where attention is perturbed; none makes it a no-op.
        attend: The head outputs of a call, "B H N D", perturbed.
        scale: Weight s of (branch - perturbed).
        adaptive: Loss of weight per timestep after the first: ``max(0, s - a (1000 - t))``.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        branch: Which branch is perturbed; "uncond" is the conditional one without guidance.
        scale_alone: Weight where there is no classifier-free guidance, if another.
    """

    sites: tuple[Site, ...]
    attend: Callable[[Call], Tensor]
    scale: float
    adaptive: float = 0.0
    start: float = 0.0
    stop: float = 1.0
    branch: Literal["cond", "uncond"] = "cond"
    scale_alone: float | None = None


@dataclass
class Entry:
    """An edit or guidance at work, with its counters."""

    work: Edit | Guidance
    note: str = ""
    steps: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether it is a no-op by its settings."""
        return not self.work.sites or (isinstance(self.work, Guidance) and not self.work.scale)

    def attend(self, call: Call) -> Tensor:
        """Edit a call, count it, and now and then (at 1, 2, 4, 8, ...) measure the change."""
        name = call.site.name
        self.calls[name] = count = self.calls.get(name, 0) + 1
        changed = self.work.attend(call)
        if count & (count - 1) == 0:
            stock = call.output.float()
            moved = (changed.float() - stock).norm(dim=(2, 3)) / stock.norm(dim=(2, 3)).clamp(1e-12)
            counted = ((moved > 0).float(), moved, torch.ones_like(moved))
            sums = torch.stack([x.sum() for x in counted])
            self.sums[name] = self.sums.get(name, torch.zeros(3)) + sums.double().cpu()
        return changed

    def layers(self) -> list[LayerReport]:
        """What was counted, per site."""
        reports = []
        for site in self.work.sites:
            heads, effect, total = self.sums.get(site.name, torch.zeros(3)).tolist()
            total = max(total, 1)
            layer = -1 if site.layer is None else site.layer
            calls = self.calls.get(site.name, 0)
            reports.append(LayerReport(layer, calls, heads / total, effect / total, site.name))
        return reports
