"""Facts about classes of denoisers that edits of their attention need: one entry for each class.

It says where the attention modules are, what their rows and columns hold, in which order, and what
the arguments mean. Nothing of it is guessed from shapes: a class that has no entry is refused. How
pipelines run guidance is in `regaze.hooks.diffusion.conventions`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from regaze.hooks.diffusion.conventions import Convention, convention_of, defining
from regaze.hooks.diffusion.layouts import (
    Order,
    Reader,
    all_positions,
    allegro,
    beside,
    frames_first,
    kandinsky5,
    levels,
    lumina2,
    patches,
    positions,
    qwen_image21,
    registers,
    shapes,
    sizes,
    z_image,
)

__all__ = ["DENOISERS", "FAMILIES", "Convention", "Family", "Rule", "convention_of", "family_of"]

Kind = Literal["self", "joint", "cross", "temporal", "linear", "other"]
"""Kinds of attention, by what the rows attend to: the picture ("self"), picture and text ("joint"),
columns that aren't its rows, mostly the text ("cross"), the same place in other frames
("temporal"), everything by running sums without a map ("linear"); "other": the text alone, or
attention in which something else than picture and text takes part, such as sound or boxes."""

UNET = ("down_blocks", "mid_block", "up_blocks")
"""The blocks of U-Nets: each but the last of those that go down halves the grid, each but the last
of those that go up doubles it."""

DENOISERS = ("unet", "transformer", "transformer_2")
"""Parts of a pipeline that denoise; Wan 2.2 has two, for early and for late steps."""


@dataclass(frozen=True)
class Rule:
    """The kind and order of some attention modules of a denoiser.

    Attributes:
        path: Regular expression that a module's whole path matches.
        kind: Kind of attention.
        order: Order of the streams in its rows.
        counted: True if it is one of the numbered layers; of self- and joint attention only.
    """

    path: str
    kind: Kind
    order: Order = "image"
    counted: bool = True


@dataclass(frozen=True)
class Family:
    """A class of denoisers.

    Attributes:
        attention: Rules that say what its attention modules are; the first whose path matches
            holds.
        blocks: Names of its lists of blocks (or of a single block), in the order in which they run.
        layout: Reads how the tokens of a pass are laid out.
        chain: True if a block reads nothing but what the one before it returned, so that of a run
            of blocks that a branch skips only the last one's output has to be kept.
        returns: Arguments that a block returns, in order, so that it can be left out; empty if they
            aren't known, or if blocks change their streams' shapes (U-Nets).
        sample: Name of the argument that holds the latents.
        text: Name of the argument that holds the text.
        lists: Arguments that are lists with an entry for each row of the batch.
        per_token: Arguments that run over tokens, whatever their first size happens to be.
        per_frame: Arguments that may hold all frames of a sample one after the other.
        uneven: Test, ``uneven(call)``, that is true if the rows of a call can't be run apart from
            each other up to the same block, because the longest decides how long all of them are.
        refuse: Reason why it can't be edited; empty if it can.
        proven: True if it isn't in the table: every pass shows by trying what its tokens are
            (`regaze.hooks.diffusion.checking`).
    """

    attention: tuple[Rule, ...] = ()
    blocks: tuple[str, ...] = ("transformer_blocks",)
    layout: Reader = patches()
    chain: bool = True
    returns: tuple[str, ...] = ()
    sample: str = "hidden_states"
    text: str = "encoder_hidden_states"
    lists: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ("image_rotary_emb",)
    per_frame: tuple[str, ...] = ()
    uneven: Callable[[Mapping[str, Any]], bool] | None = None
    refuse: str = ""
    proven: bool = False


def _uneven_masks(call: Mapping[str, Any]) -> bool:
    return len(set(call["encoder_attention_mask"].sum(1).tolist())) > 1


def _uneven_texts(call: Mapping[str, Any]) -> bool:
    return len({len(text) for text in call["cap_feats"]}) > 1


_DOUBLE_AND_SINGLE = ("transformer_blocks", "single_transformer_blocks")
_IMAGE_TEXT = (Rule(r".*\.attn1?", "joint", "image-text"),)
_TEXT_IMAGE = (Rule(r".*\.attn1?", "joint", "text-image"),)
_SELF_AND_CROSS = (Rule(r".*\.attn1", "self"), Rule(r".*\.attn2", "cross"))
_IMAGE = ("hidden_states",)
_TEXT_FIRST = ("encoder_hidden_states", "hidden_states")
_IMAGE_FIRST = ("hidden_states", "encoder_hidden_states")
_PACKED = Family(_TEXT_IMAGE, _DOUBLE_AND_SINGLE, positions, per_token=("img_ids", "txt_ids"))
_VIDEO = Family(_SELF_AND_CROSS, ("blocks",), patches("fhw"))
_UNET = Family(
    attention=(
        Rule(r".*(motion_modules|temp_attentions|temporal_transformer).*", "temporal"),
        # It sees boxes beside the picture (GLIGEN).
        Rule(r".*\.fuser\.attn", "other"),
        # Blocks without transformers, of older models.
        Rule(r".*\.(attn1|attentions\.\d+)", "self"),
        Rule(r".*\.attn2", "cross"),
    ),
    blocks=UNET,
    layout=levels,
    chain=False,
    sample="sample",
    per_frame=(
        "encoder_hidden_states",
        "added_cond_kwargs",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
    ),
)

FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": _UNET,
    "UNet2DModel": _UNET,
    "UNet3DConditionModel": _UNET,
    "UNetMotionModel": _UNET,
    "UNetSpatioTemporalConditionModel": Family(
        _UNET.attention, _UNET.blocks, frames_first, chain=False, sample="sample"
    ),
    "AllegroTransformer3DModel": Family(_SELF_AND_CROSS, layout=allegro),
    "AuraFlowTransformer2DModel": Family(
        _TEXT_IMAGE, ("joint_transformer_blocks", "single_transformer_blocks"), registers
    ),
    "ChromaTransformer2DModel": _PACKED,
    "ChronoEditTransformer3DModel": _VIDEO,
    "BriaTransformer2DModel": _PACKED,
    "CogVideoXTransformer3DModel": Family(
        _TEXT_IMAGE, layout=patches("fchw"), returns=_IMAGE_FIRST
    ),
    "CogView3PlusTransformer2DModel": Family(_TEXT_IMAGE),
    "CogView4Transformer2DModel": Family(_TEXT_IMAGE),
    "DiTTransformer2DModel": Family(_SELF_AND_CROSS, text=""),
    "Flux2Transformer2DModel": _PACKED,
    "FluxTransformer2DModel": replace(_PACKED, returns=_TEXT_FIRST),
    "HunyuanImageTransformer2DModel": Family(
        _IMAGE_TEXT, _DOUBLE_AND_SINGLE, beside(patches("fhw"), "encoder_hidden_states_2")
    ),
    "HunyuanVideo15Transformer3DModel": Family(
        _IMAGE_TEXT, layout=beside(patches("fhw"), "encoder_hidden_states_2", "image_embeds")
    ),
    "HunyuanVideoTransformer3DModel": Family(
        _IMAGE_TEXT, _DOUBLE_AND_SINGLE, patches("fhw"), returns=_IMAGE_FIRST
    ),
    "Kandinsky5Transformer3DModel": Family(
        (
            Rule(r"text_.*", "other"),
            Rule(r".*\.self_attention", "self"),
            Rule(r".*\.cross_attention", "cross"),
        ),
        ("text_transformer_blocks", "visual_transformer_blocks"),
        kandinsky5,
        per_token=("visual_rope_pos", "text_rope_pos", "scale_factor", "sparse_params"),
    ),
    "Krea2Transformer2DModel": Family(
        _TEXT_IMAGE, layout=all_positions, per_token=("position_ids",)
    ),
    "LongCatImageTransformer2DModel": _PACKED,
    "LTX2VideoTransformer3DModel": Family(
        (
            *_SELF_AND_CROSS,
            Rule(r".*\.(audio_attn\d|audio_to_video_attn|video_to_audio_attn)", "other"),
        ),
        layout=sizes,
    ),
    "LTXVideoTransformer3DModel": Family(_SELF_AND_CROSS, layout=sizes, returns=_IMAGE),
    "Lumina2Transformer2DModel": Family(
        (
            Rule(r"context_refiner\..*", "other"),
            Rule(r"noise_refiner\..*", "self"),
            Rule(r"layers\..*", "joint", "text-image"),
        ),
        ("context_refiner", "noise_refiner", "layers"),
        lumina2,
        uneven=_uneven_masks,
    ),
    "MochiTransformer3DModel": Family(_IMAGE_TEXT, layout=patches("fhw"), returns=_IMAGE_FIRST),
    "OvisImageTransformer2DModel": _PACKED,
    "PixArtTransformer2DModel": Family(_SELF_AND_CROSS),
    "QwenImage21Transformer2DModel": Family(
        _TEXT_IMAGE, layout=qwen_image21, lists=("img_shapes",)
    ),
    "QwenImageTransformer2DModel": Family(
        _TEXT_IMAGE, layout=shapes, lists=("img_shapes",), returns=_TEXT_FIRST
    ),
    "SD3Transformer2DModel": Family(
        (Rule(r".*\.attn2", "self", counted=False), *_IMAGE_TEXT), returns=_TEXT_FIRST
    ),
    "SanaTransformer2DModel": Family(
        refuse="its self-attention is linear: it makes running sums of keys and values and has no "
        "map of which tokens look at which, so there is nothing to edit"
    ),
    "SkyReelsV2Transformer3DModel": _VIDEO,
    "WanTransformer3DModel": replace(_VIDEO, returns=_IMAGE),
    "WanVACETransformer3DModel": Family(
        (Rule(r"vace_.*", "other"), *_SELF_AND_CROSS),
        ("vace_blocks", "blocks"),
        patches("fhw"),
        chain=False,
    ),
    "ZImageTransformer2DModel": Family(
        (
            Rule(r"noise_refiner\..*", "self"),
            Rule(r"(context|siglip)_refiner\..*", "other"),
            Rule(r"layers\..*", "joint", "image-text"),
        ),
        ("noise_refiner", "context_refiner", "siglip_refiner", "layers"),
        z_image,
        sample="x",
        text="cap_feats",
        lists=("x", "cap_feats"),
        uneven=_uneven_texts,
    ),
}
"""Families by the name of the class that defines the denoiser's ``forward``."""

CHECKED: MutableMapping[nn.Module, Family] = weakref.WeakKeyDictionary()
"""Families proposed for denoisers of unknown classes, attached to with ``unknown="check"``."""


def family_of(denoiser: Any) -> Family:
    """Find the family of a denoiser's class.

    Args:
        denoiser: A U-Net or transformer; not compiled, or unwrapped.

    Raises:
        ValueError: Nothing is known of it, or that it can't be edited.
    """
    family = FAMILIES.get(name := defining(denoiser, "forward")) or CHECKED.get(denoiser)
    if family is None:
        raise ValueError(
            f"{type(denoiser).__name__} isn't known here: which of its attention is the picture's, "
            "and where its text is, would be a guess. Say it in one entry, "
            f"regaze.hooks.diffusion.families.FAMILIES[{name!r}] = Family(...), and let "
            "`regaze verify` (or regaze.verify) prove it on your model; or let "
            'attach(..., unknown="check") find out by trying what PAG, SEG and SoftPAG need'
        )
    if family.refuse:
        raise ValueError(f"{name} can't be edited: {family.refuse}")
    return family
