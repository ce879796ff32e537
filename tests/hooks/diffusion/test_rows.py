"""Cutting rows out of a call, and telling the time."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from regaze.hooks.diffusion.containers import copy_containers
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.rows import call_of_rows, take_rows
from regaze.hooks.diffusion.running import progress_of, running, timestep_of

ROWS = slice(2, 4)


def test_rows_are_cut_from_what_runs_over_the_batch() -> None:
    batch, scalar, table = torch.arange(8.0).reshape(4, 2), torch.tensor(3), torch.zeros(7, 2)
    call = {
        "sample": batch, "timestep": scalar, "added_cond_kwargs": {"image_embeds": [batch]},
        "down_block_additional_residuals": (batch, batch.repeat_interleave(3, 0)), "flag": True,
        "img_ids": batch, "other": table,
    }  # fmt: skip
    unet, flux = FAMILIES["UNet2DConditionModel"], FAMILIES["FluxTransformer2DModel"]
    cut = call_of_rows(call, ROWS, 4, unet)
    assert torch.equal(cut["sample"], batch[2:])
    assert cut["timestep"] is scalar
    assert torch.equal(cut["added_cond_kwargs"]["image_embeds"][0], batch[2:])
    frames = cut["down_block_additional_residuals"][1]
    assert torch.equal(frames, batch[2:].repeat_interleave(3, 0))
    assert cut["flag"] is True
    assert call_of_rows(call, ROWS, 4, flux)["img_ids"] is batch  # Tokens, however many.
    assert cut["other"] is table


def test_all_rows_are_the_call_itself() -> None:
    batch = torch.zeros(4, 2)
    assert take_rows(batch, slice(0, 4), 4) is batch


def test_containers_are_copied_and_tensors_are_not() -> None:
    tensor = torch.zeros(2)
    before = {"a": [tensor], "b": (tensor,)}
    after = copy_containers(before)
    after["a"].pop()
    assert before["a"][0] is tensor
    assert after["b"] is before["b"]


class _Loop(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that does nothing but count."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = nn.Linear(1, 1)

    def __call__(self, timesteps: torch.Tensor) -> list[tuple[float, float]]:
        told = []
        for i, t in enumerate(timesteps):  # noqa: B007 (read by its name)
            found = running(self.unet)
            told.append((timestep_of(found, {"timestep": t / 1000}), progress_of(found)))
        return told


def test_the_time_is_the_pipelines_own() -> None:
    # A flow schedule holds 1000 and 1, and its denoisers are given 1 and 0.001 for them.
    timesteps = torch.tensor([1000.0, 500.0, 500.0, 1.0])
    told = _Loop()(timesteps)
    assert told == [(1000.0, 0.0), (500.0, 0.25), (500.0, 0.5), (1.0, 0.75)]


def test_outside_a_pipeline_there_are_no_steps() -> None:
    assert running(_Loop().unet) is None
    assert timestep_of(None, {"timestep": torch.tensor([7])}) == 7
    with pytest.raises(ValueError, match="only a running pipeline knows"):
        progress_of(None)
