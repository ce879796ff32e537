"""The differences between families of vision-language models: one entry per ``model_type``.

Everything else is read off the model itself. A family that isn't here isn't known, and raises.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

Grid = Literal["square", "thw", "anyres", "last tile", "breaks", "unknown"]
"""The layout of image columns over the picture; `regaze.hooks.grids.patch_grid` reads it.

"square": as many rows as columns; "thw": ``image_grid_thw`` gives frames, rows and columns;
"anyres": tiles of LLaVA-NeXT, unpadded, after the whole picture; "last tile": the whole picture,
small, comes last; "breaks": a token ends each row; "unknown": columns can't be told apart.
"""

_IDS = ("image_token_id", "video_token_id")
_USUAL_IDS = (*_IDS, "image_token_index", "video_token_index", "vision_config.image_token_id")
_TILES = (
    "<global-img>",
    "<fake_token_around_image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 11) for column in range(1, 11)),
)


@dataclass(frozen=True)
class Family:
    """The facts about the models of one ``model_type``.

    Attributes:
        model_type: As in the model's config.
        title: Name that people use.
        image_ids: Fields of the config that hold ids of image or video placeholders; a dot leads
            into a part of the config.
        tower: Path from the model to its text decoder, the module with ``.layers``; by default
            what ``get_decoder`` finds.
        patches: True if an image column is a patch; False for the outputs of learned queries.
        one_stream: True if a layer's input "B T E" is the residual stream; False where several run
            side by side.
        free_heads: True if a factor on a head's output reaches the residual stream; False where
            each head's output is normalised afterwards, which takes it back.
        grid: Layout of image columns over the picture.
        per_image: Field of the config with the number of columns of each image, for families
            whose images may stand side by side with nothing between.
        inside: Tokens that processors put between the columns of one image.
        fence: The token among them that stands twice only where one image meets another.
        first_tile: The token among them that begins an image.
        packs: Inputs of the text decoder with one entry per token, besides embeddings, mask and
            positions: a run without image takes those of its own columns.
        zeros: Likewise, but zero (False) in a run without image: what vision adds to columns.
        vision: Path from the model to its vision tower, whose class
            `regaze.hooks.vision_towers.VISION` has to know.
        drops: Inputs of the text decoder that are left out while something is attached, because
            with them layers compute some of their rows only.
        refuse: Reason why no method can act on it; empty if some can.
    """

    model_type: str
    title: str
    image_ids: tuple[str, ...] = _IDS
    tower: str | None = None
    patches: bool = True
    one_stream: bool = True
    free_heads: bool = True
    grid: Grid = "unknown"
    per_image: str | None = None
    inside: tuple[str, ...] = ()
    fence: str | None = None
    first_tile: str | None = None
    packs: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    vision: str = ""
    refuse: str = ""


_IDEFICS: dict[str, Any] = {
    "vision": "model.vision_model",
    "grid": "last tile",
    "inside": _TILES,
    "fence": "<fake_token_around_image>",
    "first_tile": "<row_1_col_1>",
}
_DEEPSTACK: dict[str, Any] = {"zeros": ("visual_pos_masks",)}
# Reasons to refuse.
_CROSSED = "its image enters by cross-attention, not as columns"
_ENCODER = "it is an encoder-decoder, whose image enters by cross-attention, not as columns"
_THINKER = "it holds several models; attach to the one that reads pictures, model.thinker"
_SPARSE = "its attention picks columns by an index, which an edited row would not go through"
_STATEFUL = "its layers mix attention with a convolution or a state that an edit can't reach"

FAMILIES: dict[str, Family] = {}
"""All families by ``model_type``."""


def add(family: Family) -> Family:
    """Make a family known.

    Raises:
        ValueError: Its model type is known already.
    """
    if family.model_type in FAMILIES:
        raise ValueError(f"the family {family.model_type!r} is in the table already")
    FAMILIES[family.model_type] = family
    return family


for _family in (
    Family("apertus1p5", "Apertus 1.5"),
    Family("aria", "Aria", vision="model.vision_tower"),
    Family("aya_vision", "Aya Vision", vision="model.vision_tower"),
    Family("blip", "BLIP", refuse=_CROSSED),
    Family("blip-2", "BLIP-2", patches=False, vision="vision_model"),
    Family("chameleon", "Chameleon", grid="square"),
    Family("cohere2_vision", "Command A Vision", vision="model.vision_tower"),
    Family("cohere_compass", "Cohere Compass", **_DEEPSTACK),
    Family("cosmos3_edge", "Cosmos 3 Edge", grid="thw"),
    Family("cosmos3_omni", "Cosmos 3 Omni", grid="thw", **_DEEPSTACK, vision="model.visual"),
    Family("deepseek_ocr2", "DeepSeek-OCR 2"),
    Family("deepseek_vl", "DeepSeek-VL", grid="square", vision="model.vision_model"),
    Family("deepseek_vl_hybrid", "DeepSeek-VL (hybrid encoder)", grid="square"),
    Family("diffusion_gemma", "DiffusionGemma", refuse="it writes by denoising whole blocks"),
    Family("dots3_note", "dots3-note", refuse=_SPARSE),
    Family("emu3", "Emu3"),
    Family("ernie4_5_vl_moe", "ERNIE 4.5 VL", grid="thw", packs=("moe_mm_token_type_ids",)),
    Family("evolla", "Evolla", refuse="it reads proteins, not pictures"),
    Family("exaone4_5", "EXAONE 4.5", grid="thw", vision="model.visual"),
    Family("fast_vlm", "FastVLM", grid="square"),
    Family("florence2", "Florence-2", refuse=_ENCODER),
    Family("fuyu", "Fuyu"),
    Family("gemma3", "Gemma 3", grid="square", vision="model.vision_tower"),
    Family("gemma3n", "Gemma 3n", one_stream=False, packs=("per_layer_inputs",)),
    Family("gemma4", "Gemma 4", packs=("per_layer_inputs",), drops=("logits_to_keep",)),
    Family("gemma4_unified", "Gemma 4 (unified)", drops=("logits_to_keep",)),
    Family("git", "GIT", refuse="its attention does not go through transformers' interface"),
    Family("glm46v", "GLM-4.6V", grid="thw", vision="model.visual"),
    Family("glm4v", "GLM-4.1V", grid="thw", vision="model.visual"),
    Family("glm4v_moe", "GLM-4.5V", grid="thw", vision="model.visual"),
    Family("glm5_next", "GLM-5-Next", refuse=_SPARSE),
    Family("glm_ocr", "GLM-OCR", grid="thw", vision="model.visual"),
    Family("glmga", "GLM-GA", grid="thw", vision="model.visual"),
    Family("got_ocr2", "GOT-OCR 2", grid="square"),
    Family(
        "granite4_vision",
        "Granite 4 Vision",
        patches=False,
        zeros=("vision_mask",),
        vision="model.vision_tower",
    ),
    Family("granite_docling", "Granite-Docling", **_DEEPSTACK),
    Family("hunyuan_vl", "HunyuanVL"),
    Family("hy_v4_vl", "HY 4 VL", refuse=_SPARSE),
    Family(
        "hyperclovax_vision_v2", "HyperCLOVA X Vision 2", grid="thw", vision="model.vision_model"
    ),
    Family("idefics", "IDEFICS", refuse=_CROSSED),
    Family("idefics2", "Idefics2", patches=False, vision="model.vision_model"),
    Family("idefics3", "Idefics3", **_IDEFICS),
    Family("inkling2", "Inkling 2", refuse=_STATEFUL),
    Family("inkling2_loop", "Inkling 2 Loop", refuse=_STATEFUL),
    Family("inkling_mm_model", "Inkling", refuse=_STATEFUL),
    Family("instructblip", "InstructBLIP", patches=False, vision="vision_model"),
    Family("instructblipvideo", "InstructBLIP Video", patches=False, vision="vision_model"),
    Family("internvl", "InternVL", grid="last tile", vision="model.vision_tower"),
    Family("janus", "Janus", grid="square", vision="model.vision_model"),
    Family("kimi_k25", "Kimi K2.5"),
    Family("kosmos-2", "Kosmos-2", refuse="a mask, not a token, says which columns are its image"),
    Family(
        "kosmos-2.5", "Kosmos-2.5", refuse="a mask, not a token, says which columns are its image"
    ),
    Family("lfm2_vl", "LFM2-VL"),
    Family("lfm3_vl", "LFM3-VL"),
    Family("lighton_ocr", "LightOnOCR", vision="model.vision_encoder"),
    Family("llama4", "Llama 4"),
    Family("llava", "LLaVA", grid="square", vision="model.vision_tower"),
    Family("llava_next", "LLaVA-NeXT", grid="anyres", vision="model.vision_tower"),
    Family("llava_next_video", "LLaVA-NeXT-Video", vision="model.vision_tower"),
    Family("llava_onevision", "LLaVA-OneVision", grid="anyres", vision="model.vision_tower"),
    Family("minicpm_ocr", "MiniCPM-OCR"),
    Family("minicpmv4_6", "MiniCPM-V 4.6"),
    Family("minicpmv4_7", "MiniCPM-V 4.7"),
    Family("minimax_m3_vl", "MiniMax M3 VL"),
    Family(
        "mistral3", "Mistral 3", grid="breaks", inside=("[IMG_BREAK]",), vision="model.vision_tower"
    ),
    Family("mistral4", "Mistral 4", refuse="it takes no pictures"),
    Family("mistral_large4", "Mistral Large 4", refuse=_SPARSE),
    Family("mllama", "Llama 3.2 Vision", refuse=_CROSSED),
    Family("molmo2", "Molmo 2"),
    Family("muse_glimmer", "Muse Glimmer"),
    Family("muse_spark", "Muse Spark", free_heads=False),
    Family("nemotron_h_omni", "Nemotron-H Omni"),
    Family("ovis2", "Ovis2"),
    Family("paddleocr_vl", "PaddleOCR-VL", grid="thw"),
    Family(
        "paligemma",
        "PaliGemma",
        grid="square",
        per_image="text_config.num_image_tokens",
        vision="model.vision_tower",
    ),
    Family("perception_lm", "PerceptionLM"),
    Family("phi4_multimodal", "Phi-4-multimodal", ("vision_config.image_token_id",)),
    Family("pi0", "pi0", refuse="it drives a robot, and writes no text"),
    Family("pix2struct", "Pix2Struct", refuse=_ENCODER),
    Family("pp_chart2table", "PP-Chart2Table", grid="square"),
    Family("pp_formulanet", "PP-FormulaNet", refuse=_ENCODER),
    Family("qianfan_ocr", "Qianfan-OCR"),
    Family("qwen2_5_omni", "Qwen2.5-Omni", refuse=_THINKER),
    Family("qwen2_5_omni_thinker", "Qwen2.5-Omni thinker", grid="thw", vision="model.visual"),
    Family("qwen2_5_vl", "Qwen2.5-VL", grid="thw", vision="model.visual"),
    Family("qwen2_vl", "Qwen2-VL", grid="thw", vision="model.visual"),
    Family("qwen3_5", "Qwen3.5", grid="thw", vision="model.visual"),
    Family("qwen3_5_moe", "Qwen3.5-MoE", grid="thw", vision="model.visual"),
    Family("qwen3_omni_moe", "Qwen3-Omni", refuse=_THINKER),
    Family(
        "qwen3_omni_moe_thinker",
        "Qwen3-Omni thinker",
        grid="thw",
        **_DEEPSTACK,
        vision="model.visual",
    ),
    Family("qwen3_vl", "Qwen3-VL", grid="thw", **_DEEPSTACK, vision="model.visual"),
    Family("qwen3_vl_moe", "Qwen3-VL-MoE", grid="thw", **_DEEPSTACK, vision="model.visual"),
    Family("qwen4_exp", "Qwen4-Exp", refuse=_SPARSE),
    Family("shieldgemma2", "ShieldGemma 2", grid="square", vision="model.vision_tower"),
    Family("smolvlm", "SmolVLM", **_IDEFICS),
    Family("step3p7", "Step 3.7"),
    Family("t5gemma2", "T5Gemma 2", refuse=_ENCODER),
    Family("udop", "UDOP", refuse=_ENCODER),
    Family(
        "unlimited_ocr",
        "UnlimitedOCR",
        refuse="its window keeps the whole prompt but slides over generated text",
    ),
    Family("video_llama_3", "VideoLLaMA 3"),
    Family("video_llava", "Video-LLaVA"),
    Family("vipllava", "ViP-LLaVA", grid="square", vision="model.vision_tower"),
    Family("vision-encoder-decoder", "Vision encoder-decoder", refuse=_ENCODER),
):
    add(_family)


def family_of(config: Any) -> Family | None:
    """The family of a model, or None if it isn't in the table.

    Args:
        config: The model's config.

    Raises:
        ValueError: No method can act on the family; the message says why.
    """
    family = FAMILIES.get(model_type(config))
    if family is not None and family.refuse:
        raise ValueError(
            f"{family.title} ({family.model_type}) can't be attached to: {family.refuse}"
        )
    return family


def model_type(config: Any) -> str:
    """Return a config's name for its kind of model."""
    return str(getattr(config, "model_type", "") or type(config).__name__)


def unknown_family(kind: str) -> str:
    """The message for a model type that isn't in the table."""
    near = difflib.get_close_matches(kind, sorted(FAMILIES), n=3, cutoff=0.6)
    hint = f" (known are, for instance, {', '.join(near)})" if near else ""
    return (
        f"regaze doesn't know the model type {kind!r}{hint}, so it can't promise that an edit is "
        "exact there. `regaze verify --model ...` tells whether it is, and "
        'attach(..., unknown="check") checks it on the spot and attaches if it is'
    )


def guess(config: Any) -> Family:
    """A family for a model type that isn't in the table, to be checked before it is edited."""
    resampled = any(
        getattr(config, n, None) is not None for n in ("qformer_config", "perceiver_config")
    )
    kind = model_type(config)
    return Family(kind, kind, _USUAL_IDS, patches=not resampled)
