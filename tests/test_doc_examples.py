"""Examples in the documentation run as they stand, on the built-in models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from test_docs import ROOT, code

from regaze.evals.asking.models import Loaded, load
from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.scenes import scene
from regaze.hooks import Branch, Edit

PAGES = (
    "README.md",
    "docs/index.md",
    "docs/engine.md",
    "docs/play.md",
    "docs/verify.md",
    "docs/diffusion.md",
    "docs/pictures.md",
    "evals/sandbox/README.md",
)
"""docs/own-method.md and docs/own-benchmark.md have tests of their own."""

CANNOT: dict[str, str] = {
    "RadialAttention()": "takes a video model",
    "estimate(normals)": "takes OpenCV and normal maps",
    "PrimeComposer(": "takes two pictures of the reader's",
    "ConsistEdit(": "is for pictures of 1024 pixels",
    "SoftPAG.from_file": "reads what a search of heads wrote",
}
"""Contents of examples that can't run here, and why."""


def examples() -> Iterator[Any]:
    for page in PAGES:
        for number, block in enumerate(code(ROOT / page, "python")):
            name = f"{Path(page).stem}-{number}"
            reason = next((why for said, why in CANNOT.items() if said in block), None)
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            yield pytest.param(page, number, id=name, marks=marks)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("sandbox")


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipeline = DiffusionPipeline.from_pretrained(painter_path("painter-mmdit"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def names(loaded: Loaded, pipe: Any, quick: None) -> dict[str, Any]:
    """Names that examples take for granted: a model, its processor and inputs, a pipeline."""
    inputs = loaded.processor(
        images=scene("test", 0).image,
        text="USER: <image>\nDescribe the image. ASSISTANT:",
        return_tensors="pt",
    )
    cut = 70  # Behind the picture.
    first = {key: value[:, :cut] for key, value in inputs.items() if key != "pixel_values"}
    second = {"input_ids": inputs["input_ids"][:, cut:]}
    return {
        "torch": torch,
        "Edit": Edit,
        "Branch": Branch,
        "without_images": lambda inputs: inputs,
        "model": copy.deepcopy(loaded.model),
        "processor": loaded.processor,
        "inputs": inputs,
        "first_part": {**first, "pixel_values": inputs["pixel_values"]},
        "second_part": {**second, "attention_mask": inputs["attention_mask"]},
        "pipe": pipe,
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sampling steps at most, whatever an example or the pipeline asks for."""
    for scheduler in (FlowMatchEulerDiscreteScheduler, DDIMScheduler):
        stock = scheduler.set_timesteps

        def few(self: Any, steps: int, *args: Any, stock: Any = stock, **kwargs: Any) -> None:
            stock(self, min(steps, 4), *args, **kwargs)

        monkeypatch.setattr(scheduler, "set_timesteps", few)


def run(page: str, number: int, names: dict[str, Any]) -> None:
    block = code(ROOT / page, "python")[number]
    exec(compile(f"import regaze\n{block}", page, "exec", dont_inherit=True), names)


@pytest.mark.parametrize(("page", "number"), examples())
def test_the_example_runs(
    page: str, number: int, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, number, names)
