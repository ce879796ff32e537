"""Works, which methods hand over to a denoiser: each overrides the phases that it needs.

In the order in which a seat runs them, for every forward pass of the denoiser:

    begin      once per run of a pipeline: the work of that run, which may remember what it saw
    before     ahead of the pass, whose latents it may move
    arguments  what the denoiser is called with: more text, more rows
    attend     instead of an attention call's head outputs, in chosen sites
    branches   further runs of the denoiser, whose outputs are combined with the main one's
    after      at the end of the pass, with its output
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.fork import Instead
from regaze.hooks.diffusion.passes import Editors, Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.tally import Tally
from regaze.hooks.diffusion.text import Part


class Run:
    """A run of a pipeline, as it begins.

    Args:
        samples: Number of samples made at once.
        steps: Number of sampling steps; 0 if the pipeline doesn't count them as others do.
        text: The parts of the text stream.
        tally: The work's counters.
        pipeline: The pipeline.

    Attributes:
        looked: True if somebody looked at `text`.
    """

    def __init__(
        self,
        samples: int,
        steps: int,
        text: tuple[Part, ...],
        tally: Tally | None = None,
        pipeline: Any = None,
    ) -> None:
        self.samples, self.steps, self.pipeline = samples, steps, pipeline
        self.tally = Tally() if tally is None else tally
        self._text, self.looked = text, False

    @property
    def text(self) -> tuple[Part, ...]:
        """The parts of the text stream, whose columns are those of text maps.

        A work that looks at them depends on the prompt, whose embeddings must then stay as they
        are until the run ends.
        """
        self.looked = True
        return self._text


@dataclass(frozen=True)
class Work:
    """Base of what methods hand over; does nothing by itself.

    Attributes:
        sites: Sites at which it acts, in the order in which they run; none makes it a no-op.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
    """

    sites: tuple[Site, ...] = ()
    start: float = 0.0
    stop: float = 1.0

    measured: ClassVar[bool] = True
    """True if the effect of `attend` may be measured, for which the stock kernel runs now and then:
    False for a method that replaces it because it is slow."""
    counted: ClassVar[bool] = True
    """True if calls of `attend` are edits: False for a method that only reads there."""
    places: ClassVar[bool] = False
    """True if it edits attention by where in the picture tokens are."""
    shuffles: ClassVar[bool] = False
    """True if tokens are elsewhere in its branch, in the spatial transformers of its sites."""
    needs_latents: ClassVar[bool] = False
    """True if it needs a pipeline, whose latents it moves."""

    @property
    def idle(self) -> bool:
        """True if it is a no-op by its settings."""
        return not self.sites

    @property
    def reads_more(self) -> bool:
        """True if its passes have other arguments than the pipeline's."""
        return type(self).arguments is not Work.arguments

    @property
    def edits(self) -> bool:
        """True if it edits attention in the pipeline's own branches."""
        return self.counted and type(self).attend is not Work.attend

    def begin(self, run: Run) -> Work:
        """The work of one run of a pipeline; itself, if it has nothing to remember."""
        return self

    def acts(self, pass_: Pass) -> bool:
        """True if it does anything in a pass."""
        return not self.idle and pass_.within(self.start, self.stop)

    def before(self, pass_: Pass) -> None:
        """Prepare for a pass; move its latents, if it asked for them."""

    def arguments(self, call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
        """The arguments of a pass, its branches' included.

        Text may be made longer: then `attend` says, in every layer that sees it, what is read of
        it. Rows may be added behind the others: what the denoiser predicts of these is dropped.
        """
        return call

    def blocks(self, pass_: Pass) -> Mapping[str, Instead]:
        """The code that runs in the place of the denoiser's blocks, by their paths."""
        return {}

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """Sites whose calls `attend` makes in the pipeline's own branches."""
        return () if type(self).attend is Work.attend else self.sites

    def attend(self, call: Call) -> Tensor:
        """Make the head outputs of a call, "B H N D"."""
        return call.output

    def unedited(self, call: Call) -> Tensor:
        """A call's head outputs without the edit, which changes are measured against."""
        return call.output

    def moved(self, call: Call, changed: Tensor) -> Tensor:
        """The change of each head's output by `attend`, "B H": ``|new - old| / |old|``."""
        return change(changed, self.unedited(call))

    def told(self) -> str:
        """The note that reports show beside its counters."""
        return ""

    def branches(self, pass_: Pass) -> Sequence[Branch]:
        """Further runs of the denoiser beside the pass."""
        return ()

    def after(self, pass_: Pass, output: Any) -> Any:
        """End a pass, and return the denoiser's output."""
        return output


def change(new: Tensor, old: Tensor) -> Tensor:
    """``|new - old| / |old|`` of head outputs "B H N D", "B H"."""
    if new is old:  # As where the module's output is changed alone.
        return old.new_zeros(old.shape[:2], dtype=torch.float32)
    old = old.float()
    found: Tensor = (new.float() - old).norm(dim=(2, 3)) / old.norm(dim=(2, 3)).clamp(1e-12)
    return found


def refuse_shuffled(works: Sequence[Work]) -> None:
    """Check that no work needs the places of tokens that another one shuffles.

    Raises:
        ValueError: Works that act in one pass do.
    """
    shuffled = {transformer_of(site) for work in works if work.shuffles for site in work.sites}
    for site in (site for work in works if work.places for site in work.sites):
        if (inside := transformer_of(site)) in shuffled:
            raise ValueError(
                f"one method shuffles the tokens of {inside} (TPG), and another one edits "
                f"{site.name} by where in the picture they are (FlowWarp, Regions, PrimeComposer): "
                "give them layers of different spatial transformers, or leave one out"
            )


def transformer_of(site: Site) -> str:
    """Path of the spatial transformer that a layer is in."""
    return site.name.partition(".transformer_blocks.")[0]


@dataclass(frozen=True)
class Attend(Work):
    """Attention edited in the pipeline's own branches.

    Attributes:
        edit: The head outputs of a call, "B H N D", edited. The batch holds
            ``call.layout.branches`` branches one after the other.
    """

    edit: Callable[[Call], Tensor] = lambda call: call.output

    def attend(self, call: Call) -> Tensor:
        """Edit a call."""
        return self.edit(call)


@dataclass(frozen=True)
class Branch(Work):
    """A second run of the denoiser, whose output is combined with the main one's.

    Attributes:
        works: Works that edit its attention, beside the main run's edits; on a layer that both
            edit, these stand in the main one's place.
        combine: ``combine(main, branch, pass_)``: of both predictions for the branch's rows, the
            one that takes the main one's place. What it differs by is added to every branch of
            guidance, so that the pipeline's formula carries it through unchanged.
        inputs: Makes its arguments of the main run's for its rows: ``inputs(call, pass_)``; None
            for the same. Only then may it begin where its works do.
        rows: Rows that it runs on; "uncond" is the conditional branch without guidance.
        skipped: Paths of the denoiser's blocks that are left out: their streams pass through.
        instead: Code to run in the place of modules inside its sites' blocks, by their paths.
    """

    works: tuple[Work, ...] = ()
    combine: Callable[[Tensor, Tensor, Pass], Tensor] = lambda main, branch, pass_: main
    inputs: Callable[[dict[str, Any], Pass], dict[str, Any]] | None = None
    rows: Literal["cond", "uncond"] = "cond"
    skipped: tuple[str, ...] = ()
    instead: Mapping[str, Callable[[Pass], Instead]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.works and not self.sites:
            object.__setattr__(self, "sites", tuple(s for w in self.works for s in w.sites))

    @property
    def idle(self) -> bool:
        """True if it is a no-op by its settings."""
        return not self.sites and self.inputs is None

    def branches(self, pass_: Pass) -> Sequence[Branch]:
        """The branch itself."""
        return (self,)

    def chosen(self, pass_: Pass) -> slice:
        """The rows of a pass that it runs on.

        Raises:
            NotImplementedError: These are another call's.
        """
        rows = pass_.rows
        if self.rows == "uncond" and rows.split:
            raise NotImplementedError(
                "this guidance perturbs the unconditional branch, which this pipeline runs in a "
                'call of its own; use sense="code"'
            )
        found = rows.uncond if self.rows == "uncond" and rows.uncond else rows.cond
        return found or slice(0, rows.batch)


@dataclass(frozen=True)
class Guidance(Branch):
    """A perturbed branch that the prediction is led away from: ``eps + s (eps - perturbed)``.

    Attributes:
        scale: Weight s of (branch - perturbed).
        adaptive: Loss of weight per timestep after the first: ``max(0, s - a (1000 - t))``.
        scale_alone: Weight where there is no classifier-free guidance, if another.
    """

    scale: float = 0.0
    adaptive: float = 0.0
    scale_alone: float | None = None

    @classmethod
    def away_from(
        cls, sites: Sequence[Site], perturb: Callable[[Call], Tensor], **settings: Any
    ) -> Guidance:
        """Guidance away from attention that is perturbed in some sites."""
        return cls(tuple(sites), works=(Attend(tuple(sites), edit=perturb),), **settings)

    @property
    def idle(self) -> bool:
        """True if it is a no-op by its settings."""
        return not self.sites or not self.scale

    def branches(self, pass_: Pass) -> Sequence[Branch]:
        """The branch itself, with this step's weight; none if that is 0."""
        weight = self.scale
        if self.adaptive > 0:
            weight = max(0.0, weight - self.adaptive * (1000 - pass_.training_time))
        if pass_.rows.cond is not None and self.scale_alone is not None:
            guided = pass_.rows.uncond is not None or pass_.rows.split
            weight *= 1.0 if guided else self.scale_alone / self.scale
        return (replace(self, combine=_away(weight)),) if weight else ()


def _away(weight: float) -> Callable[[Tensor, Tensor, Pass], Tensor]:
    return lambda main, branch, pass_: main + weight * (main - branch)


__all__ = ["Attend", "Branch", "Editors", "Guidance", "Pass", "Run", "Work"]
