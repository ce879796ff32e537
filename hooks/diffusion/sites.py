"""The attention modules of a denoiser: what each one attends to, and how to name it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regaze.hooks.diffusion.families import UNET, Family, Kind, Rule, family_of
from regaze.hooks.diffusion.layouts import Layout, Order, halved

__all__ = [
    "PERTURBED",
    "TEMPORAL",
    "TEXT",
    "Kind",
    "Layout",
    "Order",
    "Site",
    "blocks",
    "choose",
    "find_sites",
    "native_grid",
    "only_heads",
    "read_layout",
]


@dataclass(frozen=True)
class Site:
    """One attention module of a denoiser.

    Attributes:
        name: Path of the module in the denoiser, such as ``transformer_blocks.3.attn``.
        kind: Kind of attention, by what its rows attend to: the image ("self"), image and text
            ("joint"), columns that aren't its rows, mostly the text ("cross"), the same place in
            other frames ("temporal"); or the text alone or something else has part in it ("other"),
            or it has no map ("linear").
        block: Path of the top-level block that it is in.
        layer: Number L among the layers of self- and joint attention, in the order in which they
            run, as in ``L18``. Others have none: a second image self-attention beside a joint one
            (SD3.5) and temporal attention, which are chosen by their whole names, and
            cross-attention.
        heads: Number of query heads.
        order: Order of the streams in its rows.
        level: Number of times that the picture's grid was halved before it, by the block that it is
            in.
    """

    name: str
    kind: Kind
    block: str
    layer: int | None
    heads: int
    order: Order
    level: int = 0


def find_sites(denoiser: nn.Module) -> list[Site]:
    """All attention modules in the blocks of a denoiser, in the order in which they run.

    Args:
        denoiser: A diffusers U-Net or transformer.

    Raises:
        ValueError: Its class isn't known, or has attention that isn't.
    """
    family = family_of(denoiser)
    sites: list[Site] = []
    layer = 0
    for block in blocks(denoiser):
        for path, module in denoiser.get_submodule(block).named_modules(prefix=block):
            if not hasattr(module, "processor"):
                continue
            rule = _rule_of(family, denoiser, path)
            kind = _kind(rule, module)
            counted = rule.counted and kind in ("self", "joint")
            heads = int(getattr(module, "heads", None) or module.num_heads)
            number = layer if counted else None
            level = _level(family, denoiser, block)
            sites.append(Site(path, kind, block, number, heads, rule.order, level))
            layer += counted
    return sites


def blocks(denoiser: nn.Module) -> Iterator[str]:
    """Paths of a denoiser's top-level blocks, in the order in which they run."""
    for name in family_of(denoiser).blocks:
        child = getattr(denoiser, name, None)
        if isinstance(child, nn.ModuleList):
            yield from (f"{name}.{index}" for index in range(len(child)))
        elif child is not None:
            yield name


def native_grid(denoiser: Any, site: Site) -> tuple[int, int] | None:
    """Rows and columns of a site's image tokens at the size that the model was made for.

    Args:
        denoiser: The model.
        site: One of its sites.

    Returns:
        None where the config names no such size (FLUX, Wan, Qwen-Image), or its rows aren't the
        image's.
    """
    size = getattr(denoiser.config, "sample_size", None)
    if size is None or site.kind in ("other", "linear"):
        return None
    rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
    downs = getattr(denoiser, "down_blocks", None)
    if downs is None:
        patch = int(getattr(denoiser.config, "patch_size", None) or 1)
        return rows // patch, columns // patch
    rows, columns = halved((rows, columns), site.level)
    return rows, columns


def read_layout(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """The layout of a forward pass, from its arguments.

    Args:
        denoiser: The model called.
        call: Arguments of the call, by name.
    """
    return family_of(denoiser).layout(denoiser, call)


def _level(family: Family, denoiser: Any, block: str) -> int:
    """Halvings of the grid before a block: one behind each of a U-Net's down blocks."""
    if family.blocks != UNET:
        return 0
    part, _, index = block.partition(".")
    deepest = len(denoiser.down_blocks) - 1
    return {"down_blocks": int(index or 0), "up_blocks": deepest - int(index or 0)}.get(
        part, deepest
    )


def _rule_of(family: Family, denoiser: nn.Module, path: str) -> Rule:
    for rule in family.attention:
        if re.fullmatch(rule.path, path):
            return rule
    raise ValueError(
        f"{type(denoiser).__name__} attends in {path}, and what is attended to there isn't known; "
        "`regaze verify` tells more"
    )


def _kind(rule: Rule, module: Any) -> Kind:
    """The kind of a module of a rule; some classes build theirs either way (U-Nets).

    A second attention that was built as self-attention is still given the text.
    """
    # Text that is projected to more keys, but not to queries: rows and columns differ.
    more = getattr(module, "added_kv_proj_dim", None) and not getattr(module, "add_q_proj", None)
    crosses = getattr(module, "is_cross_attention", None)
    if rule.kind == "self" and (crosses or more):
        return "cross"
    if rule.kind == "temporal" and crosses:
        return "other"
    return rule.kind


# -- choosing ----------------------------------------------------------------------------------


PERTURBED: tuple[Kind, ...] = ("self", "joint")
TEXT: tuple[Kind, ...] = ("cross", "joint")
TEMPORAL: tuple[Kind, ...] = ("temporal",)

_WHATS: dict[Kind, str] = {
    "self": "self-attention, which sees no text",
    "joint": "joint attention of image and text",
    "cross": "cross-attention: image tokens attend to text, so that its map isn't square",
    "temporal": "temporal attention, which sees other frames of the same place",
    "linear": "linear attention, which has no map",
    "other": "attention of something else than the image to itself or to its text",
}
_NEEDS = {
    PERTURBED: "can't be perturbed; choose self- or joint attention, which `regaze sites` lists",
    TEXT: "doesn't do for this method; choose cross- or joint attention, which `regaze sites` "
    "lists",
    TEMPORAL: "doesn't do for this method; choose temporal attention, which `regaze sites` lists",
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
        kinds: Kinds that can be named: those that can be `PERTURBED`, those that see `TEXT`, or
            `TEMPORAL` ones.

    Raises:
        ValueError: One names no such layer; the message shows the nearest, or why not.
    """
    chosen = {site.name: site for one in wanted for site in _matching(sites, one, kinds)}
    return [site for site in sites if site.name in chosen]


def _matching(sites: Sequence[Site], wanted: str | int, kinds: tuple[Kind, ...]) -> list[Site]:
    counted = [site for site in sites if site.layer is not None]
    uncounted: tuple[Kind, ...] = ("cross", "temporal")
    named = [s for s in sites if s.kind in kinds and (s.layer is not None or s.kind in uncounted)]
    text = str(wanted)
    exact = [site for site in sites if site.name == text]
    if number := re.fullmatch(r"[Ll]?(\d+)", text):
        if int(number[1]) >= len(counted):
            raise ValueError(
                f"there is no layer {text}: this denoiser has {len(counted)} layers of self- or "
                f"joint attention (L0 to L{len(counted) - 1})"
            )
        exact = [counted[int(number[1])]]
    # Temporal attention can be perturbed, by its whole name.
    allowed = (*kinds, "temporal") if kinds == PERTURBED else kinds
    if exact and exact[0].kind not in allowed:
        raise ValueError(_why_not(text, exact[0], kinds))
    try:
        pattern = re.compile(rf"(?:^|[._])(?:{text})(?:$|[._])")
    except re.error as error:
        raise ValueError(f"layer {text!r} is no regular expression: {error}") from error
    found = exact or [site for site in named if pattern.search(site.name)]
    if not found:
        others = [s for s in sites if s.kind not in kinds and pattern.search(s.name)]
        raise ValueError(_why_not(text, others[0], kinds) if others else _unmatched(text, named))
    return found


def _why_not(text: str, site: Site, kinds: tuple[Kind, ...]) -> str:
    name = "" if text == site.name else f" ({site.name})"
    return f"{text}{name} is {_WHATS[site.kind]}; it {_NEEDS[kinds]}"


def _unmatched(text: str, named: Sequence[Site]) -> str:
    """The message for a layer that matches nothing, with the names nearest to it."""
    names = [site.name for site in named]
    known = [*names, *dict.fromkeys(site.block for site in named)]
    near = difflib.get_close_matches(text, known, 3, 0.3) or names[:3]
    found = dict.fromkeys(site.kind for site in named)
    what = " or ".join(f"{kind}-" if kind != "joint" else "joint" for kind in found) or "such"
    return f"layer {text!r} matches no {what} attention; nearest: {', '.join(near) or 'none'}"


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
