"""Training the painters: the stages learn, go on exactly after a stop, and export stock folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from regaze.evals.sandbox.painting.autoencoder import AutoencoderStage, set_scale
from regaze.evals.sandbox.painting.build import (
    ARCHITECTURES,
    TOKENS,
    build_autoencoder,
    build_denoiser,
    build_text_encoders,
    build_tokenizer,
)
from regaze.evals.sandbox.painting.denoiser import DenoiserStage, TrainingAttention
from regaze.evals.sandbox.painting.evaluate import paint
from regaze.evals.sandbox.painting.stages import Plan, Stage
from regaze.evals.sandbox.painting.text_encoders import TextStage, features, tokenize
from regaze.evals.sandbox.painting.train import Schedule, finish, load_state, save_state, train

SHORT = Plan(steps=3, batch=4, rate=1e-3, warmup=2)
TINY = Schedule(autoencoder=SHORT, text=SHORT, denoiser=SHORT, scenes=8)


def stage_of(name: str, architecture: str = "mmdit", plan: Plan = SHORT, seed: int = 0) -> Stage:
    tokenizer = build_tokenizer()
    if name == "autoencoder":
        return AutoencoderStage(plan, seed)
    if name == "text":
        return TextStage(architecture, tokenizer, plan, seed)
    torch.manual_seed(0)
    encoders = build_text_encoders(architecture, len(tokenizer))
    vae = build_autoencoder()
    return DenoiserStage(architecture, vae, tokenizer, encoders, plan, seed, 8, compiled=False)


STAGES = [
    ("autoencoder", "mmdit"),
    *((name, architecture) for name in ("text", "denoiser") for architecture in ARCHITECTURES),
]


@pytest.mark.parametrize(("name", "architecture"), STAGES)
def test_a_stage_goes_on_as_if_it_had_not_stopped(
    name: str, architecture: str, tmp_path: Path
) -> None:
    straight = stage_of(name, architecture)
    straight.run(3)
    stopped = stage_of(name, architecture)
    stopped.run(1)
    save_state(stopped, tmp_path)
    resumed = stage_of(name, architecture)
    load_state(resumed, tmp_path)
    assert resumed.step == 1
    finish(resumed, tmp_path)
    assert resumed.done
    for a, b in zip(
        [*straight.modules.parameters(), *straight.means],
        [*resumed.modules.parameters(), *resumed.means],
        strict=True,
    ):
        assert torch.equal(a, b)
    assert not list(tmp_path.glob("*.tmp"))


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    save_state(stage_of("autoencoder"), tmp_path)
    with pytest.raises(ValueError, match="another run.*seed 0"):
        load_state(stage_of("autoencoder", seed=1), tmp_path)
    with pytest.raises(ValueError, match="another run"):
        load_state(stage_of("autoencoder", plan=Plan(4, 4, 1e-3)), tmp_path)


def test_the_rate_rises_stays_and_falls() -> None:
    plan = Plan(steps=100, batch=1, rate=1.0, warmup=10, decay=0.5)
    rates = [plan.rate_at(step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == 0.5
    assert rates[99] == pytest.approx(0.02)


def test_stages_learn() -> None:
    for name, steps in (("autoencoder", 12), ("text", 25)):
        stage = stage_of(name, plan=Plan(steps, 8, 3e-3, warmup=2))
        generator = torch.Generator().manual_seed(0)
        before = stage.loss(generator)["loss"].item()
        stage.run(steps)
        assert stage.loss(generator.manual_seed(0))["loss"].item() < 0.8 * before


def test_latents_are_scaled_to_unit_variance() -> None:
    stage = stage_of("autoencoder")
    assert isinstance(stage, AutoencoderStage)
    set_scale(stage.autoencoder, 50)
    torch.manual_seed(0)
    encoders = build_text_encoders("unet", len(build_tokenizer()))
    painter = DenoiserStage(
        "unet", stage.autoencoder, build_tokenizer(), encoders, SHORT, 0, 50, compiled=False
    )
    assert painter.latents.float().std().item() == pytest.approx(1.0, abs=0.01)


def test_means_follow_the_weights() -> None:
    stage = stage_of("denoiser", plan=Plan(4, 2, 1e-3))
    assert isinstance(stage, DenoiserStage)
    start = [p.detach().clone() for p in stage.modules.parameters()]
    stage.run(1)
    for first, now, mean in zip(start, stage.modules.parameters(), stage.means, strict=True):
        assert torch.allclose(mean, first + (now - first) * (9 / 11), atol=1e-6)
    stage.take_means()
    assert all(map(torch.equal, stage.modules.parameters(), stage.means))


def test_training_attention_is_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 10, 16, generator=torch.Generator().manual_seed(0))
    stock = F.scaled_dot_product_attention
    expected = stock(query, key, value)
    with TrainingAttention().used(None):
        given = F.scaled_dot_product_attention(query, key, value)
    assert F.scaled_dot_product_attention is stock
    assert torch.allclose(given.float(), expected, atol=0.03)


def test_one_silent_token_stands_for_many() -> None:
    torch.manual_seed(0)
    denoiser = build_denoiser("mmdit").eval()
    nn.init.normal_(denoiser.proj_out.weight)
    latents, pooled, time = torch.randn(2, 4, 16, 16), torch.randn(2, 96), torch.tensor([300.0] * 2)
    text = torch.randn(2, TOKENS, 96)

    def predict(silent: int, log_count: Tensor | None) -> Tensor:
        tokens = torch.cat([text, torch.zeros(2, silent, 96)], 1)
        with torch.no_grad(), TrainingAttention().used(log_count):
            output: Tensor = denoiser(latents, tokens, pooled, time, return_dict=False)[0]
        return output

    many = predict(256, None)
    alike = predict(1, torch.full((2,), math.log(256)))
    alone = predict(1, torch.zeros(2))
    # In bfloat16, so near; but far nearer than one token counted once.
    assert (many - alike).norm() < 0.1 * (many - alone).norm()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Painters trained for three steps; the second takes the first one's autoencoder."""
    first, second = (tmp_path_factory.mktemp(architecture) for architecture in ARCHITECTURES)
    train("mmdit", first, TINY, compiled=False)
    train("unet", second, TINY, autoencoder=first / "vae", compiled=False)
    return {"mmdit": first, "unet": second}


def test_training_leaves_a_log_and_no_state(folders: dict[str, Path]) -> None:
    for architecture, folder in folders.items():
        log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        stages = ["autoencoder", "text", "denoiser"][architecture == "unet" :]
        assert [(r["stage"], r["step"]) for r in log] == [(stage, 3) for stage in stages]
        assert not (folder / "training").exists()
    shared = [(folder / "vae/config.json").read_text() for folder in folders.values()]
    assert shared[0] == shared[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folders_load_without_arguments(architecture: str, folders: dict[str, Path]) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(folders[architecture], local_files_only=True)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    stored = [load_file(path) for path in folders[architecture].rglob("*.safetensors")]
    assert {t.dtype for tensors in stored for t in tensors.values()} == {torch.float16}

    both = paint(pipeline, ["a red circle", "a blue square"], 3.0, num_inference_steps=2)
    alone = paint(pipeline, ["a blue square"], 3.0, seed=1, num_inference_steps=2)
    difference = np.asarray(both[1], float) - np.asarray(alone[0], float)
    assert abs(difference).max() <= 2  # products of other sizes round otherwise
    assert both[0].size == (32, 32)
    assert both[0].tobytes() != both[1].tobytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pipelines_read_prompts_as_training_does(
    architecture: str, folders: dict[str, Path]
) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(folders[architecture], local_files_only=True)
    prompt = "a red circle, a blue square and a white cross"
    ids = tokenize(pipeline.tokenizer, [prompt])
    if architecture == "unet":
        tokens, _ = features(nn.ModuleList([pipeline.text_encoder]), ids)
        given = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    else:
        encoders = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
        tokens, pooled = features(encoders, ids)
        given, _, given_pooled, _ = pipeline.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        assert pooled is not None
        assert torch.equal(given_pooled, pooled)
        assert torch.equal(given[:, TOKENS:], torch.zeros(1, TOKENS, 96))
        assert len(pipeline.tokenizer_3(prompt)["input_ids"]) <= TOKENS
    assert torch.equal(given[:, :TOKENS], tokens)
