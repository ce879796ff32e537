"""What the package computes without a map equals literal maps and a whole second pass."""

from __future__ import annotations

from diffusion_matrix import SCALE, Method, pairs
from literal_maps import guided_literally
from tiny_pipelines import FAMILIES, tiny

import regaze
from regaze.hooks.diffusion import sites


def literal(family: str, method: Method, guided: bool) -> object:
    pipe, kind = tiny(family), FAMILIES[family]
    with regaze.attach(pipe, method.on(kind)) as run:
        spec = run.specs[0]
    places = {site.name: site for site in sites(pipe)}
    names = list(getattr(spec, "layers", None) or ())
    if not names:
        names = [site.name for site in places.values() if site.layer in (1, 2)]

    def edit(name: str, *args: object) -> object:
        return method.edit(places[name], *args)

    with guided_literally(pipe, kind, guided, names, edit, SCALE):  # type: ignore[arg-type]
        return kind.run(pipe, guided=guided)


IN_FULL = ("sd", "sd3", "sd35", "flux", "pixart", "wan", "qwen")
"""One family of each kind of denoiser and of each way to call it."""


@pairs(families=IN_FULL)
def test_guidance_equals_literal_maps(family: str, method: Method) -> None:
    check(family, method, guided=True)


@pairs("pag", "seg", families=tuple(f for f in FAMILIES if f not in IN_FULL))
def test_it_does_in_other_pipelines_of_these_denoisers(family: str, method: Method) -> None:
    check(family, method, guided=True)


@pairs("pag")
def test_it_does_without_classifier_free_guidance(family: str, method: Method) -> None:
    check(family, method, guided=False)


def check(family: str, method: Method, guided: bool) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    plain = kind.run(pipe, guided=guided)
    want = literal(family, method, guided)
    with regaze.attach(pipe, method.on(kind)) as run:
        got = kind.run(pipe, guided=guided)
    scale = plain.abs().max()
    assert ((got - want).abs().max() / scale).item() < 1e-5  # type: ignore[operator]
    assert ((got - plain).abs().max() / scale).item() > 1e-3
    assert run.report().fired
