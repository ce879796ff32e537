"""Common parts of methods that move latents by concept maps: their tokens, layers and steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.descent import Descend, Objective
from regaze.hooks.diffusion.gradients import Descent
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal_latents import LatentForm
from regaze.hooks.diffusion.sites import TEXT, Site
from regaze.hooks.diffusion.works import Run
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.concept_maps import Columns, concept_maps, literal_maps
from regaze.interventions.diffusion.concept_tokens import columns_of
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_Self = TypeVar("_Self", bound="ConceptUpdate")


@dataclass(frozen=True)
class ConceptUpdate(ByLayers):
    """Latents moved so that the prompt's concepts get places of their own.

    Attributes:
        tokens: The concepts: column numbers of the text stream (``[2, 5]``; 0 is CLIP's start
            token), words or phrases of the prompt (``["cat", "red frog"]``, every occurrence a
            concept, all its tokens together), or "auto" for the prompt's nouns. One list for all
            prompts, or a list per prompt: ``[["cat", "frog"], [2, [5, 6]]]``, where an inner list
            is a concept of several columns. Empty: a no-op.
        absent: The answer to a prompt that lacks one of the words: "raise", or "skip" it.
        layers: Layers whose maps are read: parts of module paths as in diffusers ("up_blocks.1",
            "mid"; regular expressions work) or in joint attention numbers ("L7"), all of one
            resolution. By default, in a U-Net, the layers whose grid is nearest to a quarter of the
            latents' at the model's own size: 16 x 16 in Stable Diffusion, as in both papers,
            32 x 32 in SDXL. In a transformer the second half of the blocks; FLUX's double ones, 9
            to 18.
        encoder: Encoder whose columns are read in SD3, whose text stream has those of two: "clip",
            "t5" or "both". Other models have one. CLIP's by default: T5's is optional there.
        cut: End of the tokens that compete for attention: before the "last" column, as in
            Attend-and-Excite's code for Stable Diffusion 1, or before the end token, "eos", as in
            its branch for Stable Diffusion 2. By default "eos" for text encoders that pad with
            another token than that (Stable Diffusion 2, T5), else "last".
        sharpen: Factor on the maps before the softmax over these tokens; 100 in the code, 0 for
            none.
        sigma: Width of the 3 x 3 blur of each map; 0.5 in the code, 0 for none.
        step_size: Step down the gradient; 20 in the code, 0 is a no-op, and below 0 it leads up,
            away from what the concepts need. It falls over the steps by
            ``sqrt(linspace(1, 0.5, T))``.
        start: Share of the sampling steps at which the updates begin.
        stop: Share of the sampling steps at which they end.
        maps: Maps that move the latents: those of the "concepts", or as a control of "others", in
            each concept's place one of the prompt's words that name nothing (articles,
            conjunctions, prepositions), drawn at random, but the same ones each time.
    """

    acts_on: ClassVar[str] = "diffusers pipelines"

    tokens: Any = ()
    absent: str = "raise"
    layers: tuple[str | int, ...] | None = None
    encoder: str = "clip"
    cut: str | None = None
    sharpen: float = 100.0
    sigma: float = 0.5
    step_size: float = 20.0
    start: float = 0.0
    stop: float = 1.0
    maps: str = "concepts"

    def __post_init__(self) -> None:
        if isinstance(self.tokens, int) or (isinstance(self.tokens, str) and self.tokens != "auto"):
            object.__setattr__(self, "tokens", (self.tokens,))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        check_choice(self.name, "absent", self.absent, ("raise", "skip"))
        check_choice(self.name, "encoder", self.encoder, ("clip", "t5", "both"))
        check_choice(self.name, "maps", self.maps, ("concepts", "others"))
        if self.cut is not None:
            check_choice(self.name, "cut", self.cut, ("last", "eos"))
        for field in ("sharpen", "sigma"):
            check_number(self.name, field, getattr(self, field), low=0)
        check_number(self.name, "step_size", self.step_size)
        check_where(self.name, self.layers, self.start, self.stop)
        for concept in self._listed():
            whole = isinstance(concept, tuple) and concept and all(map(_is_index, concept))
            if not (whole or _is_index(concept) or isinstance(concept, str)):
                raise ValueError(
                    f"{self.name}: tokens holds {concept!r}; give column numbers (1 or more), "
                    'words of the prompt, or "auto"'
                )

    def check_given(self) -> None:
        """Check that concepts are named."""
        if not self.tokens:
            raise ValueError(
                f"{self.name} acts on words of the prompt, and none are named: set tokens to words "
                'such as [cat,frog], to column numbers, or to "auto" for the prompt\'s nouns'
            )

    def _listed(self) -> list[Any]:
        """All concepts that are named, of all prompts."""
        if self.tokens == "auto":
            return []
        if not isinstance(self.tokens, tuple):
            raise ValueError(f'{self.name}: tokens must be a list or "auto", got {self.tokens!r}')
        return [c for one in self.tokens for c in one] if self.per_prompt else list(self.tokens)

    @property
    def per_prompt(self) -> bool:
        """True if each prompt has a list of its own."""
        tokens = self.tokens
        return isinstance(tokens, tuple) and any(isinstance(one, tuple) for one in tokens)

    def idle(self: _Self) -> _Self:
        """The same with steps of size 0."""
        return replace(self, step_size=0.0)

    def controls(self) -> dict[str, Intervention]:
        """Steps the other way, and the same steps for as many words that name nothing."""
        if not (self.tokens and self.step_size > 0 and self.maps == "concepts"):
            return {}
        return {
            "away": replace(self, step_size=-self.step_size),
            "other words": replace(self, maps="others"),
        }

    def literal(self) -> LatentForm:
        """Losses written place by place, on whole maps and whole passes."""
        return LatentForm(self.layers or (), self._begin_literally)

    def _begin_literally(self, run: Run) -> Objective:
        objective = self.objective(run, columns_of(self, run))
        objective.literal = True
        return objective

    def resolve(self: _Self, host: Host) -> _Self:
        """Choose the layers, by their full names."""
        return replace(self, layers=tuple(site.name for site in self.sites(host)))

    def sites(self, denoiser: Host) -> list[Site]:
        """The chosen layers of a model.

        Raises:
            ValueError: One names no layer of this model that sees text, or they aren't of one
                resolution.
        """
        if self.layers is None:
            return default_layers(self.name, denoiser)
        found = chosen(self.name, denoiser, self.layers, TEXT)
        grids = {denoiser.grids.get(site.name) for site in found}
        if len(grids) > 1:
            shown = ", ".join(f"{s.name} {_shown(denoiser.grids.get(s.name))}" for s in found)
            raise ValueError(f"{self.name}: choose layers of one resolution, not {shown}")
        return found

    def bind(self, host: Host) -> Descend:
        """Make the update."""
        idle = self.step_size == 0 or not (self._listed() or self.tokens == "auto")
        sites = () if idle else tuple(self.sites(host))
        return Descend(sites, objective=self._begin)

    def _begin(self, run: Run) -> Objective:
        return self.objective(run, columns_of(self, run))

    @abstractmethod
    def objective(self, run: Run, columns: Sequence[Columns]) -> ConceptObjective:
        """The objective that a run minimises, given each sample's columns."""


class ConceptObjective(Objective):
    """A loss on each sample's concept maps.

    Args:
        spec: The method's settings.
        steps: Number of sampling steps.
        columns: Each sample's.
    """

    literal: bool = False
    """True where maps and losses are made as the formulas read, place by place."""

    def __init__(self, spec: ConceptUpdate, steps: int, columns: Sequence[Columns]) -> None:
        self.steps, self.columns = steps, columns
        self._window = (spec.start, spec.stop)
        self._size = spec.step_size
        self._maps = spec.sharpen, spec.sigma

    def plan(self, step: int) -> Descent | None:
        """One update a step, inside the window."""
        start, stop = self._window
        return Descent(self.size(step)) if start <= step / self.steps < stop else None

    def size(self, step: int) -> float:
        """``step_size sqrt(linspace(1, 0.5, T))``, the schedule of Attend-and-Excite's code."""
        return self._size * math.sqrt(1 - 0.5 * step / max(1, self.steps - 1))

    def concepts(self, maps: Tensor) -> list[Tensor | None]:
        """Each sample's concept maps "N F R C", from "B F R C T"; None where it has none."""
        made = literal_maps if self.literal else concept_maps
        return [
            made(one, columns, *self._maps) if columns.concepts else None
            for one, columns in zip(maps, self.columns, strict=True)
        ]

    def loss(self, maps: Tensor) -> Tensor:
        """Each sample's loss; 0 where it has no concepts."""
        found = self.concepts(maps)
        loss_of = self.literal_loss if self.literal else self.loss_of
        losses = [
            maps.new_zeros(()) if one is None else loss_of(sample, one)
            for sample, one in enumerate(found)
        ]
        return torch.stack(losses)

    @abstractmethod
    def loss_of(self, sample: int, concepts: Tensor) -> Tensor:
        """The loss of one sample, from its concept maps "N F R C"."""

    @abstractmethod
    def literal_loss(self, sample: int, concepts: Tensor) -> Tensor:
        """The same, written as the method's formula reads."""


def default_layers(method: str, denoiser: Host) -> list[Site]:
    """The layers that maps are read in by default: see `ConceptUpdate.layers`."""
    cross = [site for site in denoiser.sites if site.kind == "cross"]
    joint = [s for s in denoiser.sites if s.kind == "joint" and not s.block.startswith("single_")]
    found = cross or joint
    if not found:
        raise ValueError(
            f"{method}: {denoiser.model} has no layers of cross- or joint attention that are known "
            "here, so there are no maps of words"
        )
    grids = [denoiser.grids.get(site.name) for site in found]
    if len(set(grids)) == 1 or denoiser.size is None:
        return found[len(found) // 2 :]
    quarter = math.log(denoiser.size[0] / 4)
    sides = {grid[0] for grid in grids if grid}
    side = min(sides, key=lambda s: (abs(math.log(s) - quarter), -s))
    return [site for site, grid in zip(found, grids, strict=True) if grid and grid[0] == side]


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(grid: tuple[int, int] | None) -> str:
    return "" if grid is None else f"({grid[0]} x {grid[1]})"
