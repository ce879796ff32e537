"""The motion modules: they begin as nothing, alone learn, and go on as if never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, MotionAdapter

import regaze
from regaze.evals.pictures import pipelines
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.painting.checker import check
from regaze.evals.sandbox.painting.stages import Plan
from regaze.evals.sandbox.painting.train import load_state, save_state
from regaze.evals.sandbox.video import FRAMES
from regaze.evals.sandbox.video.motion import MotionStage
from regaze.evals.sandbox.video.pipeline import load_moving
from regaze.evals.sandbox.video.train import Schedule, train_motion

SHORT = Plan(steps=3, batch=2, rate=1e-3, warmup=2)


def stage_of(painter: Any = None) -> MotionStage:
    painter = painter or DiffusionPipeline.from_pretrained(painter_path("painter-unet"))
    return MotionStage(painter, SHORT, 0, count=4, compiled=False)


def learnt(stage: MotionStage) -> list[torch.Tensor]:
    return [p.detach().clone() for p in stage.modules.parameters()]


def test_new_motion_modules_change_nothing_and_alone_learn() -> None:
    painter = DiffusionPipeline.from_pretrained(painter_path("painter-unet"))
    stage = stage_of(painter)
    frames = stage.latents[0].float()
    tokens, time = painter.text_encoder(stage._ids[:1]).last_hidden_state, torch.tensor([500])
    with torch.no_grad():
        moving = stage.unet(
            frames.transpose(0, 1)[None], time, tokens.repeat_interleave(len(frames), 0)
        ).sample
        plain = painter.unet(frames, time, tokens.expand(len(frames), -1, -1)).sample
    torch.testing.assert_close(moving[0].transpose(0, 1), plain)
    before = learnt(stage)
    frozen = {n: p.clone() for n, p in stage.unet.named_parameters() if "motion" not in n}
    stage.run(3)
    assert not all(torch.equal(a, b) for a, b in zip(before, learnt(stage), strict=True))
    for name, parameter in stage.unet.named_parameters():
        assert "motion" in name or torch.equal(parameter, frozen[name])


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight, first, second = stage_of(), stage_of(), stage_of()
    straight.run(3)
    first.run(2)
    save_state(first, tmp_path)
    load_state(second, tmp_path)
    second.run(3)
    assert all(torch.equal(a, b) for a, b in zip(learnt(straight), learnt(second), strict=True))


def test_what_was_trained_paints_clips_in_a_stock_pipeline(tmp_path: Path) -> None:
    train_motion(tmp_path, Schedule(SHORT, 4), compiled=False)
    assert not (tmp_path / "training").exists()
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 4_000_000
    adapter = MotionAdapter.from_pretrained(tmp_path)
    assert any(bool(p.any()) for n, p in adapter.named_parameters() if "proj_out.weight" in n)
    pipe = load_moving(tmp_path)
    call = {"num_frames": 8, "num_inference_steps": 2, "guidance_scale": 1.0}
    generator = torch.Generator().manual_seed(0)
    with regaze.attach(pipe, regaze.ByTheWay(tau=3, stop=1.0)) as run:
        (frames,) = pipe("a red circle", generator=generator, **call).frames
    assert [frame.size for frame in frames] == [(32, 32)] * 8
    assert run.report().fired


def test_the_shipped_modules_load_by_name_and_tie_frames_together() -> None:
    loaded = pipelines.load("painter-motion")
    assert pipelines.is_pipeline("painter-motion") and loaded.name == "painter-motion"
    plain = pipelines.load("painter-unet").identity
    assert loaded.identity["weights_sha256"] == plain["weights_sha256"]
    assert len(loaded.identity["motion_sha256"]) == 64 and "motion_sha256" not in plain
    with pytest.raises(ValueError, match="can't be steered by a ControlNet; painter-unet can"):
        pipelines.load("painter-motion", controlnet="painter-controlnet")
    painter = Painter(loaded.pipeline, {**loaded.arguments, "num_inference_steps": 6})
    (clip,) = painter.paint([Shot("a red circle", 0)])
    assert len(clip.frames) == FRAMES
    # Without the modules, every frame would be another picture.
    first, *rest = (check([frame], ["a red circle"])[0].counts.right for frame in clip.frames)
    assert first and sum(rest) >= 5
