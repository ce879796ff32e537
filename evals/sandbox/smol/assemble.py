"""Put the parts together in transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from regaze.evals.sandbox.smol.delta import Delta, merge
from regaze.evals.sandbox.smol.language import IMAGE_TOKEN, read_language, read_tokenizer
from regaze.evals.sandbox.smol.parts import Parts
from regaze.evals.sandbox.smol.vision import STRIDE, tower

SIZE = 224
"""Side of an image, in pixels: 49 image tokens."""
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# A token of code repositories that the model never says; the image's own is never read or said.
_UNSAID = "<jupyter_start>"

# The image comes first whatever the order of the message's parts. SmolLM2's own template puts a
# system prompt in front, 27 tokens that the training does without.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def assemble(
    parts: Parts, delta: Delta | None = None, *, image_size: int = SIZE, seed: int = 0
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    """A vision-language model and its processor.

    Args:
        parts: See `regaze.evals.sandbox.smol.parts`.
        delta: The weights that taught it to see; without, its projector is random and it can't.
        image_size: Side of its images, in pixels: a multiple of 32.
        seed: Seed of the random projector.

    Returns:
        The model in float32 and evaluation mode, and its processor.

    Raises:
        ValueError: A part is damaged, or the delta is another model's.
    """
    processor = build_processor(read_tokenizer(parts.language), image_size)
    language = read_language(parts.language)
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    unsaid = tokenizer.convert_tokens_to_ids(_UNSAID)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows: Any = language.get_input_embeddings().weight
        rows[image] = rows[unsaid]
    vision = tower(load_file(parts.vision), image_size)
    text = language.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        text.pop(key, None)  # what the weights were, and where they lay
    config = FastVlmConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=image,
        image_seq_length=(image_size // STRIDE) ** 2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastVlmForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    eos = tokenizer.eos_token_id
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id
    )
    if delta is not None:
        merge(model, delta)
    return model.eval(), processor


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = SIZE) -> LlavaProcessor:
    """The processor: images stretched to a square, one token for every 32 pixels of a side."""
    side = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(
        size=side,
        do_center_crop=False,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=_CHAT_TEMPLATE,
    )
