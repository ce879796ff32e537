"""What an intervention is attached to: a model, its text tower, and its image tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from regaze.hooks.families import Family, family_of
from regaze.hooks.sites import Site, find_sites
from regaze.hooks.tokens import ImageTokens

_BREAKS = ("\n", "\n\n", "\u010a", "\u010a\u010a", "<0x0A>")
Unknown = Literal["raise", "check"]


@dataclass(frozen=True)
class Host:
    """Facts about a model's text tower that specs are checked against.

    Attributes:
        model: The model that was attached to.
        tower: Its text decoder, the module with ``.layers``.
        processor: The processor or tokenizer, if the caller gave one.
        family: What is known of its family.
        n_layers: Decoder layers.
        n_heads: Query heads per layer.
        n_kv_heads: Key/value heads per layer.
        hidden_size: Width of the residual stream.
        image_ids: Token ids that stand for image or video features; empty if ``spans`` do.
        sites: The layers that attend, in order. Other layers (linear attention, convolutions) let
            nothing be edited.
    """

    model: nn.Module
    tower: nn.Module
    processor: Any
    family: Family
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_size: int
    image_ids: frozenset[int]
    sites: tuple[Site, ...]

    @property
    def model_type(self) -> str:
        """The config's ``model_type``."""
        return self.family.model_type

    @property
    def image_columns(self) -> bool:
        """Whether image patches are columns of the tower's self-attention."""
        return self.family.patches

    @property
    def recurrent(self) -> bool:
        """Whether some layers carry a state from column to column (linear attention, convolution).

        What runs behind a prompt in the same row then sees the prompt there.
        """
        return len(self.sites) < self.n_layers

    def site(self, layer: int) -> Site:
        """The site of a layer.

        Raises:
            ValueError: The layer doesn't attend, or doesn't exist.
        """
        for site in self.sites:
            if site.layer == layer:
                return site
        attending = ", ".join(str(site.layer) for site in self.sites)
        raise ValueError(
            f"layer {layer} of this {self.model_type} has no attention to edit; these have: "
            f"{attending}"
        )

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a layer.

        Raises:
            ValueError: The layer doesn't attend, or doesn't exist.
        """
        return self.tower.get_submodule(self.site(layer).path)


def split_target(target: Any, processor: Any = None) -> tuple[nn.Module, Any]:
    """The model and processor behind what a user attaches to: a model or a transformers pipeline.

    Raises:
        TypeError: Neither; the message says what is expected.
    """
    if isinstance(target, nn.Module):
        # torch.compile wraps the model; its modules are the original's.
        return getattr(target, "_orig_mod", target), processor
    model = getattr(target, "model", None)
    if isinstance(model, nn.Module):
        own = getattr(target, "processor", None) or getattr(target, "tokenizer", None)
        return model, processor or own
    raise TypeError(
        f"attach needs a transformers model or pipeline, got {type(target).__name__}; load one "
        "with AutoModelForImageTextToText.from_pretrained(...)"
    )


def find_host(model: nn.Module, processor: Any = None, *, unknown: Unknown = "raise") -> Host:
    """Describe the text decoder of a transformers model.

    Args:
        model: The model.
        processor: Its processor or tokenizer.
        unknown: What to do with a model type that isn't in the table of families: "raise", or
            "check" on the spot whether an edit is exact there.

    Raises:
        TypeError: No decoder whose attention goes through transformers' attention interface.
        ValueError: A family that isn't known or can't be edited; the message says why.
    """
    top: Any = getattr(model, "config", None)
    family = family_of(top)
    tower = _decoder(model, family)
    config: Any = tower.config
    heads = config.num_attention_heads
    ids = {_field(top, name) for name in family.image_ids}
    return Host(
        model=model,
        tower=tower,
        processor=processor,
        family=family,
        n_layers=len(tower.layers),  # type: ignore[arg-type]
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        hidden_size=config.hidden_size,
        image_ids=frozenset(int(i) for i in ids if i is not None),
        sites=find_sites(tower),
    )


def _field(config: Any, path: str) -> Any:
    """A field of a config, or of a part of it: ``vision_config.image_token_id``."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _decoder(model: nn.Module, family: Family) -> nn.Module:
    if family.tower is not None:
        return model.get_submodule(family.tower)
    module: Any = model
    # Wrappers nest: ForConditionalGeneration > Model > language model for causal LM > decoder.
    for _ in range(4):
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            return module  # type: ignore[no-any-return]
        inner = module.get_decoder() if hasattr(module, "get_decoder") else None
        if inner is None or inner is module:
            inner = getattr(module, "model", None)
        if inner is None:
            break
        module = inner
    raise TypeError(
        f"{type(model).__name__} has no text decoder that regaze knows (a module with .layers): "
        "it can't be attached to"
    )


def image_tokens(host: Host) -> ImageTokens:
    """Which token ids are images, and what stands inside them, from config and tokenizer."""
    family = host.family
    per_image = family.per_image and _field(getattr(host.model, "config", None), family.per_image)
    tokenizer = getattr(host.processor, "tokenizer", host.processor)
    if not family.inside or not hasattr(tokenizer, "convert_tokens_to_ids"):
        return ImageTokens(host.image_ids, per_image=per_image)
    unknown = getattr(tokenizer, "unk_token_id", None)

    def ids(names: Sequence[str | None]) -> list[int | None]:
        found = tokenizer.convert_tokens_to_ids([name or "" for name in names])
        return [i if name and i != unknown else None for name, i in zip(names, found, strict=True)]

    return ImageTokens(
        image=host.image_ids,
        inside=frozenset(i for i in ids(family.inside) if i is not None),
        breaks=frozenset(i for i in ids(_BREAKS) if i is not None),
        fence=ids([family.fence])[0],
        first_tile=ids([family.first_tile])[0],
        per_image=per_image,
    )


def check_layers(given: Iterable[int], size: int, what: str) -> list[int]:
    """Check indices of layers or heads.

    Raises:
        ValueError: One doesn't exist.
    """
    indices = sorted({int(i) for i in given})
    for index in indices:
        if not 0 <= index < size:
            raise ValueError(f"there is no {what} {index}: the model has {what}s 0 to {size - 1}")
    return indices
