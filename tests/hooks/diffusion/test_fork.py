"""Branches begin at their first edited layer: blocks before it don't run again."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pipelines import FAMILIES, quiet

import regaze
from regaze.hooks.diffusion import sites
from regaze.hooks.diffusion.sites import blocks

KINDS = ("sd", "sd3", "flux", "pixart", "qwen")


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


@pytest.mark.parametrize("family", KINDS)
def test_blocks_before_the_first_edited_one_run_once(family: str) -> None:
    plain, forked, whole = count(family, plain=True), count(family), count(family, fork=False)
    assert forked[0] == plain[0] < whole[0]
    assert plain[1] < forked[1] == whole[1]
