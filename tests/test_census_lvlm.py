"""Every image-text-to-text class of transformers is edited exactly, or refuses; nothing in between.

Each class that can be built tiny is built, and every method run on it against its literal form, in
the prompt and in decoding, alone or in a padded batch.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from asking import contrasts, decoded, literally
from census_lvlm import EVERY, FEWER, LONGER, PROMPT, pictures, prompts, tiny_config, tiny_model
from matrix import CONTRASTS, EDITS, cannot
from methods import Method
from torch import Tensor, nn

from regaze.hooks import Host, attach
from regaze.hooks.families import FAMILIES
from regaze.hooks.host import find_host
from regaze.interventions import Intervention

REFUSED = [family for family in EVERY if FAMILIES[family].refuse]
EDITED = [family for family in EVERY if not FAMILIES[family].refuse]
# Shares of the logits' spread. Kernels round differently, and some towers amplify that; an edit
# that is wrong in one layer is off by a tenth and more.
ROUNDING, EFFECT = 5e-4, 5e-3
RUN = [*(m for m in EDITS.values() if not m.like), CONTRASTS["m3id"], CONTRASTS["dola"]]
"""Methods that run each in a way of its own, on which other contrasts' second runs rest, too."""


def spec_for(host: Host, method: Method) -> Intervention:
    """The method on all layers that attend."""
    layers, acts = tuple(site.layer for site in host.sites), method.acts
    assert isinstance(acts, Intervention)
    if method.name == "m3id":
        return acts
    changes: dict[str, Any] = {"layers": layers}
    if method.name == "dola":
        changes = {"candidates": layers}
    if method.name == "gift":  # Its gaze is read before the layers that it acts on.
        changes |= {"saliency": layers[:1], "layers": layers[1:]}
    if method.name == "var":
        changes["sink_dims"] = tuple(range(6))
    if isinstance(getattr(acts, "heads", None), tuple):
        changes["heads"] = tuple(
            (layer, head) for layer in layers for head in (0, host.n_heads - 1)
        )
    return dataclasses.replace(acts, **changes)


def apart(got: Tensor, want: Tensor) -> float:
    """Largest difference; tokens that are ruled out (-inf) in both are alike."""
    return float(torch.where(got == want, 0.0, (got - want).double().abs()).max())


def last_sample(outputs: Tensor) -> Tensor:
    """The last row of a batch: of "B N", "B Q V" or "... B T E"."""
    return outputs[-1:] if outputs.ndim == 2 else outputs[..., -1:, :, :]


def test_every_class_is_in_the_table() -> None:
    assert set(EVERY) <= set(FAMILIES)
    assert FEWER or set(EVERY) == set(FAMILIES)


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_no_method_can_edit_say_why(family: str) -> None:
    model = nn.Module()
    model.config = tiny_config(family, shrunk=False)
    with pytest.raises(ValueError, match=re.escape(FAMILIES[family].refuse)):
        attach(model, EDITS["pai"].acts)


@pytest.mark.parametrize("family", EDITED)
def test_every_method_equals_its_literal_form_or_says_why_not(family: str) -> None:
    model = tiny_model(family)
    host, inputs = find_host(model.model), prompts(family, PROMPT)
    with pictures(model):
        both = [decoded(model, inputs, second, tokens=2) for second in (False, True)]
        for method in RUN:
            if reason := cannot(family, method):
                with pytest.raises(ValueError, match=reason):
                    attach(model.model, method.acts)
                continue
            if method.name == "gift" and len(host.sites) == 1:
                continue
            # Every family meets both, and every method: the prompt alone, and as the second, padded
            # row of a batch, where places read off the first don't fit it.
            alone = (list(FAMILIES).index(family) + RUN.index(method)) % 2
            asked = inputs if alone else prompts(family, LONGER, PROMPT)
            with attach(model.model, spec_for(host, method)) as attached:
                second = contrasts(model, attached.specs)
                edited = [last_sample(x) for x in decoded(model, asked, second, tokens=2)]
            with literally(model, inputs, attached.specs):
                literal = decoded(model, inputs, second, tokens=2)
            report = attached.report()
            assert report.fired, method.id
            acted = {one.layer for one in report.interventions[0].layers if one.layer >= 0}
            attending = set(getattr(attached.specs[0], "layers", ()))
            # A layer without visual sinks is none of VAR's business.
            assert acted <= attending if method.name == "var" else acted == attending, method.id
            assert torch.equal(edited[1], literal[1]), method.id
            moved = []
            for part in (0, 2):
                want, before = literal[part], both[second][part]
                got, spread = edited[part][..., -want.shape[-2] :, :], float(before.std())
                assert apart(got, want) <= ROUNDING * spread, method.id
                moved.append(apart(got, before) / spread)
            assert max(moved) > EFFECT, method.id
        for got, before in zip(decoded(model, inputs, tokens=2), both[0], strict=True):
            assert torch.equal(got, before)


@pytest.mark.parametrize("name", ["vhr", "adaptvis"])
@pytest.mark.parametrize("family", ["aria", "llama4", "qwen3_vl_moe", "qwen3_5_moe"])
@torch.no_grad()
def test_logits_of_routers_are_those_of_the_prompt_s_rows(family: str, name: str) -> None:
    model, method = tiny_model(family), EDITS[name]
    if cannot(family, method):
        pytest.skip(cannot(family, method))
    inputs = prompts(family, PROMPT) | {"output_router_logits": True}
    with pictures(model):
        plain = model.model(**inputs).router_logits
        with attach(model.model, spec_for(find_host(model.model), method)) as attached:
            edited = model.model(**inputs).router_logits
        with literally(model, inputs, attached.specs):
            literal = model.model(**inputs).router_logits
    assert len(edited) == len(plain)
    assert any(apart(got, before) > EFFECT for got, before in zip(edited, plain, strict=True))
    for got, want in zip(edited, literal, strict=True):
        assert apart(got, want) <= ROUNDING * float(want.std())
