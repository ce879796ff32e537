"""ConsistEdit at work where the source's latents are known: of a real picture, or recorded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regaze.hooks.diffusion.latents import LatentEdit
from regaze.hooks.diffusion.passes import Pass
from regaze.interventions.diffusion.consistent import Consistent
from regaze.interventions.diffusion.edit_source import Source


@dataclass(frozen=True)
class OfSource(Consistent, LatentEdit):
    """`Consistent` with a source whose latents are known."""

    source: Source | None = None

    needs_latents = True

    @property
    def _reads(self) -> bool:
        # What was recorded is of the source, and a second round's is the edit before.
        known = self.source is not None and self.source.shares is not None
        known = known and self.spec.rounds == 1
        return super()._reads and not known

    def before(self, pass_: Pass) -> None:
        """Put the source's latents in its rows; at the first step, in all."""
        self.state.began = True  # They begin in one noise, the source's.
        Consistent.before(self, pass_)
        LatentEdit.before(self, pass_)

    def move(self, latents: Tensor, pass_: Pass) -> Tensor:
        """Latents with the source's in its rows."""
        at, source = pass_.latents, self.source
        assert at is not None and source is not None  # noqa: S101
        wanted = source.at(at.index, at.steps, pass_.timestep, latents)
        images = 1 if pass_.running is None else pass_.running.images
        stacked = latents.unflatten(0, (-1, self.spec.rounds + 1, images)).clone()
        if len(wanted) not in (1, len(stacked)):
            raise ValueError(
                f"consistedit: source holds {len(wanted)} pictures, and the batch is of "
                f"{len(stacked)} sources; run them with as many [source, edit] pairs"
            )
        rows = slice(None) if at.index == 0 else slice(0, 1)
        stacked[:, rows] = wanted[:, None, None].expand_as(stacked[:, rows])
        moved: Tensor = stacked.flatten(0, 2)
        return moved

    def _mean(self) -> Tensor | None:
        if self._reads or self.source is None:
            return super()._mean()
        return self.source.shares
