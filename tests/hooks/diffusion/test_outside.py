"""Loops of one's own, and bare denoisers: whose rows are whose is shown, said or refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from own_loops import PAG, ROWS, TEXTS, guided, loop, predict
from scenes import differ
from tiny_pipelines import FAMILIES, ddim, tiny
from torch import Tensor

import regaze
from regaze.hooks.diffusion.capture import capture

SAY_WHICH = r"cond_rows=slice\(2, 4\)\) for the last, .* or slice\(0, 2\) for the first"
ONE_STEP = (
    r"ended after one guided step, whose last half .*cond_rows=slice\(2, 4\)\), or .*\(0, 2\)"
)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
@pytest.mark.parametrize("scale", [1.5, 12.0])
def test_a_loop_of_ones_own_shows_which_half_is_conditional(scheduler: Any, scale: float) -> None:
    """By the latents that it makes of both, which lie nearer to the conditional one."""
    pipe, sampler = tiny("sd"), scheduler.from_config(ddim().config)
    settings: dict[str, Any] = {"sampler": sampler, "scale": scale}

    def run() -> Tensor:
        return loop(pipe.unet, **settings)

    with regaze.attach(pipe, PAG) as attached:
        got = run()
    assert "last half conditional, as in StableDiffusionPipeline" in str(attached.report())
    assert torch.equal(got, guided(pipe.unet, run, cond_rows=slice(2, 4)))
    assert not torch.equal(got, run())

    def other_way_round() -> Tensor:
        return loop(pipe.unet, torch.cat(TEXTS.chunk(2)[::-1]), cond_first=True, **settings)

    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match=SAY_WHICH):
        other_way_round()
    got = guided(pipe, other_way_round, cond_rows=slice(0, 2))
    assert differ(got, guided(pipe.unet, run, cond_rows=slice(2, 4))) < 1e-4


def test_a_loop_that_does_not_show_which_half_is_conditional_raises() -> None:
    pipe = tiny("sd")
    with regaze.attach(pipe, PAG):
        loop(pipe.unet)
        loop(pipe.unet)  # The same prompts once more.
        with pytest.raises(ValueError, match=SAY_WHICH):
            loop(pipe.unet, 2 * TEXTS, scale=0.5)  # Both count alike.
        predict(pipe.unet, torch.cat([ROWS] * 2), 3 * TEXTS)  # A single step shows nothing.
        with pytest.raises(ValueError, match=SAY_WHICH):
            predict(pipe.unet, torch.cat([ROWS] * 2), 4 * TEXTS)


def test_a_bare_denoiser_with_two_halves_raises() -> None:
    unet = tiny("sd").unet
    with (
        regaze.attach(unet, PAG),
        pytest.raises(ValueError, match=r"equal latents in rows with.*cond_rows=slice\(None\)"),
    ):
        loop(unet)
    assert not torch.equal(guided(unet, lambda: loop(unet), cond_rows=slice(None)), loop(unet))
    # The same text twice is no guidance.
    same = torch.cat([TEXTS[:2]] * 2)
    guided(unet, lambda: loop(unet, same))


def test_a_single_step_that_nothing_confirmed_raises_when_what_acted_comes_off() -> None:
    pipe = tiny("sd")
    doubled = torch.cat([ROWS] * 2)
    attached = regaze.attach(pipe, PAG)
    got = predict(pipe.unet, doubled, TEXTS)
    assert "ended after one guided step" in str(attached.report())
    with pytest.raises(ValueError, match=ONE_STEP):
        attached.detach()
    assert "ended after one guided step" in str(attached.report())  # And it is off.
    assert not torch.equal(predict(pipe.unet, doubled, TEXTS), got)
    with regaze.attach(pipe, PAG, cond_rows=slice(2, 4)) as attached:
        assert torch.equal(predict(pipe.unet, doubled, TEXTS), got)
    assert "one guided step" not in str(attached.report())
    with pytest.raises(ValueError, match=ONE_STEP), capture(pipe, ("mid",)):
        predict(pipe.unet, doubled, TEXTS)


def test_a_single_step_is_a_doubt_of_what_acted_in_it_alone() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    doubled, later = torch.cat([ROWS] * 2), regaze.PAG(scale=2.0)
    with regaze.attach(pipe, PAG):
        loop(pipe.unet)
        with pytest.raises(ValueError, match=ONE_STEP), regaze.attach(pipe, later):
            predict(pipe.unet, doubled, 2 * TEXTS)
            kind.run(pipe)  # That a pipeline runs in between confirms nothing.
        attached = regaze.attach(pipe, later)
        with pytest.raises(ValueError, match=SAY_WHICH):
            predict(pipe.unet, doubled, 3 * TEXTS)  # One step of other prompts.
        attached.detach()


def test_a_single_step_of_a_thread_that_ended_is_a_doubt_too() -> None:
    pipe = tiny("sd")

    def step() -> None:
        predict(pipe.unet, torch.cat([ROWS] * 2), TEXTS)

    with pytest.raises(ValueError, match=ONE_STEP), regaze.attach(pipe, PAG) as attached:
        for run in (step, lambda: loop(pipe.unet)):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        loop(pipe.unet)
        assert "one guided step" in str(attached.report())


def test_an_error_on_its_way_is_not_hidden_by_a_doubt() -> None:
    pipe = tiny("sd")
    with pytest.raises(KeyError, match="mine"), regaze.attach(pipe, PAG):
        predict(pipe.unet, torch.cat([ROWS] * 2), TEXTS)
        raise KeyError("mine")


@pytest.mark.parametrize(
    "latents",
    [ROWS.repeat_interleave(2, 0), ROWS[:1].expand(3, -1, -1, -1), ROWS[[0, 1, 0]]],
    ids=["side by side", "three branches", "one without its pair"],
)
def test_equal_latents_with_other_text_are_branches_wherever_they_lie(latents: Tensor) -> None:
    unet = tiny("sd").unet
    text = TEXTS[: len(latents)]
    with regaze.attach(unet, PAG), pytest.raises(ValueError, match="equal latents in rows with"):
        predict(unet, latents, text)
    with regaze.attach(unet, PAG, cond_rows=slice(None)) as attached:
        predict(unet, latents, text)
    assert attached.report().fired
    with regaze.attach(unet, PAG) as attached:
        predict(unet, latents, TEXTS[:1].expand(len(latents), -1, -1))
    assert attached.report().fired


def test_a_call_for_each_branch_of_a_bare_denoiser_raises() -> None:
    unet = tiny("sd").unet
    with regaze.attach(unet, PAG):
        predict(unet, ROWS, TEXTS[2:])
        with pytest.raises(ValueError, match="other text than in the call before"):
            predict(unet, ROWS, TEXTS[:2])
        predict(unet, ROWS, TEXTS[2:])
        predict(unet, ROWS + 1, TEXTS[:2])  # Another prompt's picture.
    with regaze.attach(unet, PAG, cond_rows=slice(None)) as attached:
        predict(unet, ROWS, TEXTS[2:])
        predict(unet, ROWS, TEXTS[:2])
    assert attached.report().fired


def test_a_word_for_one_prompt_does_not_hold_for_two() -> None:
    unet = tiny("sd").unet
    with regaze.attach(unet, PAG, cond_rows=slice(1, 2)):
        predict(unet, ROWS[[0, 0]], TEXTS[:2])
        with pytest.raises(ValueError, match="further branches of the same latents, which they"):
            predict(unet, ROWS[[0, 1, 0, 1]], TEXTS)
    with pytest.raises(ValueError, match="takes every 2th row"):
        regaze.attach(unet, PAG, cond_rows=slice(0, 4, 2))
