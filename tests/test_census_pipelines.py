"""Guidance in pipelines of diffusers: seen in their calls, read in their code, used by ours.

The rows that hold the prompt are found by their text; nothing is taken from the table.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from literal_denoisers import Edit, alone, blurred, changed_rows, literally
from test_census_diffusers import bumped, perturbed_sites
from tiny_calls import GRID, TEXT, WIDTH, noise
from tiny_denoisers import TINY
from tiny_guided import PIPES, Stub
from torch import Tensor

import regaze
from regaze.hooks.diffusion.conventions import CONVENTIONS, Convention, convention_of
from regaze.hooks.diffusion.families import FAMILIES, family_of
from regaze.hooks.diffusion.rows import call_by_name
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import find_sites
from regaze.interventions import PAG, SEG

SCALE = 1.5
GUIDED = [pytest.param(True, id="cfg"), pytest.param(False, id="no-cfg")]


@functools.cache
def built(name: str) -> Any:
    return PIPES[name].build(name)


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("name", PIPES)
def test_the_prompt_is_where_the_convention_says(name: str, guided: bool) -> None:
    pipe, kind = built(name), PIPES[name]
    convention = convention_of(pipe)
    text = family_of(pipe.transformer).text
    # Krea 2 takes the embeddings of several layers.
    shape = (TEXT, 2, WIDTH) if name == "Krea2Pipeline" else (TEXT, WIDTH)
    prompt = noise(1, *shape, seed=1)[0]
    seen: list[list[bool]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        call = call_by_name(module, args, kwargs)
        seen.append([torch.equal(row.squeeze(0), prompt) for row in call[text]])
        assert convention.is_guided(pipe, variables_of(pipe)) == (guided and kind.how != "none")
        assert not any(call.get(argument) for argument in convention.aside)

    handle = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        kind.run(pipe, guided)
    finally:
        handle.remove()
    order = [True, False] if kind.cond_first else [False, True]
    if not guided or kind.how == "none":
        assert seen == [[True]] * 2
    elif kind.how == "batch":
        assert seen == [order] * 2
    else:
        assert seen == [[order[0]], [order[1]]] * 2
    assert convention.branches == kind.how
    assert kind.how == "none" or (convention.cond == "first") == kind.cond_first


@contextmanager
def guided_literally(pipe: Any, name: str, guided: bool, edit: Edit) -> Iterator[None]:
    """Guide a pipeline by second passes of its denoiser with literally edited maps."""
    kind, denoiser = PIPES[name], pipe.transformer
    sites = [site.name for site in perturbed_sites(kind.denoiser)]
    sample = family_of(denoiser).sample
    stock = denoiser.forward
    waiting: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        first = output[0]
        listed = isinstance(first, list)
        plain = torch.stack(first) if listed else first
        if waiting:  # The unconditional call, which follows the conditional one.
            delta = waiting.pop()
        else:
            call = call_by_name(denoiser, args, kwargs)
            del denoiser.forward
            try:
                changed = changed_rows(denoiser, call, call | {sample: bumped(call[sample])})
                images = {path: [rows for rows, _ in changed[path]] for path in sites}
                perturbed = literally(denoiser, call, images, edit)
            finally:
                denoiser.forward = forward
            delta = SCALE * (plain - perturbed)
            if guided and kind.how == "batch":
                half = delta.chunk(2)[0 if kind.cond_first else 1]
                delta = half.repeat(2, *[1] * (delta.ndim - 1))
            elif guided and kind.how == "calls":
                waiting.append(delta)
        new = list(plain + delta) if listed else plain + delta
        if isinstance(output, tuple):
            return (new, *output[1:])
        return type(output)(new, *list(output.values())[1:])

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("name", PIPES)
def test_guidance_through_a_pipeline_equals_second_passes(name: str, guided: bool) -> None:
    pipe, kind = built(name), PIPES[name]
    plain = kind.run(pipe, guided)
    layers = tuple(site.name for site in perturbed_sites(kind.denoiser))
    with regaze.attach(pipe, PAG(scale=SCALE, layers=layers)) as run:
        got = kind.run(pipe, guided)
    with guided_literally(pipe, name, guided, alone):
        want = kind.run(pipe, guided)
    assert torch.isfinite(want).all()
    assert (want - plain).abs().max() > 1e-4
    scale = max(1.0, want.abs().max().item())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * scale)
    assert run.report().fired


@pytest.mark.parametrize("guided", GUIDED)
def test_dit_has_its_classes_first_and_none_after(guided: bool) -> None:
    pipe = diffusers.DiTPipeline(
        TINY["DiTTransformer2DModel"].build("DiTTransformer2DModel"), Stub(scaling_factor=1.0),
        diffusers.DDIMScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    seen: list[list[int]] = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["class_labels"].tolist()), with_kwargs=True
    )

    def run() -> Tensor:
        made = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 2, "output_type": "pt", "generator": made}
        found = pipe([3], guidance_scale=4.0 if guided else 1.0, **settings).images
        assert isinstance(found, Tensor)
        return found

    plain = run()
    assert seen == [[3, 1000] if guided else [3]] * 2
    with regaze.attach(pipe, PAG(scale=SCALE, layers=(1,))):
        got = run()
    stock = pipe.transformer.forward
    edited = "transformer_blocks.1.attn1"

    def forward(sample: Tensor, **kwargs: Any) -> Any:
        output = stock(sample, **kwargs)
        del pipe.transformer.forward
        call = {"hidden_states": sample, **kwargs}
        perturbed = literally(pipe.transformer, call, {edited: [torch.ones(16)]}, alone)
        pipe.transformer.forward = forward
        delta = SCALE * (output[0] - perturbed)[:1]
        return type(output)(output[0] + delta)

    pipe.transformer.forward = forward
    torch.testing.assert_close(got, run(), rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 1e-3


# -- read in their code ------------------------------------------------------------------------


def exported() -> dict[str, Any]:
    """Pipelines of diffusers whose denoiser is known, by the annotation of their ``__init__``."""
    found = {}
    for name in dir(diffusers):
        one = getattr(diffusers, name)
        if not (inspect.isclass(one) and one.__module__.startswith("diffusers.pipelines.")):
            continue
        types = inspect.signature(one.__init__).parameters
        notes = [str(p.annotation) for n, p in types.items() if n in ("unet", "transformer")]
        if any(f"{family}" in note for note in notes for family in FAMILIES):
            found[name] = one
    return found


def body_of(pipeline: Any) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(pipeline.__call__)))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


def calls_of(body: ast.FunctionDef) -> int:
    """Number of calls of a denoiser in a function."""
    names = ("self.unet", "self.transformer", "transformer", "unet", "current_model")
    return sum(
        isinstance(node, ast.Call) and ast.unparse(node.func) in names for node in ast.walk(body)
    )


def halves_of(body: ast.FunctionDef) -> list[tuple[str, str]]:
    """Names that a prediction's two halves get."""
    found = []
    for node in ast.walk(body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            value, names = ast.unparse(node.value), [ast.unparse(n) for n in node.targets[0].elts]
            cut = ".chunk(2" in value or "torch.split(eps" in value
            if cut and "pred" in value + "pred" * ("eps" in value) and len(names) == 2:
                found.append((names[0], names[1]))
    return found


@pytest.mark.parametrize("name", sorted(set(CONVENTIONS) & set(exported())))
def test_the_code_runs_guidance_as_the_convention_says(name: str) -> None:
    convention, body = CONVENTIONS[name], body_of(exported()[name])
    halves = [pair for pair in halves_of(body) if any("uncond" in one for one in pair)]
    if convention.refuse or convention.guided == "apply_cfg" or convention.named:
        return
    if convention.branches == "batch":
        assert halves
        for first, last in halves:
            cond_first = "uncond" in last and "uncond" not in first
            assert cond_first == (convention.cond == "first"), (first, last)
    elif convention.branches == "calls":
        assert not halves
        assert calls_of(body) == 2
    else:
        assert not halves
        assert calls_of(body) == 1


@pytest.mark.parametrize("name", sorted(set(exported()) - set(CONVENTIONS)))
def test_other_pipelines_need_the_users_word(name: str) -> None:
    pipe = exported()[name].__new__(exported()[name])
    with pytest.raises(ValueError, match="isn't known here.*cond_rows="):
        convention_of(pipe)


def test_every_convention_is_of_a_class_of_diffusers() -> None:
    for name, convention in CONVENTIONS.items():
        assert hasattr(diffusers, name) and isinstance(convention, Convention), name


def test_steps_that_lumina_2_runs_without_guidance_count_as_unguided() -> None:
    """The weight of one branch, in a guidance that weighs a single branch differently."""
    pipe, kind = PIPES["Lumina2Pipeline"].build("Lumina2Pipeline"), PIPES["Lumina2Pipeline"]
    arguments = kind.arguments(True) | {"num_inference_steps": 4, "cfg_trunc_ratio": 0.5}
    net, stock = copy.deepcopy(pipe.transformer), pipe.transformer.forward
    path = [site.name for site in find_sites(net) if site.layer is not None][-1]
    spec = SEG(scale=3.0, sense="paper", layers=(path,), start=0.5)
    calls: list[float] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        calls.append(float(kwargs["timestep"][0]))
        if len(calls) <= 4:  # Two steps of two branches.
            return output
        kwargs.pop("return_dict", None)
        sizes = kwargs["hidden_states"].shape[-2:]
        rows = torch.arange(TEXT + sizes[0] * sizes[1] // 4) >= TEXT
        perturbed = literally(net, kwargs, {path: [rows]}, blurred(1e6, (1, *GRID)))
        return (output[0] + (spec.scale - 1) * (output[0] - perturbed),)

    pipe.transformer.forward = forward
    want = pipe(**arguments)[0]
    del pipe.transformer.forward
    assert len(calls) == 6
    plain = pipe(**arguments)[0]
    with regaze.attach(pipe, spec) as run:
        got = pipe(**arguments)[0]
    assert run.report().interventions[0].steps == 2
    assert (want - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)
