"""Two text encoders, each of which may read a prompt of its own into the same columns (SDXL)."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny_painter
import torch
from diffusers import StableDiffusionXLPipeline
from tiny_pipelines import COLUMNS, HEIGHT, POOLED, WIDTH, noise, quiet, sdxl_parts
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import regaze

PROMPT, OTHER = "a red circle and a blue square", "a green circle and a red square"


@functools.cache
def pipeline() -> Any:
    tokenizer = tiny_painter.shared().pipeline.tokenizer
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH // 2, intermediate_size=16,
        num_attention_heads=2, num_hidden_layers=2, projection_dim=POOLED,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    readers = {
        "tokenizer": tokenizer, "tokenizer_2": tokenizer,
        "text_encoder": CLIPTextModel(config).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(config).eval(),
    }  # fmt: skip
    return quiet(StableDiffusionXLPipeline(**sdxl_parts() | readers | {"vae": None}))


def paint(*specs: Any, **more: Any) -> Tensor:
    call = {
        "prompt": PROMPT, "latents": noise(1, 4, HEIGHT, COLUMNS), "height": 8 * HEIGHT,
        "width": 8 * COLUMNS, "num_inference_steps": 2, "guidance_scale": 1.0,
        "output_type": "latent", **more,
    }  # fmt: skip
    pipe = pipeline()
    with regaze.attach(pipe, *specs):
        latents = pipe(**call)[0]
    assert isinstance(latents, Tensor)
    return latents


def test_words_of_one_prompt_lie_in_the_columns_of_the_other() -> None:
    said = "prompt_2 is another prompt, whose words lie in the same columns"
    for spec in (
        regaze.Reweight({"red": 2.0}),
        regaze.AttendAndExcite(tokens=["red circle"], layers=("down_blocks.0",)),
        regaze.AttendAndExcite(tokens=[2], cut="eos", layers=("down_blocks.0",)),
        regaze.StructuredDiffusion(phrases=["a red circle"]),
    ):
        with pytest.raises(ValueError, match=said):
            paint(spec, prompt_2=OTHER)
    word, column = regaze.Reweight({"red": 2.0}), regaze.Reweight({2: 2.0})
    assert torch.equal(paint(word, prompt_2=[PROMPT]), paint(word))
    assert torch.equal(paint(column), paint(word))
    assert not torch.equal(paint(column, prompt_2=OTHER), paint(prompt_2=OTHER))


def test_each_encoder_reads_its_own_negative_prompt() -> None:
    pipe = pipeline()
    text, _, pooled, _ = pipe.encode_prompt(
        "a blue circle", prompt_2="a red square", do_classifier_free_guidance=False
    )
    own = regaze.NAG(embeddings={"text": text, "pooled": pooled})
    said = {"negative_prompt": "a blue circle", "negative_prompt_2": "a red square"}
    got = paint(regaze.NAG(), **said)
    assert torch.equal(got, paint(own, **said))
    assert not torch.equal(got, paint(regaze.NAG(), negative_prompt="a blue circle"))
    # What nag itself is given is for both.
    alike = paint(regaze.NAG(negative="a blue circle"), **said)
    assert torch.equal(alike, paint(regaze.NAG(), negative_prompt="a blue circle"))
