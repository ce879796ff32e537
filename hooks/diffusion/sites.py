"""Where a denoiser attends: every attention module, what it attends to, and how to name it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["self", "joint", "cross", "temporal"]
Order = Literal["image", "image-text", "text-image", "unknown"]

# In which order a joint attention call holds its streams, by the first words of the model's class.
_ORDERS: dict[str, Order] = {
    "SD3Transformer": "image-text",
    "FluxTransformer": "text-image",
    "QwenImageTransformer": "text-image",
}
# U-Nets register the middle block last.
_UNET_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


@dataclass(frozen=True)
class Site:
    """One attention module of a denoiser.

    Attributes:
        name: Its path in the denoiser, such as ``transformer_blocks.3.attn``.
        kind: What its rows attend to: the image ("self"), image and text ("joint"), the text
            ("cross"), or the same place in other frames ("temporal").
        block: Path of the top-level block that it is in.
        layer: Its number L among the layers of self- and joint attention, in the order in which
            they run, as in ``L18``. Others have none: a second image self-attention beside a joint
            one (SD3.5) and temporal attention, which are chosen by their whole names, and
            cross-attention.
        heads: Number of query heads.
        order: How the tokens of its queries are laid out.
    """

    name: str
    kind: Kind
    block: str
    layer: int | None
    heads: int
    order: Order


def find_sites(denoiser: nn.Module) -> list[Site]:
    """All attention modules in the blocks of a denoiser, in the order in which they run.

    Args:
        denoiser: A diffusers U-Net or transformer.
    """
    found = [(name, m) for name, m in denoiser.named_modules() if _is_attention(m)]
    found = [(name, m) for name, m in found if block_of(name) is not None]
    found.sort(key=lambda item: _UNET_ORDER.get(item[0].partition(".")[0], 0))
    joint_blocks = {
        name.rpartition(".")[0] for name, m in found if _kind(denoiser, name, m) == "joint"
    }
    sites: list[Site] = []
    layer = 0
    for name, module in found:
        kind = _kind(denoiser, name, module)
        second = kind == "self" and name.rpartition(".")[0] in joint_blocks
        counted = kind in ("self", "joint") and not second
        order: Order = _order(denoiser) if kind == "joint" else "image"
        block = block_of(name) or ""
        sites.append(Site(name, kind, block, layer if counted else None, int(module.heads), order))
        layer += counted
    return sites


def block_of(name: str) -> str | None:
    """The top-level block in a module's path; None if it is outside the blocks."""
    match = re.match(r"(\w*blocks\.\d+|mid_block)\.", name)
    return match[1] if match else None


def blocks(denoiser: nn.Module) -> Iterator[str]:
    """Paths of a denoiser's top-level blocks."""
    for name, child in denoiser.named_children():
        if name == "mid_block":
            yield name
        elif name.endswith("blocks") and isinstance(child, nn.ModuleList):
            yield from (f"{name}.{index}" for index in range(len(child)))


def native_grid(denoiser: Any, site: Site) -> tuple[int, int] | None:
    """Rows and columns of a site's image tokens at the size that the model was made for.

    Args:
        denoiser: The model.
        site: One of its sites.

    Returns:
        None where the config names no such size (FLUX, Wan, Qwen-Image).
    """
    size = getattr(denoiser.config, "sample_size", None)
    if size is None:
        return None
    rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
    downs = getattr(denoiser, "down_blocks", None)
    if downs is None:
        patch = int(getattr(denoiser.config, "patch_size", None) or 1)
        return rows // patch, columns // patch
    part, _, index = site.block.partition(".")
    deepest = len(downs) - 1
    level = {"down_blocks": int(index or 0), "up_blocks": deepest - int(index or 0)}
    for _ in range(level.get(part, deepest)):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "processor") and hasattr(module, "heads")


def _kind(denoiser: nn.Module, name: str, module: Any) -> Kind:
    if re.search(r"motion_modules|temp(oral)?_(attentions|transformer)", name):
        return "temporal"
    if getattr(module, "add_q_proj", None) is not None:
        return "joint"
    # Text that is projected to more keys, but not to queries: rows and columns differ.
    if getattr(module, "added_kv_proj_dim", None) is not None:
        return "cross"
    if getattr(module, "is_cross_attention", False):
        return "cross"
    # A single stream that holds text and image; only its model knows.
    return "joint" if name.startswith("single_transformer_blocks.") else "self"


def _order(denoiser: nn.Module) -> Order:
    name = type(denoiser).__name__
    return next((o for start, o in _ORDERS.items() if name.startswith(start)), "unknown")


# -- choosing ----------------------------------------------------------------------------------


PERTURBED: tuple[Kind, ...] = ("self", "joint")
TEXT: tuple[Kind, ...] = ("cross", "joint")
_WHY = {
    PERTURBED: "is cross-attention, whose rows aren't its columns; a perturbation needs self- or "
    "joint attention",
    TEXT: "is self-attention, which sees no text; this method needs cross- or joint attention",
}


def choose(
    sites: Sequence[Site], wanted: Sequence[str | int], kinds: tuple[Kind, ...] = PERTURBED
) -> list[Site]:
    """Sites that a list of layers names, in the order in which they run.

    Args:
        sites: All sites of a denoiser.
        wanted: Numbers (18), numbers as text ("L18"), or parts of paths as in diffusers ("mid",
            "up_blocks.1", "blocks.13"), which whole parts must match and which may be regular
            expressions ("blocks.(7|8)").
        kinds: Which kinds can be named: those that can be perturbed, or those that see `TEXT`.

    Raises:
        ValueError: One names no such layer; the message shows the nearest.
    """
    chosen = {site.name: site for one in wanted for site in _matching(sites, one, kinds)}
    return [site for site in sites if site.name in chosen]


def _matching(sites: Sequence[Site], wanted: str | int, kinds: tuple[Kind, ...]) -> list[Site]:
    counted = [site for site in sites if site.layer is not None]
    named = [s for s in sites if s.kind in kinds and (s.layer is not None or s.kind == "cross")]
    text = str(wanted)
    exact = [site for site in sites if site.name == text]
    if number := re.fullmatch(r"[Ll]?(\d+)", text):
        if int(number[1]) >= len(counted):
            raise ValueError(
                f"there is no layer {text}: this denoiser has {len(counted)} layers of self- or "
                f"joint attention (L0 to L{len(counted) - 1})"
            )
        exact = [counted[int(number[1])]]
    # Temporal attention, and self-attention beside joint one, can be perturbed by their names.
    if exact and (exact[0].kind == "cross" if kinds == PERTURBED else exact[0].kind not in kinds):
        raise ValueError(f"{text} {_WHY[kinds]}")
    try:
        pattern = re.compile(rf"(?:^|[._])(?:{text})(?:$|[._])")
    except re.error as error:
        raise ValueError(f"layer {text!r} is no regular expression: {error}") from error
    found = exact or [site for site in named if pattern.search(site.name)]
    if not found:
        raise ValueError(unmatched(text, [site.name for site in named], kinds))
    return found


def unmatched(text: str, names: Sequence[str], kinds: tuple[Kind, ...] = PERTURBED) -> str:
    """The message for a layer that matches nothing, with the names nearest to it."""
    known = [*names, *dict.fromkeys(b for n in names if (b := block_of(n)))]
    near = difflib.get_close_matches(text, known, 3, 0.3) or names[:3]
    what = " or ".join(f"{kind}-" if kind != "joint" else "joint" for kind in kinds)
    return f"layer {text!r} matches no {what} attention; nearest: {', '.join(near)}"


def only_heads(site: Site, heads: Sequence[int]) -> None:
    """Check head indices of a site.

    Raises:
        ValueError: One is out of range.
    """
    for head in heads:
        if not 0 <= head < site.heads:
            raise ValueError(
                f"head {head} of L{site.layer} ({site.name}) doesn't exist; it has {site.heads} "
                f"heads (0 to {site.heads - 1})"
            )


# -- what a call looks like --------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How the tokens of one forward pass are laid out.

    Attributes:
        finest: (rows, columns) or (frames, rows, columns) of the finest token grid, if known.
        n_text: Length of the text stream, in tokens.
        halves: Whether the grid halves from level to level (U-Nets), rounding up.
        branches: How many branches of guidance the batch holds, one after the other.
        images: How many images of each prompt lie side by side in a branch.
        frames: How many frames of each sample an attention call's batch holds side by side, where
            the denoiser puts them there (AnimateDiff).
    """

    finest: tuple[int, ...] | None
    n_text: int
    halves: bool
    branches: int = 1
    images: int = 1
    frames: int | None = None

    def grid(self, tokens: int) -> tuple[int, ...] | None:
        """The grid of ``tokens`` image tokens: the level of this image that has as many."""
        if self.finest is None:
            return None
        *frames, rows, columns = self.finest
        while True:
            for front in ([*frames], [1] * len(frames)):
                if math.prod((*front, rows, columns)) == tokens:
                    return (*front, rows, columns)
            if not self.halves or rows == columns == 1:
                return None
            rows, columns = -(-rows // 2), -(-columns // 2)


def read_layout(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """The layout of a forward pass, from its arguments.

    Args:
        denoiser: The model called.
        call: Its arguments by name.
    """
    text = call.get("encoder_hidden_states")
    n_text = int(text.shape[1]) if isinstance(text, Tensor) else 0
    unet = "sample" in call
    shape = tuple((call["sample"] if unet else call["hidden_states"]).shape)
    grid: tuple[int, ...] | None = None
    if unet:
        # AnimateDiff folds its frames into the batch: an attention call sees each apart.
        grid = shape[-2:]
    elif len(shape) >= 4:
        patch = getattr(denoiser.config, "patch_size", 1)
        patches = tuple(patch) if isinstance(patch, (tuple, list)) else (1, patch, patch)
        sides = shape[2:]
        grid = tuple(n // p for n, p in zip(sides, patches[-len(sides) :], strict=True))
    elif call.get("img_shapes"):
        # Packed latents with their shape beside them (Qwen-Image).
        first = call["img_shapes"][0]
        grid = tuple(first[0] if isinstance(first, list) else first)
    elif isinstance(ids := call.get("img_ids"), Tensor):
        # Packed latents with a position per token (FLUX).
        grid = tuple(int(last) + 1 for last in ids.reshape(-1, ids.shape[-1]).amax(0)[-2:])
    frames = int(shape[2]) if unet and len(shape) == 5 else None
    return Layout(grid, n_text, halves=unet, frames=frames)
