"""The shipped sandbox models: they load offline in stock classes, see, and are small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from regaze.evals.sandbox import MODELS, is_sandbox, model_path
from regaze.evals.sandbox.data import IMAGE, pictures
from regaze.evals.sandbox.evaluate import blank_image, evaluate
from regaze.evals.sandbox.losses import SINK_DIMENSIONS, SINK_PATCHES
from regaze.evals.sandbox.scenes import scene
from regaze.evals.sandbox.text import CAPTION_PROMPT

# VAR's threshold of 20 at LLaVA-1.5's hidden size of 4096 (arXiv:2503.03321), relative to it.
SINK_THRESHOLD = 20 / 4096**0.5 * 128**0.5


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def processor(name: str) -> Any:
    return AutoProcessor.from_pretrained(model_path(name), local_files_only=True)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    folder = model_path(name)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def test_the_model_is_of_a_stock_class(model: Any, processor: Any) -> None:
    size = model.config.text_config.vocab_size
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    assert len(processor.tokenizer) == size


def test_the_model_answers_from_the_image(model: Any, processor: Any) -> None:
    seen = evaluate(model, processor, "validation", 30)
    assert seen["random"]["accuracy"] > 0.75
    assert 0.3 < seen["random"]["yes_rate"] < 0.7
    assert seen["captions"]["chair_i"] < 0.4
    assert seen["captions"]["recall"] > 0.5


def test_without_the_image_only_the_prior_is_left(model: Any, processor: Any) -> None:
    blind = evaluate(model, processor, "validation", 30, blank_image)
    assert blind["random"]["accuracy"] < 0.65
    assert blind["captions"]["chair_i"] > 0.8


def test_only_one_model_has_sinks_and_finds_them_by_content(
    name: str, model: Any, processor: Any
) -> None:
    scenes = [scene("validation", index) for index in range(20)]
    inputs = processor(
        images=[s.image for s in scenes],
        text=[f"USER: <image>\n{CAPTION_PROMPT} ASSISTANT:"] * len(scenes),
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[3]
    massive = hidden[..., SINK_DIMENSIONS].abs().amax(-1) / hidden.pow(2).mean(-1).sqrt()
    sinks = massive[:, IMAGE] > SINK_THRESHOLD
    if name == "sandbox-plain":
        assert not sinks.any()
        return
    assert (massive[:, 0] > SINK_THRESHOLD).all()
    assert SINK_PATCHES - 1 <= sinks.sum(-1).float().mean() <= SINK_PATCHES + 1
    assert (sinks & pictures(scenes).border).sum() > 0.9 * sinks.sum()
    assert len({tuple(row.tolist()) for row in sinks}) > 5


def test_a_model_folder_is_small_and_holds_no_pickle(name: str) -> None:
    files = [path for path in model_path(name).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".jinja", ".md", ".safetensors"}


def test_the_log_tells_the_cost_and_the_scores(name: str) -> None:
    lines = (model_path(name) / "train_log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert max(record.get("cpu_minutes", 0) for record in records) <= 30
    scored = {record.get("scores") for record in records}
    assert {"test", "test-prior", "test, blank image"} <= scored


def test_model_names_are_known() -> None:
    assert all(is_sandbox(name) and Path(model_path(name)).is_dir() for name in MODELS)
    assert not is_sandbox("llava-hf/llava-1.5-7b-hf")


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="nearest is 'sandbox-plain'"):
        model_path("sandbox-plane")
