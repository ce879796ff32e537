"""Fields and default layers of methods that guide by a perturbed branch."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_Self = TypeVar("_Self", bound="Guided")


@dataclass(frozen=True)
class Guided(ByLayers):
    """Guidance away from a perturbed branch: ``eps + scale (eps_cond - eps_perturbed)``.

    Attributes:
        scale: Weight of the difference; 0 is a no-op. 3 in the PAG and SEG papers' experiments.
        layers: Layers: numbers (``[7, 8]``), "L7", or parts of module paths as in diffusers ("mid",
            "up_blocks.1", "blocks.13"; regular expressions work); `regaze.hooks.diffusion.sites`
            lists them. By default the middle block of a U-Net, as in the PAG paper and in
            diffusers, and of a transformer the layer at 9/24 of its depth, which is the one that
            arXiv 2506.10978 sweeps in SD3.
        start: Share of the sampling steps at which the guidance begins.
        stop: Share of the sampling steps at which it ends; all steps by default, as in the papers.
        adaptive: Loss of the scale per timestep, as in diffusers:
            ``max(0, scale - adaptive (1000 - t))``.
    """

    acts_on: ClassVar[str] = "diffusers pipelines"

    scale: float = 3.0
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    adaptive: float = 0.0

    def check(self) -> None:
        """Check the fields' domains."""
        check_number(self.name, "scale", self.scale)
        check_number(self.name, "adaptive", self.adaptive, low=0)
        check_where(self.name, self.layers, self.start, self.stop)

    def idle(self: _Self) -> _Self:
        """The same with guidance of weight 0."""
        return replace(self, scale=0.0)

    def controls(self) -> dict[str, Intervention]:
        """The same difference, towards the perturbed branch."""
        # What is lost of an adaptive scale stops at 0, so one below it would do nothing.
        mirrored = self.scale > 0 and not self.adaptive
        return {"towards": replace(self, scale=-self.scale)} if mirrored else {}

    def literal(self) -> GuidanceForm:
        """A whole second pass with the edited maps, and what is added of the difference."""
        return GuidanceForm(self.layers or (), self.literal_map, self.weight, self.start, self.stop)

    @abstractmethod
    def literal_map(self, m: Map) -> Tensor:
        """The perturbed attention weights "B H N N", as the method's formula reads."""

    def weight(self, t: float, guided: bool) -> float:
        """The factor of the difference at a timestep, with and without guidance by prompt."""
        return max(0.0, self.scale - self.adaptive * (1000 - t)) if self.adaptive else self.scale

    def resolve(self: _Self, host: Host) -> _Self:
        """Choose the layers, by their full names."""
        return replace(self, layers=tuple(site.name for site in self.sites(host)))

    def sites(self, denoiser: Host) -> list[Site]:
        """The chosen layers of a model.

        Raises:
            ValueError: One names no layer of this model.
        """
        wanted = default_layers(denoiser) if self.layers is None else self.layers
        return chosen(self.name, denoiser, wanted)

    def window(self) -> dict[str, Any]:
        """The fields that every guidance takes as they are."""
        return {
            "scale": self.scale,
            "start": self.start,
            "stop": self.stop,
            "adaptive": self.adaptive,
        }


def default_layers(denoiser: Host) -> tuple[str | int, ...]:
    """Layers to perturb in a model if nobody says: see `Guided.layers`."""
    middle = [site.name for site in denoiser.layers if site.block == "mid_block"]
    if middle:
        return tuple(middle)
    return (round(9 / 24 * len(denoiser.layers)),)
