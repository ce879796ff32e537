"""Tiny random vision-language models of every supported family, with their own processors.

Built from configs in well under a second, on the CPU, without files or downloads. Weights are drawn
with unit gain instead of the default 0.02: attention is peaked and logits are far from ties, so an
edit that does something is seen.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers.models.mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

# PixtralProcessor takes one function from a module that needs torchvision; the PIL one has it too.
with mock.patch.dict(
    sys.modules,
    {"transformers.models.pixtral.image_processing_pixtral": image_processing_pil_pixtral},
):
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

SIDE = 3  # every vision tower gives SIDE x SIDE columns per square image or tile
EDGE = 8 * SIDE  # of that square, in pixels
SQUARE = {"height": EDGE, "width": EDGE}
TILINGS = [[EDGE, 2 * EDGE], [2 * EDGE, EDGE], [2 * EDGE, 2 * EDGE]]  # (height, width)
SPATIAL_MERGE = 2  # where patches are merged two by two into columns

WORDS = """a an the is are there in on of and or this that it what where which how many who one
describe image picture photo detail please answer yes no word dog cat man red blue green left right
square circle user assistant system model you helpful User Assistant USER ASSISTANT"""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MARKS = ".,:;!?'\"()[]{}<>/|_-+=*&%$#@~^`\\"

_Parts = tuple[Any, Any, tuple[str, str, str]]  # config, processor, text (before, per, after) image


def _tokenizer(
    *others: str,
    bos: str | None = "<s>",
    eos: str = "</s>",
    pad: str = "<pad>",
    padding_side: str = "left",
    **named: str,
) -> hf.PreTrainedTokenizerFast:
    """Word pieces: common words whole, all others spelled, line breaks kept as real ones do."""
    special = ["<unk>", pad, *([bos] if bos else []), eos, *named.values(), *others]
    pieces = [
        *WORDS.split(),
        *MARKS,
        "\n",
        "\n\n",
        *LETTERS,
        *(f"##{letter}" for letter in LETTERS),
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*special, *pieces]))}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n\n|\n|[A-Za-z0-9]+|\S"), behavior="removed", invert=True
    )
    backend.decoder = decoders.WordPiece()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=named,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.add_tokens(list(others), special_tokens=True)
    # Not an argument: InstructBLIP hands its tokenizer's arguments to the Q-Former's tokenizer.
    tokenizer.padding_side = padding_side
    return tokenizer


def _chatml(*others: str, **named: str) -> hf.PreTrainedTokenizerFast:
    return _tokenizer(
        "<|im_start|>", *others, bos=None, eos="<|im_end|>", pad="<|endoftext|>", **named
    )


_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def _text(tokenizer: hf.PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """Settings of a text tower: 3 layers of 4 query heads, 16 wide, over 2 key-value heads."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **changes,
    }


def _vision(patch_size: int = 8, **changes: Any) -> dict[str, Any]:
    """Settings of a vision tower; patches of 4 pixels where a later step merges them 2 x 2."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": EDGE,
        "patch_size": patch_size,
        **changes,
    }


def _llava() -> _Parts:
    tokenizer = _tokenizer(image_token="<image>")
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_text(tokenizer, num_key_value_heads=4)),  # Vicuna has no GQA
        vision_config=hf.CLIPVisionConfig(**_vision()),
        image_token_index=tokenizer.image_token_id,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=SQUARE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor, ("<s>USER: ", "<image>\n", " ASSISTANT:")


def _llava_next() -> _Parts:
    tokenizer = _tokenizer("[INST]", "[/INST]", image_token="<image>")
    config = hf.LlavaNextConfig(
        text_config=hf.MistralConfig(**_text(tokenizer, sliding_window=None)),
        vision_config=hf.CLIPVisionConfig(**_vision()),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=TILINGS,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": EDGE}, crop_size=SQUARE, image_grid_pinpoints=TILINGS
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor, ("<s>[INST] ", "<image>\n", " [/INST]")


def _llava_onevision() -> _Parts:
    tokenizer = _chatml(image_token="<image>", video_token="<video>")
    aspect_ratio = "anyres_max_2"  # so low that the columns of four tiles are pooled
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        vision_config=hf.SiglipVisionConfig(**_vision(vision_use_head=False)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=TILINGS,
        vision_aspect_ratio=aspect_ratio,
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=TILINGS),
        tokenizer,
        _video_processor(),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect_ratio,
    )
    return config, processor, (_USER, "<image>\n", _ASSISTANT)


def _qwen(
    config_class: Callable[..., Any],
    processor_class: Callable[..., Any],
    rope: Mapping[str, Any],
    **vision: Any,
) -> _Parts:
    ids = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    tokenizer = _chatml(**ids)
    config = config_class(
        text_config=_text(
            tokenizer,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope},
        ),
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": SPATIAL_MERGE,
            **vision,
        },
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    image_processor = hf.Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    processor = processor_class(image_processor, tokenizer, _video_processor())
    system = "<|im_start|>system\nyou are a helpful assistant.<|im_end|>\n"
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return config, processor, (system + _USER, image, _ASSISTANT)


def _qwen2_vl() -> _Parts:
    return _qwen(
        hf.Qwen2VLConfig,
        hf.Qwen2VLProcessor,
        {"mrope_section": [2, 3, 3]},
        embed_dim=32,
        hidden_size=64,
        mlp_ratio=2,
    )


def _qwen2_5_vl() -> _Parts:
    return _qwen(
        hf.Qwen2_5_VLConfig,
        hf.Qwen2_5_VLProcessor,
        {"mrope_section": [2, 3, 3]},
        hidden_size=32,
        intermediate_size=48,
        out_hidden_size=64,
        window_size=16,
        fullatt_block_indexes=[1],
    )


def _qwen3_vl() -> _Parts:
    return _qwen(
        hf.Qwen3VLConfig,
        hf.Qwen3VLProcessor,
        {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
        hidden_size=32,
        intermediate_size=48,
        out_hidden_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )


def _internvl() -> _Parts:
    tokenizer = _chatml(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        vision_config=hf.InternVLVisionConfig(**_vision(patch_size=4)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=SIDE**2,
        tie_word_embeddings=False,
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4),
        tokenizer,
        _video_processor(),
        image_seq_length=SIDE**2,
    )
    return config, processor, (_USER, "<IMG_CONTEXT>\n", _ASSISTANT)


def _gemma3() -> _Parts:
    tokenizer = _tokenizer(
        "<start_of_turn>",
        "<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    text = _text(
        tokenizer,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=8,  # shorter than any prompt, shorter than an image
        head_dim=16,
        query_pre_attn_scalar=16,
    )
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text),
        vision_config=hf.SiglipVisionConfig(**_vision(patch_size=4, vision_use_head=False)),
        mm_tokens_per_image=SIDE**2,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size=SQUARE), tokenizer, image_seq_length=SIDE**2
    )
    closing = "<end_of_turn>\n<start_of_turn>model\n"
    return config, processor, ("<bos><start_of_turn>user\n", "<start_of_image>", closing)


def _paligemma() -> _Parts:
    tokenizer = _tokenizer(bos="<bos>", eos="<eos>", image_token="<image>")
    image_processor: Any = hf.SiglipImageProcessorPil(size=SQUARE)
    image_processor.image_seq_length = SIDE**2
    processor = hf.PaliGemmaProcessor(image_processor, tokenizer)  # adds tokens for locations
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**_text(tokenizer, num_key_value_heads=1, head_dim=16)),
        vision_config=hf.SiglipVisionConfig(**_vision(vision_use_head=False)),
        image_token_index=tokenizer.image_token_id,
        projection_dim=64,
        hidden_size=64,
    )
    return config, processor, ("", "<image>", "")  # it also adds <bos> and a closing line break


def _idefics(
    config_class: Callable[..., Any], image_processor_class: Callable[..., Any]
) -> tuple[Any, Any, hf.PreTrainedTokenizerFast]:
    tokenizer = _chatml(
        *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    config = config_class(
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        vision_config=_vision(patch_size=3, image_size=6 * SIDE),
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    images = image_processor_class(
        size={"longest_edge": 12 * SIDE}, max_image_size={"longest_edge": 6 * SIDE}
    )
    return config, images, tokenizer


_IDEFICS = ("<|im_start|>User:", "<image>", "<end_of_utterance>\nAssistant:")


def _smolvlm() -> _Parts:
    config, images, tokenizer = _idefics(hf.SmolVLMConfig, hf.SmolVLMImageProcessorPil)
    processor = hf.SmolVLMProcessor(images, tokenizer, _video_processor(), image_seq_len=SIDE**2)
    return config, processor, _IDEFICS


def _idefics3() -> _Parts:
    config, images, tokenizer = _idefics(hf.Idefics3Config, hf.Idefics3ImageProcessorPil)
    return config, hf.Idefics3Processor(images, tokenizer, image_seq_len=SIDE**2), _IDEFICS


def _mistral3() -> _Parts:
    tokenizer = _tokenizer("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", image_token="[IMG]")
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**_text(tokenizer, sliding_window=None)),
        vision_config=hf.PixtralVisionConfig(**_vision(patch_size=4, image_size=32)),
        image_token_index=tokenizer.image_token_id,
        spatial_merge_size=SPATIAL_MERGE,
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        hf.PixtralImageProcessorPil(size={"longest_edge": 32}),
        tokenizer,
        patch_size=4,
        spatial_merge_size=SPATIAL_MERGE,
    )
    return config, processor, ("<s>[INST]", "[IMG]", "[/INST]")


def _instructblip() -> _Parts:
    tokenizer = _tokenizer()
    processor = hf.InstructBlipProcessor(
        hf.BlipImageProcessorPil(size=SQUARE),
        tokenizer,  # the processor adds <image>
        qformer_tokenizer=_tokenizer(padding_side="right"),
        num_query_tokens=5,
    )
    qformer = _vision(vocab_size=len(tokenizer), encoder_hidden_size=32)
    config = hf.InstructBlipConfig(
        text_config=hf.LlamaConfig(**_text(tokenizer, num_key_value_heads=4)),
        vision_config=hf.InstructBlipVisionConfig(**_vision()),
        qformer_config=hf.InstructBlipQFormerConfig(**qformer),
        num_query_tokens=5,
        image_token_index=tokenizer.vocab["<image>"],
    )
    return config, processor, ("<s>", "", "")  # the processor puts the image before everything


def _mllama() -> _Parts:
    tokenizer = _tokenizer(
        "<|python_tag|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        image_token="<|image|>",
    )
    text = _text(tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3])
    vision = _vision(
        num_global_layers=1,
        max_num_tiles=4,
        intermediate_layers_indices=[0],
        vision_output_dim=64,
        supported_aspect_ratios=[[w, h] for w in range(1, 5) for h in range(1, 5) if w * h < 5],
    )
    config = hf.MllamaConfig(
        text_config=MllamaTextConfig(**text),
        vision_config=MllamaVisionConfig(**vision),
        image_token_index=tokenizer.image_token_id,
    )
    images = hf.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    opening = "<|begin_of_text|>" + header.format("user")
    closing = "<|eot_id|>" + header.format("assistant")
    return config, hf.MllamaProcessor(images, tokenizer), (opening, "<|image|>", closing)


def _video_processor() -> BaseVideoProcessor:
    return BaseVideoProcessor(fps=1, num_frames=2)


_BUILDERS: dict[str, Callable[[], _Parts]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "mistral3": _mistral3,
    "instructblip": _instructblip,
    "mllama": _mllama,
}
FAMILIES = tuple(_BUILDERS)


@dataclass(frozen=True)
class Tiny:
    """A tiny model with its processor.

    Attributes:
        family: One of `FAMILIES`.
        model: The family's `PreTrainedModel` that generates, in eval mode, on the CPU.
        processor: The family's own processor class; has ``tokenizer`` and a chat template.
        image_token_id: What ``input_ids`` holds at image columns.
    """

    family: str
    model: Any
    processor: Any
    image_token_id: int

    def inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> dict[str, Any]:
        """One user turn per text, its images before it; left-padded, ready for the model."""
        rows = [list(row) for row in images] if images is not None else [[]] * len(texts)
        prompts = []
        for text, row in zip(texts, rows, strict=True):
            content = [*[{"type": "image"}] * len(row), {"type": "text", "text": text}]
            prompts.append(
                self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            )
        pictures: list[Any] | None = rows if any(rows) else None
        if pictures and self.family == "instructblip":  # one image per text, as a flat list
            pictures = [picture for (picture,) in rows]
        batch = self.processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        return dict(batch.to(self.model.dtype))

    def picture(self, seed: int, size: tuple[int, int] = (40, 28)) -> Image.Image:
        """Random noise; ``size`` is (width, height) in pixels."""
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def expected_image_columns(self, inputs: Mapping[str, Any]) -> Tensor:
        """Where ``input_ids`` is the image token, (B, T)."""
        columns: Tensor = inputs["input_ids"] == self.image_token_id
        return columns

    def grid(self, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """(rows, cols) of the image columns of a one-image prompt, None if they are no rectangle.

        Columns are counted without row-end tokens, in reading order.
        """
        if "image_grid_thw" in inputs:
            _, height, width = inputs["image_grid_thw"][0].tolist()
            return height // SPATIAL_MERGE, width // SPATIAL_MERGE
        if self.family == "mistral3":
            height, width = (inputs["image_sizes"][0] // 4).tolist()
            return height // SPATIAL_MERGE, width // SPATIAL_MERGE
        is_square = int(self.expected_image_columns(inputs).sum()) == SIDE**2
        return (SIDE, SIDE) if is_square else None


def tiny(
    family: str,
    *,
    attn_implementation: str = "sdpa",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    fresh: bool = False,
) -> Tiny:
    """A tiny model; one and the same object for the same arguments unless ``fresh``."""
    build = _build if fresh else _build_once
    return build(family, attn_implementation, seed, dtype)


def _build(family: str, attn_implementation: str, seed: int, dtype: torch.dtype) -> Tiny:
    # The video half of a processor needs torchvision, SmolVLM's num2words too; images need neither.
    with (
        mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"),
        mock.patch.object(processing_smolvlm, "num2words", str),
    ):
        config, processor, (before, per_image, after) = _BUILDERS[family]()
    processor.chat_template = (
        f"{{% for message in messages %}}{{{{ {before!r} }}}}"
        "{% for part in message.content %}"
        f"{{{{ {per_image!r} if part.type == 'image' else part.text }}}}"
        "{% endfor %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {after!r} }}}}{{% endif %}}"
    )
    model = hf.AutoModelForImageTextToText.from_config(
        config, attn_implementation=attn_implementation, dtype=dtype
    )
    _draw_weights(model, torch.Generator().manual_seed(seed))
    for module in model.modules():
        if generation := getattr(module, "generation_config", None):
            generation.eos_token_id = None  # a random model would stop anywhere
            generation.pad_token_id = processor.tokenizer.pad_token_id
    return Tiny(family, model.eval(), processor, config.image_token_id)


_build_once = functools.cache(_build)


@torch.no_grad()
def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Unit-gain weights; longer queries and keys peak attention, a longer head spreads logits."""
    for path, weight in model.named_parameters():  # tied weights come once, as embeddings
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        if "Norm" in type(module).__name__:
            if owner.endswith(("q_norm", "k_norm")):
                weight.add_(0.6)  # norms that undo the longer projections
            continue
        if isinstance(module, nn.Embedding):
            # Gemma scales its embeddings and ties its head to them: short ones, or it parrots.
            std = 0.3 / float(scale) if (scale := getattr(module, "embed_scale", None)) else 1.0
        elif weight.ndim > 1:
            gain = 1.6 if owner.endswith(("q_proj", "k_proj")) else 1.0
            gain = 3.0 if owner.endswith("lm_head") else gain
            std = gain * weight[0].numel() ** -0.5
        else:
            std = 0.1 if name == "bias" else 1.0
        weight.copy_(std * torch.randn(weight.shape, generator=generator))
