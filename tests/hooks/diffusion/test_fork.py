"""Branches begin at their first edited layer: blocks before it don't run again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, quiet

import regaze
from regaze.hooks.diffusion import sites
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.fork import why_not
from regaze.hooks.diffusion.sites import blocks

KINDS = ("sd", "sd3", "flux", "pixart", "qwen", "controlnet")


def count(family: str, **options: Any) -> tuple[int, int]:
    """Calls of the first block, and of the one that is edited, with PAG in the last layer."""
    kind = FAMILIES[family]
    pipe = quiet(kind.build())
    denoiser = getattr(pipe, kind.denoiser)
    last = [site for site in sites(pipe) if site.layer is not None][-1]
    names = [next(iter(blocks(denoiser))), last.block]
    seen = dict.fromkeys(names, 0)
    for name in names:

        def add(*_: Any, name: str = name) -> None:
            seen[name] += 1

        denoiser.get_submodule(name).register_forward_pre_hook(add)
    spec = regaze.PAG(scale=2.0, layers=(last.name,))
    if options.pop("plain", False):
        kind.run(pipe)
    else:
        with regaze.attach(pipe, spec, **options) as run:
            kind.run(pipe)
        assert run.report().fired
        assert ("whole extra" in run.report().interventions[0].note) == ("fork" in options)
    return seen[names[0]], seen[names[1]]


def test_a_controlnets_residuals_may_stand_beside_a_fork_and_an_adapters_not() -> None:
    denoiser = quiet(FAMILIES["controlnet"].build()).unet
    family = family_of(denoiser)
    down, middle = "down_block_additional_residuals", "mid_block_additional_residual"
    residual = torch.zeros(1)
    assert why_not(denoiser, {}, family) is None
    assert why_not(denoiser, {down: (residual,), middle: residual}, family) is None
    assert why_not(denoiser, {down: None, middle: residual}, family) is None
    for call in (
        {down: (residual,)},  # as adapters' residuals were called once
        {down: (residual,), middle: None},
        {"down_intrablock_additional_residuals": (residual,)},
        {"down_intrablock_additional_residuals": (residual,), down: (residual,), middle: residual},
    ):
        assert "T2I adapter" in str(why_not(denoiser, call, family))


@pytest.mark.parametrize("family", KINDS)
def test_blocks_before_the_first_edited_one_run_once(family: str) -> None:
    plain, forked, whole = count(family, plain=True), count(family), count(family, fork=False)
    assert forked[0] == plain[0] < whole[0]
    assert plain[1] < forked[1] == whole[1]
