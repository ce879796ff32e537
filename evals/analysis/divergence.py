"""Each head's distance to itself without the image: VHR's vision-aware head divergence.

``||A - A0||_2`` of a head's output before the output projection at the prompt's last row, with the
image and with its tokens dropped. He et al., arXiv 2412.13949. Outputs grow with depth,
so heads of one layer compare with each other; VHR chooses within layers too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.evals.analysis.asked import Batch, Subject
from regaze.evals.analysis.maps import HeadMap, Means
from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.edits import Edit
from regaze.hooks.passes import Pass


class Divergence:
    """Distance between head outputs with the image and without."""

    name = "divergence"

    def __init__(self, subject: Subject) -> None:
        self._host = subject.host
        if not self._host.has_images:
            raise ValueError(
                f"the image isn't in the sequence of {self._host.model_type}'s text tower, so it "
                "can't be taken out of it"
            )
        self._subject, self._means = subject, Means()

    def add(self, batch: Batch) -> None:
        """Run a batch beside the same without its images."""
        reader = _Divergence([site.layer for site in self._host.sites], self._means)
        with Capturing(seat_of(self._host), reader, reader):
            self._subject.read(batch)

    def maps(self) -> list[HeadMap]:
        """The map."""
        values = self._means.table(self._host.n_layers, self._host.n_heads)
        about = (
            "Euclidean distance of a head's output at the prompt's last row with the image and "
            "without (VHR, arXiv 2412.13949); compare heads within a layer."
        )
        title = "Divergence without the image"
        return [HeadMap("divergence", title, "distance", values, about=about)]


def divergence(seen: Tensor, blind: Tensor) -> Tensor:
    """Distances "... H" of outputs "... H D" with the image and without."""
    found: Tensor = torch.linalg.vector_norm(seen.float() - blind.float(), dim=-1)
    return found


class _Divergence(Edit):
    null_prompt = True

    def __init__(self, layers: Sequence[int], means: Means) -> None:
        super().__init__(layers)
        self.means = means

    def scale_heads(self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass) -> None:
        if null is not None:
            rows = torch.arange(len(out), device=out.device)
            seen = out[rows, pass_.last_rows.to(out.device)]
            self.means.add(layer, divergence(seen, null))
