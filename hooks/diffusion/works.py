"""What a method asks of a denoiser: edits of its branches, guidance by others, moved latents."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regaze.hooks.diffusion.kernel import Call
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.report import LayerReport


@dataclass(frozen=True)
class Attend:
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
class Branch:
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


@dataclass(frozen=True)
class LatentEdit:
    """Latents moved down the gradient of a loss on text maps, before the denoiser sees them.

    Attributes:
        sites: Cross- or joint attention whose maps the loss needs, all of one resolution; none
            makes it a no-op.
        begin: Makes what a run of the pipeline minimises.
    """

    sites: tuple[Site, ...]
    begin: Callable[[Run], Objective]


@dataclass(frozen=True)
class Run:
    """A run of a pipeline, as it begins.

    Attributes:
        samples: How many it makes at once.
        steps: Number of sampling steps.
        text: The parts of the text stream, whose columns are those of the maps.
    """

    samples: int
    steps: int
    text: tuple[Part, ...]


@dataclass(frozen=True)
class Descent:
    """What a step does.

    Attributes:
        size: Factor of the gradient.
        target: Samples with a larger loss are first moved until it is at most this.
        limit: How often at most.
        update: Whether all are moved once more then.
    """

    size: float
    target: float = math.inf
    limit: int = 0
    update: bool = True


class Objective(ABC):
    """What one run of a pipeline minimises; may remember what it saw in the steps before."""

    watches: bool = False
    """Whether it wants to `watch` the denoiser's own passes."""

    @abstractmethod
    def plan(self, step: int) -> Descent | None:
        """What a step does; None if nothing."""

    @abstractmethod
    def loss(self, maps: Tensor) -> Tensor:
        """The loss of each sample, "B", from maps "B F R C T" (see `Reader.maps`)."""

    def watch(self, maps: Tensor) -> None:  # noqa: B027 (most have nothing to watch)
        """See the maps at the updated latents, after each step with a plan."""


@dataclass
class Entry:
    """An edit, guidance or update at work, with its counters."""

    work: Attend | Branch | LatentEdit
    note: str = ""
    steps: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether it is a no-op by its settings."""
        return not self.work.sites or (isinstance(self.work, Branch) and not self.work.scale)

    def attend(self, call: Call) -> Tensor:
        """Edit a call, count it, and now and then (at 1, 2, 4, 8, ...) measure the change."""
        if isinstance(self.work, LatentEdit):
            raise TypeError("an update of latents edits no attention")
        name = call.site.name
        self.calls[name] = count = self.calls.get(name, 0) + 1
        changed = self.work.attend(call)
        if count & (count - 1) == 0:
            stock = call.output.float()
            moved = (changed.float() - stock).norm(dim=(2, 3)) / stock.norm(dim=(2, 3)).clamp(1e-12)
            counted = ((moved > 0).float(), moved, torch.ones_like(moved))
            sums = torch.stack([x.sum() for x in counted])
            self.add(name, sums)
        return changed

    def add(self, name: str, sums: Tensor) -> None:
        """Add to a site's sums: changed, change, total."""
        self.sums[name] = self.sums.get(name, torch.zeros(3)) + sums.double().cpu()

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


def refuse_clashes(entries: Sequence[Entry]) -> None:
    """Check that no attention call is edited twice.

    Raises:
        ValueError: Two main edits act on one layer in the same steps: what the second one would
            make of the first one's output isn't defined.
    """
    edits = [entry.work for entry in entries if isinstance(entry.work, Attend)]
    for number, one in enumerate(edits):
        for other in edits[:number]:
            both = {site.name for site in one.sites} & {site.name for site in other.sites}
            if both and one.start < other.stop and other.start < one.stop:
                raise ValueError(
                    f"two interventions edit the attention of {min(both)} in the same steps; give "
                    "them other layers or other steps"
                )
