"""What differs between families of vision-language models: one entry per ``model_type``.

Everything else is read off the model itself. A family that isn't here isn't known, and raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Grid = Literal["square", "thw", "anyres", "last tile", "breaks", "unknown"]
"""How image columns lie over the picture; `regaze.hooks.grids.patch_grid` reads it.

"square": as many rows as columns; "thw": ``image_grid_thw`` gives frames, rows and columns;
"anyres": tiles of LLaVA-NeXT, unpadded, after the whole picture; "last tile": the whole picture,
small, comes last; "breaks": a token ends each row; "unknown": columns can't be told apart.
"""

_TILES = (
    "<global-img>",
    "<fake_token_around_image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 11) for column in range(1, 11)),
)


@dataclass(frozen=True)
class Family:
    """What is known of the models of one ``model_type``.

    Attributes:
        model_type: As in the model's config.
        title: What people call it.
        image_ids: Fields of the config that hold ids of image or video placeholders; a dot leads
            into a part of the config.
        tower: Path from the model to its text decoder, the module with ``.layers``; by default
            what ``get_decoder`` finds.
        patches: Whether an image column is a patch; False for the outputs of learned queries.
        grid: How image columns lie over the picture.
        per_image: Field of the config with the number of columns of each image, for families
            whose images may stand side by side with nothing between.
        inside: Tokens that processors put between the columns of one image.
        fence: The one of them that stands twice only where one image ends and another begins.
        first_tile: The one of them that begins an image.
        packs: Inputs of the text decoder with one entry per token, besides embeddings, mask and
            positions: a run without image takes those of its own columns.
        zeros: Likewise, but zero (False) in a run without image: what vision adds to columns.
        refuse: Why no method can act on it; empty if some can.
    """

    model_type: str
    title: str
    image_ids: tuple[str, ...] = ("image_token_id", "video_token_id")
    tower: str | None = None
    patches: bool = True
    grid: Grid = "unknown"
    per_image: str | None = None
    inside: tuple[str, ...] = ()
    fence: str | None = None
    first_tile: str | None = None
    packs: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    refuse: str = ""


_IDEFICS = {
    "inside": _TILES,
    "fence": "<fake_token_around_image>",
    "first_tile": "<row_1_col_1>",
}
_CROSSED = "its image enters by cross-attention, not as columns"

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
    Family("llava", "LLaVA", grid="square"),
    Family("llava_next", "LLaVA-NeXT", grid="anyres"),
    Family("llava_onevision", "LLaVA-OneVision", grid="anyres"),
    Family("qwen2_vl", "Qwen2-VL", grid="thw"),
    Family("qwen2_5_vl", "Qwen2.5-VL", grid="thw"),
    Family(
        "qwen3_vl",
        "Qwen3-VL",
        grid="thw",
        zeros=("visual_pos_masks",),
    ),
    Family("internvl", "InternVL", grid="last tile"),
    Family("gemma3", "Gemma 3", grid="square"),
    Family(
        "paligemma",
        "PaliGemma",
        grid="square",
        per_image="text_config.num_image_tokens",
    ),
    Family("smolvlm", "SmolVLM", grid="last tile", **_IDEFICS),
    Family("idefics3", "Idefics3", grid="last tile", **_IDEFICS),
    Family("mistral3", "Mistral 3", grid="breaks", inside=("[IMG_BREAK]",)),
    Family("instructblip", "InstructBLIP", patches=False),
    Family("mllama", "Llama 3.2 Vision", refuse=_CROSSED),
):
    add(_family)


def family_of(config: Any) -> Family:
    """The family of a model.

    Args:
        config: The model's config.

    Raises:
        ValueError: The model type isn't in the table, or no method can act on it; the message
            says why and what to do.
    """
    kind = str(getattr(config, "model_type", "") or type(config).__name__)
    family = FAMILIES.get(kind)
    if family is None:
        raise ValueError(unknown_family(kind, FAMILIES))
    if family.refuse:
        raise ValueError(f"{family.title} ({kind}) can't be attached to: {family.refuse}")
    return family


def unknown_family(kind: str, known: Iterable[str]) -> str:
    """The message for a model type that isn't in the table."""
    near = difflib.get_close_matches(kind, sorted(known), n=3, cutoff=0.6)
    hint = f" (known are, for instance, {', '.join(near)})" if near else ""
    return (
        f"regaze doesn't know the model type {kind!r}{hint}, so it can't promise that an edit is "
        'exact there. `regaze verify --model ...` tells what is; attach(..., unknown="check") '
        "checks it on the spot and attaches if that passes"
    )
