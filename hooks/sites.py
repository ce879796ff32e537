"""The sites of a text tower: one per layer whose attention goes over all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

Kind = Literal["full", "sliding", "chunked"]

# What configs call the layers of a tower, and what that means here: None doesn't attend.
_KINDS: dict[str, Kind | None] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": None,
    "conv": None,
    "moe": None,
    "mlp": None,
}
# What configs and attention modules call the width of a window.
_WINDOWS: dict[Kind, tuple[str, ...]] = {
    "full": (),
    "sliding": ("sliding_window", "sliding_window_size", "local_attention", "attention_window"),
    "chunked": ("attention_chunk_size", "chunk_size"),
}
_ATTENTIONS = ("self_attn", "self_attention", "attn", "attention", "mixer")


@dataclass(frozen=True)
class Site:
    """The attention of one layer.

    Attributes:
        layer: Index of the decoder layer.
        path: Path of its attention module, from the tower.
        kind: Extent of what a row sees: all columns before it, those in a window that slides with
            it, or those of its own chunk.
        window: Columns of the window or chunk; None if ``kind`` is "full".
        kv_layer: Layer whose keys and values it attends to; an earlier one where layers share them.
    """

    layer: int
    path: str
    kind: Kind
    window: int | None
    kv_layer: int

    @property
    def shares_kv(self) -> bool:
        """True if the layer attends to keys and values of an earlier one."""
        return self.kv_layer != self.layer


def find_sites(tower: Any) -> tuple[Site, ...]:
    """The attending layers of a text tower.

    Raises:
        ValueError: A kind of layer that isn't known, or a window without width.
        TypeError: A layer that should attend has no attention module.
    """
    config = tower.config
    types: Sequence[str] | None = getattr(config, "layer_types", None)
    if types is not None and len(types) < len(tower.layers):
        raise ValueError(
            f"{type(tower).__name__} has {len(tower.layers)} layers, but its config's layer_types "
            f"name {len(types)}"
        )
    found = []
    for index, layer in enumerate(tower.layers):
        kind = _declared(config) if types is None else _kind(type(tower).__name__, types[index])
        if kind is None:
            continue
        name = next((n for n in _ATTENTIONS if isinstance(getattr(layer, n, None), nn.Module)), "")
        if not name:
            raise TypeError(
                f"layer {index} of {type(tower).__name__} has no attention module that regaze "
                f"knows ({', '.join(_ATTENTIONS)}): it can't be attached to"
            )
        found.append(_site(index, name, kind, getattr(layer, name), config))
    if not found:
        raise ValueError(f"no layer of {type(tower).__name__} attends")
    return _share(found, config)


def _declared(config: Any) -> Kind:
    """The kind of all layers of a tower whose config doesn't tell them apart."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding"
    return "chunked" if getattr(config, "attention_chunk_size", None) is not None else "full"


def _kind(tower: str, name: str) -> Kind | None:
    if name not in _KINDS:
        raise ValueError(
            f"{tower} has layers of a kind that regaze can't edit exactly: {name!r} (it can: "
            f"{', '.join(n for n, kind in _KINDS.items() if kind)})"
        )
    return _KINDS[name]


def _site(index: int, name: str, kind: Kind, module: nn.Module, config: Any) -> Site:
    window = None
    if kind != "full":
        widths = (getattr(o, n, None) for n in _WINDOWS[kind] for o in (module, config))
        window = next((int(w) for w in widths if isinstance(w, int)), None)
        if window is None:
            raise ValueError(
                f"layer {index} ({type(module).__name__}) is {kind}, but neither it nor its "
                f"config says how wide ({', '.join(_WINDOWS[kind])})"
            )
    return Site(index, f"layers.{index}.{name}", kind, window, index)


def _share(sites: list[Site], config: Any) -> tuple[Site, ...]:
    """The sites with the layers whose keys and values they use: the last own ones of a kind."""
    first = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", None) or 0)
    makers = {site.kind: site.layer for site in sites if site.layer < first}
    return tuple(s if s.layer < first else replace(s, kv_layer=makers[s.kind]) for s in sites)


def rescales_beyond(config: Any) -> int | None:
    """Columns beyond which a tower's rotary angles depend on a prompt's length, if they do."""
    given = getattr(config, "rope_parameters", None) or {}
    settings = [given] if "rope_type" in given else [s for s in given.values() if s]
    most = [
        setting.get("original_max_position_embeddings") or config.max_position_embeddings
        for setting in settings
        if isinstance(setting, dict) and setting.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(most, default=None)


def counts_beyond(config: Any) -> int | None:
    """Columns beyond which a tower scales queries by its own count of columns, if it does."""
    counts = getattr(config, "attn_temperature_tuning", False)
    return int(config.floor_scale) - 1 if counts else None
