"""Every denoiser class of diffusers is known, and edits equal their literal form; or it raises.

What the table says of a class is compared with what the class does: which rows change with the
picture alone and with the text alone, where a latent's token lies, and explicit N x N maps.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from literal_denoisers import (
    Edit,
    alone,
    blurred,
    changed_rows,
    image_alone,
    literally,
    prediction,
    soft,
)
from tiny_calls import TEXT, cells
from tiny_denoisers import TINY
from torch import Tensor

import regaze
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.sites import Site, find_sites, read_layout
from regaze.interventions import PAG, SEG, SoftPAG
from regaze.interventions.diffusion.guided import Guided

SCALE = 1.5
PACKAGES = ("diffusers.models.transformers", "diffusers.models.unets")
KNOWN = [name for name in TINY if not FAMILIES[TINY[name].of or name].refuse]


@functools.cache
def built(name: str) -> Any:
    return TINY[name].build(name)


def bumped(value: Any) -> Any:
    if isinstance(value, list):
        return [bumped(one) for one in value]
    return value + 1 if value.is_floating_point() else (value + 1) % 10


def with_other(name: str, argument: str, batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call's arguments, and those with another value of one of them."""
    call = TINY[name].call(batch)
    return call, call | {argument: bumped(call[argument])}


@functools.cache
def picture_rows(name: str) -> dict[str, list[Tensor]]:
    """Rows of each module's calls that change with the picture."""
    tiny, net = TINY[name], built(name)
    sample = FAMILIES[tiny.of or name].sample
    call, other = with_other(name, sample)
    if tiny.references:
        kept = call[sample]
        own = slice(None, -tiny.references)
        other = call | {sample: torch.cat([other[sample][:, own], kept[:, -tiny.references :]], 1)}
    return {
        path: [rows for rows, _ in calls] for path, calls in changed_rows(net, call, other).items()
    }


@pytest.mark.parametrize("name", KNOWN)
def test_rows_and_columns_are_whose_the_table_says(name: str) -> None:
    net = built(name)
    sites, layout = find_sites(net), read_layout(net, TINY[name].call(2))
    by_picture = picture_rows(name)
    by_text = changed_rows(net, *with_other(name, TINY[name].text)) if TINY[name].words else {}
    assert {site.name for site in sites} <= {*by_picture} | {
        s.name for s in sites if s.kind == "linear"
    }
    for site in sites:
        for number, rows in enumerate(by_picture[site.name]):
            texts = by_text[site.name][number] if by_text else (torch.zeros(1), torch.zeros(1))
            if site.kind == "other":
                continue
            if site.kind == "cross":
                assert rows.all() and not texts[0].any()
                audio = "audio" in site.name
                assert audio or not texts[1].any() or len(texts[1]) == layout.n_text
                continue
            if site.kind == "temporal":
                assert rows.all()
                continue
            total = len(by_text[site.name][number][1]) if by_text else len(rows)
            first = total - len(rows)
            want = torch.zeros(total, dtype=torch.bool)
            want[layout.image(site.order, total)] = True
            assert torch.equal(rows, want[first:]), site.name
            if site.kind == "self":
                assert not texts[0].any(), site.name
            elif total >= (layout.n_image or 0) + layout.n_text:  # Padding may be left out.
                where = layout.text(site.order, total)
                assert texts[1][where].any() and not texts[1][want].any(), site.name
                outside = torch.ones(total, dtype=torch.bool)
                outside[where] = False
                assert not texts[1][outside].any(), site.name
                assert layout.n_words != TEXT or texts[1][where].all(), site.name


@pytest.mark.parametrize("name", [n for n in KNOWN if TINY[n].axes])
def test_a_latent_is_where_the_grid_says(name: str) -> None:
    net, tiny = built(name), TINY[name]
    sample = FAMILIES[tiny.of or name].sample
    layout = read_layout(net, tiny.call(1))
    for place in ((0, 0, 1), (0, 1, 2), (-1, 2, 0)):
        call = tiny.call(1)
        frames, rows, columns = tiny.touch(call[sample], *place)
        frame, row, column = place[0] % frames, *place[1:]
        assert layout.finest in ((frames, rows, columns), (rows, columns))
        changed = changed_rows(net, tiny.call(1), call)
        for site in find_sites(net):
            if site.kind in ("self", "joint"):
                got, columns_seen = changed[site.name][-1]
                start = layout.image(site.order, len(columns_seen)).start
                want = start + (frame * rows + row) * columns + column
                first = len(columns_seen) - len(got)
                assert got.nonzero().flatten().tolist() == [want - first], site.name


Spec = Callable[[tuple[str, ...]], Guided]
Literally = Callable[[tuple[int, ...]], Edit]
METHODS: dict[str, tuple[Spec, Literally]] = {
    "pag": (lambda at: PAG(scale=SCALE, layers=at), lambda grid: alone),
    "pag-image": (
        lambda at: PAG(scale=SCALE, layers=at, variant="image"), lambda grid: image_alone
    ),
    "seg": (lambda at: SEG(scale=SCALE, layers=at, sigma=1.0), lambda grid: blurred(1.0, grid)),
    "seg-infinite": (lambda at: SEG(scale=SCALE, layers=at), lambda grid: blurred(1e6, grid)),
    "softpag-identity": (
        lambda at: SoftPAG(scale=SCALE, layers=at, u=0.6), lambda grid: soft("identity", 0.6)
    ),
    "softpag-uniform": (
        lambda at: SoftPAG(scale=SCALE, layers=at, u=0.6, target="uniform"),
        lambda grid: soft("uniform", 0.6),
    ),
    "softpag-query-mean": (
        lambda at: SoftPAG(scale=SCALE, layers=at, u=1, target="query_mean"),
        lambda grid: soft("query_mean", 1),
    ),
    "softpag-temperature": (
        lambda at: SoftPAG(scale=SCALE, layers=at, u=0.8, target="temperature", tau=3.0),
        lambda grid: soft("temperature", 0.8, 3.0),
    ),
}  # fmt: skip


def perturbed_sites(name: str) -> list[Site]:
    """Numbered layers of a denoiser with as many tokens as the last: the second and the last."""
    rows = picture_rows(name)
    layers = [site for site in find_sites(built(name)) if site.layer is not None]
    tokens = [int(rows[site.name][-1].sum()) for site in layers]
    same = [site for site, count in zip(layers, tokens, strict=True) if count == tokens[-1]]
    return [same[1], same[-1]] if len(same) > 2 else same


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KNOWN)
def test_guidance_equals_a_second_pass_with_literal_maps(name: str, method: str) -> None:
    net, tiny = built(name), TINY[name]
    sites = perturbed_sites(name)
    spec, edit = METHODS[method]
    rows = picture_rows(name)
    images = {site.name: rows[site.name] for site in sites}
    grid = cells(max(int(rows.sum()) for rows in images[sites[0].name]))
    with torch.no_grad():
        plain = prediction(net(**tiny.call(2)))
    perturbed = literally(net, tiny.call(2), images, edit(grid))
    with regaze.attach(net, spec(tuple(site.name for site in sites))) as run, torch.no_grad():
        got = prediction(net(**tiny.call(2)))
    want = plain + SCALE * (plain - perturbed)
    assert torch.isfinite(want).all()
    assert (want - plain).abs().max() > 1e-4
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    assert run.report().fired
    with torch.no_grad():
        assert torch.equal(prediction(net(**tiny.call(2))), plain)


@pytest.mark.parametrize("fork", [True, False], ids=["fork", "whole"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_branch_of_some_rows_equals_these_rows_of_all(name: str, fork: bool) -> None:
    net, tiny = built(name), TINY[name]
    last = [site for site in find_sites(net) if site.layer is not None][-1]
    with torch.no_grad():
        plain = prediction(net(**tiny.call(2)))
    perturbed = literally(net, tiny.call(2), {last.name: picture_rows(name)[last.name]}, alone)
    spec = PAG(scale=SCALE, layers=(last.name,))
    attached = regaze.attach(net, spec, cond_rows=slice(1, 2), fork=fork)
    with attached, torch.no_grad():
        got = prediction(net(**tiny.call(2)))
    want = plain + SCALE * (plain - perturbed)[1:]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    assert (want - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", [n for n in TINY if n not in KNOWN])
def test_refused_classes_say_why(name: str) -> None:
    with pytest.raises(ValueError, match="can't be edited: .{20}"):
        regaze.attach(built(name), PAG())


def exported() -> dict[str, Any]:
    """The classes of diffusers that denoise."""
    found = {}
    for name in dir(diffusers):
        one = getattr(diffusers, name)
        model = inspect.isclass(one) and issubclass(one, diffusers.ModelMixin)
        if model and one.__module__.startswith(PACKAGES):
            found[name] = one
    return found


def test_every_entry_is_a_class_and_is_tried() -> None:
    assert {tiny.of or name for name, tiny in TINY.items()} == set(FAMILIES)
    assert set(FAMILIES) <= set(exported())


@pytest.mark.parametrize("name", sorted(set(exported()) - set(FAMILIES)))
def test_other_classes_raise(name: str) -> None:
    # Without parameters: what is known of a class is all that matters.
    net = exported()[name].__new__(exported()[name])
    torch.nn.Module.__init__(net)
    with pytest.raises(ValueError, match="isn't known here.*regaze verify"):
        regaze.attach(net, PAG())


def test_tokens_of_the_models_own_are_no_words() -> None:
    name = "AuraFlowTransformer2DModel"
    layout = read_layout(built(name), TINY[name].call(1))
    changed = changed_rows(built(name), *with_other(name, TINY[name].text, 1))
    (_, by_text), *_ = changed["joint_transformer_blocks.0.attn"]
    assert layout.n_words == TEXT == int(by_text.sum())
    assert layout.text("text-image", len(by_text)).start == int(by_text.nonzero()[0])
