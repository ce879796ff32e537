"""The ControlNet: its training goes on after a stop, and the shipped one steers the painter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline

from regaze.evals.clips.task import measure
from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.painting.checker import check
from regaze.evals.sandbox.painting.stages import Plan
from regaze.evals.sandbox.painting.train import load_state, save_state
from regaze.evals.sandbox.video import controlnet_path
from regaze.evals.sandbox.video.controlnet import ControlNetStage
from regaze.evals.sandbox.video.painting import paint_clip
from regaze.evals.sandbox.video.pipeline import identity, load_pipeline
from regaze.evals.sandbox.video.train import Schedule, train
from regaze.evals.sandbox.video.world import clips

SHORT = Plan(steps=3, batch=4, rate=1e-3, warmup=2)
CALL = {"num_inference_steps": 8, "guidance_scale": 1.0}


def stage_of(seed: int = 0, painter: Any = None) -> ControlNetStage:
    painter = painter or load_painter()
    return ControlNetStage(painter, SHORT, seed, scenes=8, compiled=False)


def load_painter() -> Any:
    return DiffusionPipeline.from_pretrained(painter_path("painter-unet"))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionControlNetPipeline:
    return load_pipeline()


def test_a_new_controlnet_changes_nothing() -> None:
    painter = load_painter()
    stage = stage_of(painter=painter)
    ids, time = stage._ids[:2], torch.tensor([300, 700])
    tokens = painter.text_encoder(ids).last_hidden_state
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = stage.normals[:2].float() / 255
    with torch.no_grad():
        steered = stage._forward(noisy, time, tokens, shown)
        plain = painter.unet(noisy, time, tokens).sample
    torch.testing.assert_close(steered, plain)


def test_training_moves_the_controlnet_alone_and_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path,
) -> None:
    painter = load_painter()
    straight = stage_of(painter=painter)
    frozen = {k: v.clone() for k, v in painter.unet.state_dict().items()}
    before = {k: v.clone() for k, v in straight.controlnet.state_dict().items()}
    straight.run(3)
    assert all(torch.equal(frozen[k], v) for k, v in painter.unet.state_dict().items())
    learnt = straight.controlnet.state_dict()
    assert not torch.equal(
        before["controlnet_mid_block.weight"], learnt["controlnet_mid_block.weight"]
    )

    first = stage_of()
    first.run(2)
    save_state(first, tmp_path)
    second = stage_of()
    load_state(second, tmp_path)
    second.run(3)
    for name, weight in second.controlnet.state_dict().items():
        assert torch.equal(weight, learnt[name]), name
    assert all(map(torch.equal, second.means, straight.means))
    with pytest.raises(ValueError, match="was written by another run"):
        load_state(stage_of(seed=1), tmp_path)


def test_training_exports_a_stock_folder(tmp_path: Path) -> None:
    train(tmp_path, Schedule(SHORT, scenes=8), compiled=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "train_log.jsonl",
    ]
    assert "_name_or_path" not in (tmp_path / "config.json").read_text()
    pipeline = load_pipeline(tmp_path)
    assert pipeline.controlnet.dtype == torch.float32
    assert identity(tmp_path) != identity()


def test_the_shipped_controlnet_is_small_and_stock() -> None:
    controlnet = ControlNetModel.from_pretrained(controlnet_path())
    assert all(weight.isfinite().all() for weight in controlnet.parameters())
    folder = controlnet_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    assert (folder / "README.md").exists()
    with pytest.raises(ValueError, match="nearest is 'painter-controlnet'"):
        controlnet_path("painter-control")


def test_it_puts_objects_where_the_normals_say(
    pipeline: StableDiffusionControlNetPipeline,
) -> None:
    for number, truth in enumerate(clips("validation", 2, frames=3)):
        steered = paint_clip(pipeline, truth.normals, truth.prompt, number, **CALL)
        free = paint_clip(
            pipeline, truth.normals, truth.prompt, number, **CALL, controlnet_conditioning_scale=0.0
        )
        with_it, without = measure(steered, truth), measure(free, truth)
        assert with_it["structure_rmse"] < without["structure_rmse"] / 5
        assert with_it["warping_error"] < 2
        assert all(v.counts.clean for v in check(steered, [truth.wanted] * 3))


def test_without_a_prompt_places_stay_and_colours_flicker(
    pipeline: StableDiffusionControlNetPipeline,
) -> None:
    truth = clips("validation", 2)[1]
    told = measure(paint_clip(pipeline, truth.normals, truth.prompt, 1, **CALL), truth)
    untold = measure(paint_clip(pipeline, truth.normals, "", 1, **CALL), truth)
    assert untold["structure_rmse"] < 6
    assert untold["colour_drift"] > 10 > 3 > told["colour_drift"]
    assert untold["warping_error"] > 2 * told["warping_error"]


def test_frames_start_from_the_same_noise(pipeline: StableDiffusionControlNetPipeline) -> None:
    still = clips("validation", 1)[0].normals[:1] * 2
    first, second = paint_clip(pipeline, still, "", 3, **CALL)
    other = paint_clip(pipeline, still, "", 4, **CALL)[0]
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert first.tobytes() != other.tobytes()
