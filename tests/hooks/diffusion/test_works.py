"""Works in general: branches with other inputs, latents that move, kernels that are replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, quiet, tiny
from torch import Tensor, nn

import regaze
from regaze.hooks.diffusion import (
    Attend,
    Branch,
    Call,
    Guidance,
    Host,
    LatentEdit,
    Pass,
    Run,
    Work,
)
from regaze.hooks.diffusion.perturb import as_query_heads


@dataclass(frozen=True)
class Mine:
    """A method that makes its work by a function of the host."""

    make: Callable[[Host], Work]
    label: str = "mine"
    acts_on: str = "diffusers pipelines"

    def resolve(self, host: Host, /) -> Mine:
        return self

    def bind(self, host: Host, /) -> Work:
        return self.make(host)


def alone(call: Call) -> Tensor:
    return as_query_heads(call.value, call.query.shape[1])


def sites_of(host: Host, *names: str) -> tuple[Any, ...]:
    return tuple(site for site in host.layers if any(name in site.name for name in names))


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_a_branch_in_general_is_what_guidance_is_an_instance_of(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]

    def make(host: Host) -> Work:
        where = tuple(site for site in host.sites if site.name in names)
        return Branch(
            works=(Attend(where, edit=alone),),
            combine=lambda main, branch, pass_: main + 3.0 * (main - branch),
        )

    with regaze.attach(pipe, regaze.PAG(layers=kind.perturb)) as run:
        want, names = kind.run(pipe), run.specs[0].layers  # type: ignore[attr-defined]
    with regaze.attach(pipe, Mine(make)) as run:
        got = kind.run(pipe)
    assert torch.equal(got, want)
    assert run.report().fired
    assert "forks" in run.report().interventions[0].note


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_branch_with_inputs_of_its_own_runs_whole(family: str) -> None:
    """Guidance away from the same prompt at other latents, against a second call by hand."""
    pipe, kind = quiet(FAMILIES[family].build()), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)

    def noisier(call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
        name = pass_.family.sample
        return {**call, name: call[name] * 1.5}

    def make(host: Host) -> Work:
        return Branch(inputs=noisier, combine=lambda main, other, _: main + 2.0 * (main - other))

    plain = kind.run(pipe)
    with regaze.attach(pipe, Mine(make)) as run:
        got = kind.run(pipe)
    assert "its inputs are its own" in run.report().interventions[0].note
    stock = denoiser.forward
    waiting: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        if waiting:
            return (output[0] + waiting.pop(),)
        if args:
            other = stock(args[0] * 1.5, *args[1:], **kwargs)[0]
        else:
            other = stock(**{**kwargs, "hidden_states": kwargs["hidden_states"] * 1.5})[0]
        delta = 2.0 * (output[0] - other)
        if kind.halves:
            delta = delta.chunk(2)[1].repeat(2, 1, 1, 1)
        else:
            waiting.append(delta)
        return (output[0] + delta,)

    denoiser.forward = forward
    want = kind.run(pipe)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (got - plain).abs().max() > 1e-3 * plain.abs().max()


def test_latents_move_as_a_method_says_and_the_scheduler_takes_them() -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    seen: list[int] = []

    class Scaled(LatentEdit):
        def move(self, latents: Tensor, pass_: Pass) -> Tensor:
            assert pass_.latents is not None
            seen.append(pass_.latents.index)
            return latents * 1.1

    with regaze.attach(pipe, Mine(lambda host: Scaled(tuple(host.layers[:1])))):
        got = kind.run(pipe)
    assert seen == [0, 1, 2]
    # By hand: each step's latents, before the denoiser's call.
    unet, scheduler = pipe.unet, pipe.scheduler
    call = kind.call(2, True)
    text = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])
    z = call["latents"]
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = z * 1.1
            u, c = unet(torch.cat([z] * 2), t, encoder_hidden_states=text)[0].chunk(2)
            z = scheduler.step(u + 5 * (c - u), t, z)[0]
    torch.testing.assert_close(got, z)


def test_a_kernel_of_ones_own_is_counted_and_never_measured() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]

    class Slow(Attend):
        measured = False

    def own(call: Call) -> Tensor:
        assert "output" not in vars(call)
        weights = (call.query @ call.key.mT * call.scale).softmax(-1)
        return weights @ call.value

    plain = kind.run(pipe)
    with regaze.attach(pipe, Mine(lambda host: Slow(sites_of(host, "mid"), edit=own))) as run:
        got = kind.run(pipe)
    assert (got - plain).abs().max() < 1e-5 * plain.abs().max()
    (report,) = run.report().interventions
    assert [(x.calls, x.effect, x.measured) for x in report.layers] == [(3, 0, False)]
    assert report.fired


def test_a_call_knows_its_pass_its_module_and_whose_rows_are_whose() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    seen: list[Any] = []

    def note(call: Call) -> Tensor:
        assert call.pass_ is not None
        seen.append((call.samples(), call.pass_.progress, call.module, call.pass_.pipeline))
        return call.output

    call = kind.call(2, True)
    call["latents"] = kind.call(4, True)["latents"]
    with regaze.attach(pipe, Mine(lambda host: Attend(sites_of(host, "mid"), edit=note))):
        pipe(**call, num_images_per_prompt=2)
    module = pipe.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    assert seen == [((2, 2, 2, 1), i / 3, module, pipe) for i in range(3)]


def test_works_begin_once_a_run_and_see_every_output() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    log: list[Any] = []

    class Watching(Work):
        def begin(self, run: Run) -> Work:
            log.append(("begin", run.samples, run.steps))
            return self

        def before(self, pass_: Pass) -> None:
            log.append("before")

        def after(self, pass_: Pass, output: Any) -> Any:
            log.append("after")
            return output

    with regaze.attach(pipe, Mine(lambda host: Watching(tuple(host.layers[:1])))):
        kind.run(pipe)
        kind.run(pipe, batch=1)
    step = ["before", "after"] * 3
    assert log == [("begin", 2, 3), *step, ("begin", 1, 3), *step]


def test_a_guidance_of_weight_zero_runs_nothing() -> None:
    assert Guidance.away_from((), alone, scale=3.0).idle
    assert Branch(combine=lambda main, branch, pass_: main).idle


def test_what_blocks_returned_may_be_written_to() -> None:
    """FreeU scales it in place, in the main pass and in the branch."""
    for family in ("sd", "sdxl", "animatediff"):
        pipe, kind = quiet(FAMILIES[family].build()), FAMILIES[family]
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        plain = kind.run(pipe)
        specs = [regaze.PAG(layers=("up_blocks.1",)), regaze.SEG(layers=("up_blocks.1",))]
        with regaze.attach(pipe, *specs, fork=False):
            want = kind.run(pipe)
        with regaze.attach(pipe, *specs) as run:
            got = kind.run(pipe)
        assert "forks" in run.report().interventions[0].note
        assert (got - want).abs().max() < 1e-5 * plain.abs().max()


def test_blocks_that_run_more_than_once_are_not_replayed() -> None:
    pipe, kind = quiet(FAMILIES["sd3"].build()), FAMILIES["sd3"]
    blocks = pipe.transformer.transformer_blocks
    stock = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        blocks[0](  # A warm-up of somebody's.
            hidden_states=torch.zeros(len(kwargs["hidden_states"]), 12, 32),
            encoder_hidden_states=torch.zeros(len(kwargs["hidden_states"]), 5, 32),
            temb=torch.zeros(len(kwargs["hidden_states"]), 32),
        )
        return stock(*args, **kwargs)

    with regaze.attach(pipe, regaze.PAG(layers=(2,)), fork=False):
        want = kind.run(pipe)
    pipe.transformer.forward = forward
    with regaze.attach(pipe, regaze.PAG(layers=(2,))) as run:
        got = kind.run(pipe)
    assert "more than once" in run.report().interventions[0].note
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


# -- gradients ---------------------------------------------------------------------------------


def loss_of(unet: Any, call: dict[str, Any]) -> Tensor:
    out: Tensor = unet(
        call["latents"], torch.tensor(500), encoder_hidden_states=call["prompt_embeds"]
    ).sample
    return out.square().sum()


def gradient(unet: Any, call: dict[str, Any]) -> Tensor:
    unet.zero_grad()
    loss_of(unet, call).backward()
    found: Tensor = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight.grad
    return found.clone()


def test_gradients_are_those_of_the_edited_forward() -> None:
    unet, call = quiet(FAMILIES["sd"].build()).unet, FAMILIES["sd"].call(1, False)
    weight = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight
    with regaze.attach(unet, regaze.PAG(scale=2.0)):
        got = gradient(unet, call)
        small = torch.zeros_like(weight)
        small[1, 2] = 1e-2
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                weight += sign * small
                values.append(loss_of(unet, call))
                weight -= sign * small
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(got[1, 2]), rel=0.02)
    assert not torch.allclose(got, gradient(unet, call))


def test_gradient_checkpointing_raises_at_the_pass() -> None:
    unet, call = quiet(FAMILIES["sd"].build()).unet, FAMILIES["sd"].call(1, False)
    unet.enable_gradient_checkpointing()
    with regaze.attach(unet, regaze.PAG()):
        with pytest.raises(ValueError, match=r"disable_gradient_checkpointing\(\)"):
            gradient(unet, call)
        with torch.no_grad():
            loss_of(unet, call)
    gradient(unet, call)


@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_that_others_checkpoint_raise_in_the_backward_pass(reentrant: bool) -> None:
    unet, call = quiet(FAMILIES["sd"].build()).unet, FAMILIES["sd"].call(1, False)
    block = unet.mid_block.attentions[0]
    stock = block.forward

    def checkpointed(hidden: Tensor, **kwargs: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            lambda x: stock(x, **kwargs), hidden, use_reentrant=reentrant
        )

    block.forward = checkpointed
    with (
        regaze.attach(unet, regaze.PAG(), fork=False),
        pytest.raises(RuntimeError, match="runs anew in the backward pass"),
    ):
        gradient(unet, call)


# -- wrappers ----------------------------------------------------------------------------------


def test_a_pipeline_whose_denoiser_is_split_over_devices_says_why() -> None:
    pipe = quiet(FAMILIES["sd"].build())
    unet = pipe.unet
    pipe.unet = nn.DataParallel(unet)
    with pytest.raises(TypeError, match=r"splits the batch.*pipe\.unet = pipe\.unet\.module"):
        regaze.attach(pipe, regaze.PAG())
    pipe.unet = pipe.unet.module
    with regaze.attach(pipe, regaze.PAG()) as run:
        FAMILIES["sd"].run(pipe)
    assert run.report().fired
