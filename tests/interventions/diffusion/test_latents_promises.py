"""Promises of methods that move latents beside those of all methods (test_promises.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from making import move
from scenes import traces
from tiny_pipelines import FAMILIES, tiny
from torch import Tensor

import regaze
from regaze.interventions import from_dict, parse

DIFFERENT = ("sd", "sd35", "flux", "wan")


@pytest.mark.parametrize("method", [regaze.AStar, regaze.AttendAndExcite])
def test_without_tokens_nothing_changes(method: Any) -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    plain = kind.run(pipe)
    with regaze.attach(pipe, move(method, "sd", tokens=())) as run:
        assert torch.equal(kind.run(pipe), plain)
    assert run.report().interventions[0].exempt


@pytest.mark.parametrize("family", DIFFERENT)
def test_nothing_stays_after_an_exception(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe), traces(pipe, denoiser)
    spec = move(regaze.AStar, family)
    for fails_at in (1, 2, 3):
        with regaze.attach(pipe, spec) as run:
            module = denoiser.get_submodule(run.specs[0].layers[0])  # type: ignore[attr-defined]
            count = [0]

            def fails(*args: Any, n: int = fails_at, c: list[int] = count, **kwargs: Any) -> None:
                c[0] += 1
                if c[0] == n:  # In a gradient pass, in the denoiser's own, in the next step's.
                    raise KeyError("out of memory, say")

            hook = module.register_forward_pre_hook(fails)
            with pytest.raises(KeyError):
                kind.run(pipe)
            hook.remove()
        assert traces(pipe, denoiser) == before
    with regaze.attach(pipe, spec):
        step = pipe.scheduler.step
        pipe.scheduler.step = _failing(step)
        with pytest.raises(KeyError):
            kind.run(pipe)
        del pipe.scheduler.step
        again = kind.run(pipe)
    assert traces(pipe, denoiser) == before
    assert torch.equal(kind.run(pipe), plain)
    with regaze.attach(pipe, spec):
        assert torch.equal(kind.run(pipe), again)


def _failing(step: Any) -> Any:
    def fails(model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> Any:
        raise KeyError("out of memory, say")

    return fails


def test_a_run_that_ends_before_the_schedulers_step_leaves_it_alone() -> None:
    """A copy of the scheduler would step the original otherwise."""
    pipe, kind = tiny("sd"), FAMILIES["sd"]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with regaze.attach(pipe, move(regaze.AStar, "sd")):
        handle = pipe.unet.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            kind.run(pipe)
        handle.remove()
        assert "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize("family", DIFFERENT)
def test_each_sample_of_a_batch_is_refined_until_its_own_end(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    more = {"refine": "0:0.9+0.34:0.9", "refinements": 3}
    spec = move(regaze.AttendAndExcite, family, step_size=3.0, **more)
    with regaze.attach(pipe, spec):
        batch, single = kind.run(pipe, 2), kind.run(pipe, 1)
    assert (batch[:1] - single).abs().max() < 1e-4 * batch.abs().max()


def test_every_prompt_has_its_tokens_and_every_image_its_prompt() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call, four = kind.call(2, True), kind.call(4, True)
    with regaze.attach(pipe, move(regaze.AStar, "sd", tokens=[[1, 3], [2, 3]])):
        both = pipe(**{**call, "latents": four["latents"]}, num_images_per_prompt=2)[0]
    one = {k: v[1:] if isinstance(v, Tensor) else v for k, v in call.items()}
    with regaze.attach(pipe, move(regaze.AStar, "sd", tokens=[2, 3])):
        second = pipe(**{**one, "latents": four["latents"][3:]})[0]
    assert (both[3:] - second).abs().max() < 1e-4 * both.abs().max()
    with (
        regaze.attach(pipe, move(regaze.AStar, "sd", tokens=[[1], [2], [3]])),
        pytest.raises(ValueError, match="tokens are of 3 prompts, but the pipeline makes 2"),
    ):
        kind.run(pipe)


def test_guidance_sees_the_moved_latents_and_forks_as_ever() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    pag, star = regaze.PAG(layers=("up_blocks.1",)), move(regaze.AStar, "sd")
    outputs = []
    for specs, settings in (((pag, star), {}), ((star, pag), {}), ((star, pag), {"fork": False})):
        with regaze.attach(pipe, *specs, **settings) as run:  # type: ignore[arg-type]
            outputs.append(kind.run(pipe))
        assert run.report().fired
    assert torch.equal(outputs[0], outputs[1])
    assert (outputs[0] - outputs[2]).abs().max() < 1e-5 * outputs[0].abs().max()


def test_two_updates_act_one_after_the_other_and_come_off_in_any_order() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    before, plain = traces(pipe, pipe.unet), kind.run(pipe)
    star, excite = move(regaze.AStar, "sd"), move(regaze.AttendAndExcite, "sd", refine="")
    with regaze.attach(pipe, excite):
        alone = kind.run(pipe)
    first, second = regaze.attach(pipe, star), regaze.attach(pipe, excite)
    assert not torch.equal(kind.run(pipe), alone)
    first.detach()
    assert torch.equal(kind.run(pipe), alone)
    second.detach()
    assert traces(pipe, pipe.unet) == before
    assert torch.equal(kind.run(pipe), plain)


def test_the_users_latents_are_not_written_to() -> None:
    pipe, kind = tiny("flux"), FAMILIES["flux"]  # It samples from the very tensor that it is given.
    call = kind.call(2, False)
    given = call["latents"].clone()
    with regaze.attach(pipe, move(regaze.AStar, "flux")):
        pipe(**call)
    assert torch.equal(call["latents"], given)


# -- specs and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: regaze.AStar(tokens=[-1]), "tokens holds -1"),
        (lambda: regaze.AStar(tokens=[1], layers=(1.5,)), "layers holds"),  # type: ignore[arg-type]
        (lambda: regaze.AStar(tokens=[[1], [[]]]), "tokens holds"),
        (lambda: regaze.AStar(tokens=[1.5]), "tokens holds 1.5"),
        (lambda: regaze.AStar(tokens={"a": 1}), "tokens must be a list"),
        (lambda: regaze.AStar(tokens=[1], threshold=2), "threshold must be"),
        (lambda: regaze.AStar(tokens=[1], threshold=-1e-9), "threshold must be"),
        (lambda: regaze.AStar(tokens=[1], segregation=-1e-9), "segregation must be"),
        (lambda: regaze.AStar(tokens=[1], retention=-1e-9), "retention must be"),
        (lambda: regaze.AStar(tokens=[1], step_size=float("-inf")), "step_size must be"),
        (lambda: regaze.AStar(tokens=[1], maps="other"), "did you mean others"),
        (lambda: regaze.AStar(tokens=[1], masks="behind"), "before"),
        (lambda: regaze.AStar(tokens=[1], layout=[[1, 0]]), "a mask per concept"),
        (lambda: regaze.AStar(tokens=[1], start=0.5, stop=0.5), "never act"),
        (lambda: regaze.AStar(tokens=[1], step_size=float("nan")), "step_size must be"),
        (lambda: regaze.AttendAndExcite(tokens=[1], refine="0.2"), "refine must look like"),
        (lambda: regaze.AttendAndExcite(tokens=[1], refine={2: 0.5}), "a share in refine"),
        (lambda: regaze.AttendAndExcite(tokens=[1], cut="end"), "cut"),
    ],
)
def test_wrong_fields_raise(make: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make()


def test_the_ends_of_a_fields_domain_belong_to_it() -> None:
    spec = regaze.AStar(tokens=[1], segregation=0, retention=0, threshold=0)
    assert (spec.segregation, spec.retention, spec.threshold) == (0, 0, 0)
    assert regaze.AStar(tokens=[1], threshold=1).threshold == 1


def test_specs_survive_json_and_their_own_labels() -> None:
    specs = [
        regaze.AStar(tokens="auto", threshold="otsu"), regaze.AStar(tokens=["red cat", 3]),
        regaze.AStar(tokens=[["cat", 3], [[1, 2]]], layout=[[[1, 0]], [[0, 1]]]),
        regaze.AttendAndExcite(tokens="cat", refine={0: 0.3}), regaze.AttendAndExcite(tokens=4),
    ]  # fmt: skip
    for spec in specs:
        assert from_dict(spec.to_dict()) == spec
    assert parse(specs[0].label) == specs[0]
    assert parse("a_star:tokens=[red cat,3]") == specs[1]
    nested = parse("a_star:tokens=[[cat,3],[[1,2]]],layout=[[[1,0]],[[0,1]]],step_size=20")
    assert nested == specs[2]
    assert parse(specs[3].label) == specs[3]


@pytest.mark.parametrize(
    ("family", "spec", "hint"),
    [
        ("sd", {"layers": ("L0",)}, "sees no text"),
        ("sd", {"layers": ("up_blocks.0",)}, "matches no cross- attention"),
        ("sd", {"layers": ("down_blocks.0", "mid")}, "one resolution"),
        ("sd3", {"layers": (9,)}, "there is no layer 9"),
    ],
)
def test_layers_that_will_not_do_raise(family: str, spec: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        regaze.attach(tiny(family), move(regaze.AStar, family, **spec))


@pytest.mark.parametrize(
    ("family", "spec", "hint"),
    [
        ("sd", {"tokens": ["cat"]}, "was given embeddings.*column numbers"),
        ("sd", {"tokens": "auto"}, "was given embeddings"),
        ("sd", {"tokens": [4]}, r"column 4 isn't one of the prompt's own \(1 to 3\)"),
        ("flux", {"cut": None}, 'give cut="last"'),
        ("sd", {"layout": [[[1]]]}, "1 masks for 2 concepts"),
    ],
)
def test_tokens_that_will_not_do_raise(family: str, spec: dict[str, Any], hint: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    with (
        regaze.attach(pipe, move(regaze.AStar, family, **spec)),
        pytest.raises(ValueError, match=hint),
    ):
        kind.run(pipe)


def test_a_bare_denoiser_has_no_latents() -> None:
    with pytest.raises(ValueError, match="attach to the pipeline"):
        regaze.attach(tiny("sd").unet, move(regaze.AStar, "sd"))
