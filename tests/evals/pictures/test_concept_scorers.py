from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
)

from regaze.evals.pictures import scorers
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.pictures.scorers.concepts import objects_of
from regaze.evals.sandbox.painting.build import build_tokenizer

PROMPTS = ["a red circle and a blue cross", "a green triangle"]
PICTURES = [
    Image.fromarray(np.random.Generator(np.random.PCG64(i)).integers(0, 256, (32, 32, 3), np.uint8))
    for i in range(2)
]
SMALL = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "projection_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and a tiny BLIP with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **ends}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder / "clip")
    reader = {**text, "max_position_embeddings": 64, "sep_token_id": ends["eos_token_id"],
              "pad_token_id": 0, "encoder_hidden_size": 16}  # fmt: skip
    blip: Any = BlipForConditionalGeneration(BlipConfig(text_config=reader, vision_config=vision))
    blip.save_pretrained(folder / "blip")
    sight = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(sight, tokenizer).save_pretrained(folder / "blip")
    return folder


def score(text: str) -> list[Any]:
    scorer = scorers.parse(text)
    assert isinstance(scorer, Scorer)
    ready = scorer.load("cpu")
    assert "weights" in ready.identity
    return list(ready.score(PICTURES, PROMPTS, PICTURES))


def test_objects_are_the_parts_of_a_prompt() -> None:
    assert objects_of("a cat and a dog") == ["a cat", "a dog"]
    assert objects_of("a cat with a red hat") == ["a cat", "a red hat"]
    assert objects_of("a cat, a dog, and a sandal") == ["a cat", "a dog", "a sandal"]
    assert objects_of("a bandwith") == ["a bandwith"]


def test_similarity_is_that_of_the_prompt_and_of_the_worst_object(models: Path) -> None:
    found = score(f"objects:model={models / 'clip'}")
    clip = models / "clip"
    bare = scorers.parse(f"clip:model={clip}")
    assert isinstance(bare, Scorer)
    cosines = bare.load("cpu").score
    for prompts, key in ((PROMPTS, "full_prompt"),):
        want = [each["clip_score"] / 100 for each in cosines(PICTURES, prompts, PICTURES)]
        assert [max(0.0, each[key]) for each in found] == pytest.approx(want, abs=1e-5)
    parts = [cosines(PICTURES[:1], [part], PICTURES)[0]["clip_score"] / 100
             for part in objects_of(PROMPTS[0])]  # fmt: skip
    assert max(0.0, found[0]["minimum_object"]) == pytest.approx(min(parts), abs=1e-5)
    assert found[1]["minimum_object"] == pytest.approx(found[1]["full_prompt"], abs=1e-6)


def test_templates_are_averaged(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("{}\n", encoding="utf-8")
    plain = f"objects:model={models / 'clip'}"
    assert score(f"{plain},templates={file}") == score(plain)
    file.write_text("{}\nred {}\n", encoding="utf-8")
    assert score(f"{plain},templates={file}") != score(plain)
    file.write_text("red\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a template per line"):
        score(f"{plain},templates={file}")


def test_a_caption_is_compared_with_the_prompt(models: Path) -> None:
    clip, blip = models / "clip", models / "blip"
    found = score(f"caption:captioner={blip},model={clip}")
    assert all(-1 <= each["text_text"] <= 1 for each in found)
    assert found == score(f"caption:captioner={blip},model={clip}")


@pytest.mark.parametrize("text", ["objects:model=/nowhere", "caption:captioner=/nowhere,model="])
def test_a_model_that_is_missing_is_named(text: str, models: Path) -> None:
    if text.endswith("model="):
        text += str(models / "clip")
    with pytest.raises(ValueError, match="/nowhere.*give a folder"):
        score(text)
