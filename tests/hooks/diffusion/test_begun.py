"""Works of a run are that run's: not the next one's, nor those of a run inside of it."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import tiny_painter
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from methods import METHODS
from scenes import stage
from tiny_pipelines import FAMILIES, ddim, noise, quiet
from torch import Tensor

import regaze
from regaze.hooks.diffusion import Host, Run, Work


def painted(pipe: Any, prompt: str, steps: int, **more: Any) -> Tensor:
    call = {"latents": noise(1, 4, 16, 16), "guidance_scale": 1.0, "output_type": "latent"} | more
    latents: Tensor = pipe(prompt, num_inference_steps=steps, **call)[0]
    return latents


@pytest.mark.parametrize("method", ["nag", "reweight"])
def test_a_run_of_more_steps_begins_anew(method: str) -> None:
    """Its first active step comes after the last one of the run before."""
    pipe: Any = tiny_painter.shared().pipeline
    more: dict[str, Any] = {"negative_prompt": "a green circle"}
    spec: Any = regaze.NAG(start=0.5, phi=6)
    if method == "reweight":
        spec, more = regaze.Reweight({"circle": 4.0}, start=0.5), {}
    with regaze.attach(pipe, spec):
        want = painted(pipe, "a red square, a circle", 6, **more)
    with regaze.attach(pipe, spec):
        painted(pipe, "a circle", 2, **{name: "a blue square" for name in more})
        got = painted(pipe, "a red square, a circle", 6, **more)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("scene", "method"), [("sd", "a_star"), ("pairs-sd3", "consistedit-words")]
)
def test_a_run_inside_of_another_is_its_own(scene: str, method: str) -> None:
    """A callback that paints a preview by a sibling leaves what the outer run remembers."""
    pipe, kind = stage(scene)
    scheduler = ddim() if scene == "sd" else FlowMatchEulerDiscreteScheduler(shift=3.0)
    more: Any = {"requires_safety_checker": False} if scene == "sd" else {}
    sibling = quiet(type(pipe)(**pipe.components | {"scheduler": scheduler}, **more))

    def preview(pipe: Any, step: int, time: Any, tensors: Any) -> dict[str, Any]:
        kind.run(sibling)
        return {}

    with regaze.attach(pipe, METHODS[method].on(scene)):
        want = kind.run(pipe)
        got = kind.run(pipe, callback_on_step_end=preview)
        inside = kind.run(sibling)
    assert torch.equal(got, want)
    assert torch.equal(inside, want)


class _Begins:
    """A method that notes when it begins, and in which steps it acts."""

    label, acts_on = "begins", "diffusers pipelines"

    def __init__(self) -> None:
        self.log: list[Any] = []

    def resolve(self, host: Host, /) -> _Begins:
        return self

    def bind(self, host: Host, /) -> Work:
        log = self.log

        class Noting(Work):
            def begin(self, run: Run) -> Work:
                log.append("begin")
                return replace(self)

            def before(self, pass_: Any) -> None:
                if pass_.rows.cond is not None:
                    log.append(pass_.running.step[0])

        return Noting(tuple(host.layers[:1]))


def test_a_run_with_two_denoisers_begins_once() -> None:
    """Wan 2.2 has one for early and one for late steps."""
    first = FAMILIES["wan"].build().transformer
    parts = {"transformer": first, "transformer_2": copy.deepcopy(first), "boundary_ratio": 0.8}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = quiet(WanPipeline(None, None, None, scheduler, **parts))
    method = _Begins()
    with regaze.attach(pipe, method):
        FAMILIES["wan"].run(pipe, num_inference_steps=4)
    assert method.log == ["begin", 0, 1, 2, 3]


def test_a_run_that_goes_through_its_steps_again_begins_again() -> None:
    """FreeInit paints a clip several times within one call."""
    pipe = quiet(FAMILIES["animatediff"].build())
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    method = _Begins()
    with regaze.attach(pipe, method):
        FAMILIES["animatediff"].run(pipe)
    assert method.log == ["begin", 0, 1, 2, "begin", 0, 1, 2]


def test_what_a_run_remembers_ends_with_it() -> None:
    pipe, kind = stage("sd")
    kept: list[weakref.ref[Any]] = []

    class Remembering(Work):
        def begin(self, run: Run) -> Work:
            own = replace(self)
            kept.append(weakref.ref(own))
            return own

        def before(self, pass_: Any) -> None:
            """Act."""

    class Method(_Begins):
        def bind(self, host: Host, /) -> Work:
            return Remembering(tuple(host.layers[:1]))

    with regaze.attach(pipe, Method()):
        kind.run(pipe)
        gc.collect()
        assert kept and all(one() is None for one in kept)
