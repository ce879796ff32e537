"""Background and object of PrimeComposer, as latents of every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NAME = "primecomposer"
NAMES = ("background", "object", "pasted")


@dataclass(frozen=True)
class Inverted:
    """The pictures of a composition, as latents.

    Attributes:
        background: "T+1 C H W", the noisiest first.
        reference: The same, of the object at its place.
        pasted: The same, of the object pasted into the background; None unless it is needed.
        mask: The object's latents, "H W" bool.
        region: The box's latents, "H W" bool.
    """

    background: Tensor
    reference: Tensor
    pasted: Tensor | None
    mask: Tensor
    region: Tensor

    def begun(self, noise: Tensor, same: bool) -> Tensor:
        """The latents of the first step, of noise "B C H W"."""
        if same and self.pasted is not None:
            return torch.where(self.region & ~self.mask, noise, self.pasted[0])
        around = torch.where(self.region, noise, self.background[0])
        return torch.where(self.mask, self.reference[0], around)

    def kept(self, latents: Tensor, step: int, outside: Tensor) -> Tensor:
        """Latents of a step with the background's outside of a mask."""
        return torch.where(outside, latents, self.background[step])

    def beside(self, latents: Tensor, step: int, around: str) -> Tensor:
        """The latents at which a step's prior is read: composites and references, "2B C H W"."""
        ground, thing = self.background[step], self.reference[step]
        composite = torch.where(self.mask, thing, ground).expand_as(latents)
        rest = thing if around == "reference" else ground
        return torch.cat([composite, torch.where(self.mask, latents, rest)])


def given(path: str, domain: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Latents from a file.

    Raises:
        ValueError: Some are missing, or of another shape than the pipeline's in all its steps.
    """
    from safetensors.torch import load_file

    found = load_file(path)
    for name in NAMES if domain == "same" else NAMES[:2]:
        if name not in found or tuple(found[name].shape) != shape:
            got = tuple(found[name].shape) if name in found else "none"
            raise ValueError(
                f"{NAME}: latents must hold {name!r} of shape {shape}, a picture's in each step "
                f"and at the end; they hold {got}"
            )
    return {name: x.float() for name, x in found.items()}
