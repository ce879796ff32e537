"""Guidance away from a branch with blocks left out: what SLG and STG share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Guidance

_Work = TypeVar("_Work", bound="Skipping")


@dataclass(frozen=True)
class Skipping(Guidance):
    """Guidance away from a branch with blocks left out.

    Attributes:
        strict: True if step i of N acts if ``start N < i < stop N``, so that the first step never
            does: diffusers' rule.
    """

    strict: bool = False

    measured = False

    @classmethod
    def over(
        cls: type[_Work], method: str, host: Host, sites: Sequence[Site], **more: Any
    ) -> _Work:
        """Guidance away from a branch without the blocks that some sites are in.

        Raises:
            ValueError: Blocks of this model can't be left out.
        """
        if not FAMILIES[host.model].returns:
            raise ValueError(
                f"{method}: blocks of {host.model} can't be left out: "
                + (
                    "they change the size of what they are given"
                    if any(site.block.startswith("down_blocks") for site in host.sites)
                    else "which of their arguments they return isn't known here"
                )
            )
        blocks = dict.fromkeys(site.block for site in sites)
        # Every layer of a block is left out with it.
        all_ = tuple(site for site in host.sites if site.block in blocks)
        return cls(all_, skipped=tuple(blocks), **more)

    def acts(self, pass_: Pass) -> bool:
        """True if it does anything in a pass."""
        if not self.strict or self.idle:
            return super().acts(pass_)
        if pass_.running is None or pass_.running.step is None:
            return pass_.progress > 0  # It raises: nobody counts the steps.
        step, steps = pass_.running.step
        return self.start * steps < step < self.stop * steps


def check_layers(method: str, layers: Any, published: str) -> None:
    """Check that blocks are named.

    Raises:
        ValueError: They aren't: which ones help is found by trying, model by model.
    """
    if layers is None:
        raise ValueError(
            f"{method}: say which blocks: layers=[...]. Which ones help differs from model to "
            f"model and was found by trying; published ones are presets: {published}"
        )
