"""In every denoiser class: maps of the text, and maps warped along a flow, equal explicit ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flows import edit_maps, random_flow
from literal_denoisers import Map, changed_rows, literally, maps_of, prediction
from test_census_diffusers import KNOWN, built, perturbed_sites, picture_rows, with_other
from tiny_calls import FRAMES, cells
from tiny_denoisers import TINY
from torch import Tensor

import regaze
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.kernel import Edits
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows
from regaze.hooks.diffusion.sites import TEXT, find_sites, read_layout
from regaze.hooks.diffusion.text_maps import Reader
from regaze.interventions import FlowWarp

READING = [
    name
    for name in KNOWN
    if TINY[name].words and any(s.kind in TEXT for s in find_sites(built(name)))
]
UNREADABLE = {
    "MochiTransformer3DModel": "which these are isn't known.*as Mochi does",
    "Mochi, padded": "which these are isn't known",
}
"""Classes whose samples come one by one, and the error they give."""


@pytest.mark.parametrize("name", READING)
def test_text_maps_are_the_text_columns_of_explicit_maps(name: str) -> None:
    net, tiny = built(name), TINY[name]
    layout = read_layout(net, tiny.call(2))
    site = [s for s in find_sites(net) if s.kind in TEXT and "audio" not in s.name][-1]
    reader = Reader([site], stop=False)
    call, calls = tiny.call(2), Calls()
    pass_ = Pass(net, family_of(net), call, Rows(2, slice(0, 2), None), layout, None)
    around = Edits(net, {site: [reader.read]}, layout, calls, pass_)
    try:
        if name in UNREADABLE:
            with pytest.raises(RuntimeError, match=UNREADABLE[name]), around.applied():
                net(**call)
            return
        with around.applied(), torch.no_grad():
            net(**call)
    finally:
        calls.release()
    got = reader.maps()
    by_text = changed_rows(net, *with_other(name, tiny.text))
    want = []
    for number, (one, rows) in enumerate(
        zip(maps_of(net, tiny.call(2), site.name), picture_rows(name)[site.name], strict=True)
    ):
        columns = by_text[site.name][number][1]
        if rows.any():
            want.append(one.plain[:, :, rows][..., columns].mean(1))
    # What stands beside the text (other encoders' tokens, padding) is read, too.
    found, beside = got.flatten(1, 3), got.shape[-1] - want[0].shape[-1]
    flat = torch.cat(want).reshape(2, -1, want[0].shape[-1])
    assert beside == layout.n_words - flat.shape[-1]
    assert any(
        torch.allclose(found[..., k : k + flat.shape[-1]], flat, atol=1e-6)
        for k in range(beside + 1)
    )


def one_picture(name: str) -> bool:
    """True if a layer's tokens are those of one picture, of the usual size."""
    rows = picture_rows(name)[perturbed_sites(name)[-1].name]
    frames, *grid = cells(max(int(one.sum()) for one in rows))
    return frames == 1 and grid[0] != grid[1] and len({len(one) for one in rows}) == len(rows)


@pytest.mark.parametrize("axis", ["query", "both"])
@pytest.mark.parametrize("name", [name for name in KNOWN if one_picture(name)])
def test_flow_warped_maps_equal_explicit_ones(
    name: str, axis: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net, tiny = built(name), TINY[name]
    sites = perturbed_sites(name)
    frames = 3 if "sample" not in tiny.call(1) or tiny.call(1)["sample"].ndim == 4 else FRAMES
    batch, split = (3, (1, 3, 1)) if frames == 3 else (2, (2, FRAMES, 1))
    spec = FlowWarp(
        flow=random_flow(frames), layers=tuple(s.name for s in sites), weight=0.7, axis=axis
    )

    def edit(one: Map) -> Tensor:
        at = one.image.nonzero().flatten()
        if not len(at):
            return one.plain
        image = slice(int(at[0]), int(at[-1]) + 1)
        if one.first:
            # Rows and columns of the picture alone are warped, beside what they see of the text.
            head = torch.zeros(*one.plain.shape[:2], one.first, one.plain.shape[-1])
            whole = torch.cat([head, one.plain], 2)
            image = slice(image.start + one.first, image.stop + one.first)
            done = edit_maps(whole, image, cells(len(at))[1:], spec, split)
            return done[:, :, one.first :].to(one.plain.dtype)
        done = edit_maps(one.plain, image, cells(len(at))[1:], spec, split)
        return done.to(one.plain.dtype)

    images = {site.name: picture_rows(name)[site.name] for site in sites}
    want = literally(net, tiny.call(batch), images, edit)
    with regaze.attach(net, spec, cond_rows=slice(None)) as run, torch.no_grad():
        got = prediction(net(**tiny.call(batch)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
    assert run.report().fired
