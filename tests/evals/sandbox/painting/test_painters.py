"""The shipped painters: small stock folders that paint what they are asked to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import nn

from regaze.evals.sandbox.painting import PAINTERS, painter_path
from regaze.evals.sandbox.painting.checker import check, total
from regaze.evals.sandbox.painting.evaluate import paint, score, shares
from regaze.evals.sandbox.painting.scenes import wanted

STEPS = 8
CLASSES = {"painter-mmdit": StableDiffusion3Pipeline, "painter-unet": StableDiffusionPipeline}


@pytest.fixture(scope="module", params=PAINTERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def painter(name: str) -> Any:
    return DiffusionPipeline.from_pretrained(painter_path(name), local_files_only=True)


def test_it_is_a_stock_pipeline_in_float32(name: str, painter: Any) -> None:
    assert type(painter) is CLASSES[name]
    parts = [part for part in painter.components.values() if isinstance(part, nn.Module)]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


def test_it_is_small_and_tells_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    files = [path for path in painter_path(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15_000_000
    for path in files:
        if path.suffix != ".safetensors":
            assert "/tmp/" not in path.read_text()
            assert "_name_or_path" not in path.read_text()


def test_it_paints_single_objects(painter: Any) -> None:
    asked = wanted("validation", "single", 16)
    images = paint(painter, [w.prompt for w in asked], 3.0, num_inference_steps=STEPS)
    assert total(check(images, asked))["right"] >= 12


def test_the_prompt_decides(painter: Any) -> None:
    asked = wanted("validation", "single", 8)
    images = paint(painter, [""] * 8, 1.0, num_inference_steps=STEPS)
    assert total(check(images, asked))["right"] <= 3


def test_a_prompt_keeps_its_noise_whatever_is_painted_beside_it(painter: Any) -> None:
    prompts = ["a red circle", "a blue square", "a white cross"]
    whole = paint(painter, prompts, 3.0, seed=5, num_inference_steps=2)
    last = paint(painter, prompts[2:], 3.0, seed=7, num_inference_steps=2)
    difference = np.asarray(whole[2], float) - np.asarray(last[0], float)
    assert abs(difference).max() <= 2  # products of other sizes round otherwise


def test_it_paints_without_any_setting(painter: Any) -> None:
    painter.set_progress_bar_config(disable=True)
    image = painter(
        "a red circle", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert total(check([image], ["a red circle"]))["right"] == 1


def test_the_card_and_the_log_agree(name: str) -> None:
    folder = painter_path(name)
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    scores = [r for r in log if r.get("scores") == "test, composition"]
    card = (folder / "README.md").read_text()
    assert {r["guidance"] for r in scores} >= {1.0, 3.0}
    for r in scores:
        row = f"| test, composition | {r['guidance']:g} | {r['right']:.3f} "
        assert row in card


def test_scores_are_shares() -> None:
    painter: Any = DiffusionPipeline.from_pretrained(painter_path("painter-mmdit"))
    verdicts = score(painter, "validation", "relation", 4, 3.0)
    found = shares(verdicts)
    fates = ("found", "swapped", "leaked", "malformed", "wrong", "missing")
    assert sum(found[fate] for fate in fates) == pytest.approx(1.0, abs=1e-3)
    assert found["low"] < found["right"] < found["high"] or found["right"] in (0.0, 1.0)
    assert len(verdicts) == 4


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown painter 'painter-unit'.*nearest is 'painter-u"):
        painter_path("painter-unit")
