"""Tokenizer, processor and untrained model of the sandbox, in transformers' own classes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from regaze.evals.sandbox.drawing import SIZE
from regaze.evals.sandbox.text import VOCABULARY

PATCH = 8
"""Side of a patch, in pixels: one image token each."""
VISION_WIDTH = 128
IMAGE_TOKENS = (SIZE // PATCH) ** 2
PIXEL_MEAN = 0.5
PIXEL_STD = 0.25

# The image comes first whatever the order of the message's parts, as in LLaVA-1.5.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% else %}ASSISTANT: "
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer over ``VOCABULARY``, padding on the left."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    words.decoder = decoders.WordPiece(cleanup=True)  # only for its "no blank before a comma"
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def build_processor() -> LlavaProcessor:
    r"""Processor with the chat template ``USER: <image>\n{text} ASSISTANT:``."""
    side = {"height": SIZE, "width": SIZE}
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size=side,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class token, which the strategy drops: without it the placeholder count is off by one.
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model of 1.9 million parameters: CLIP vision tower, MLP projector, Llama."""
    torch.manual_seed(seed)
    pad, bos, eos, image = map(VOCABULARY.index, ("<pad>", "<s>", "</s>", "<image>"))
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)
    return model
