"""The host of an intervention: a model, its text tower, and its image tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from regaze.hooks.checks import shown
from regaze.hooks.families import (
    FAMILIES,
    Family,
    family_of,
    guess,
    model_type,
    unknown_family,
)
from regaze.hooks.pictures import Eye, find_eye
from regaze.hooks.sites import Site, find_sites
from regaze.hooks.tokens import ImageTokens

_BREAKS = ("\n", "\n\n", "\u010a", "\u010a\u010a", "<0x0A>")
Unknown = Literal["raise", "check"]


@dataclass(frozen=True)
class Host:
    """Facts about a model's text tower that specs are checked against.

    Attributes:
        model: The model that was attached to.
        tower: Text decoder of that model, the module with ``.layers``.
        processor: The processor or tokenizer, if the caller gave one.
        family: Facts about the family of the model.
        n_layers: Decoder layers.
        n_heads: Query heads per layer.
        n_kv_heads: Key/value heads per layer.
        hidden_size: Width of the residual stream.
        image_ids: Token ids that stand for image or video features.
        spans: True if the caller says where images are.
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
    spans: bool
    sites: tuple[Site, ...]

    @property
    def model_type(self) -> str:
        """The config's ``model_type``."""
        return self.family.model_type

    @property
    def image_columns(self) -> bool:
        """True if image patches are columns of the tower's self-attention."""
        return self.family.patches

    @property
    def known(self) -> bool:
        """True if the family is in the table; edits on others must be checked first."""
        return FAMILIES.get(self.model_type) is self.family

    @property
    def has_images(self) -> bool:
        """True if images have columns in the tower's sequence that can be found."""
        return bool(self.image_ids) or self.spans

    @property
    def recurrent(self) -> bool:
        """True if some layers carry a state from column to column (linear attention, convolution).

        What runs behind a prompt in the same row then sees the prompt there.
        """
        return len(self.sites) < self.n_layers

    @property
    def eye(self) -> Eye:
        """The vision tower.

        Raises:
            ValueError: It isn't known; the message says why.
        """
        return find_eye(self.model, self.family)

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


def find_host(
    model: nn.Module, processor: Any = None, *, unknown: Unknown = "raise", spans: bool = False
) -> Host:
    """Describe the text decoder of a transformers model.

    Args:
        model: The model.
        processor: Processor or tokenizer of the model.
        unknown: Policy for a model type that isn't in the table of families: "raise", or describe
            it as well as can be, for `regaze.hooks.checking.check_edits` to "check".
        spans: True if the caller says where images are, so that no token ids need tell. A language
            model alone can then be described, to be checked likewise.

    Raises:
        TypeError: No text decoder.
        ValueError: A family that isn't known or can't be edited, or image tokens that aren't
            known; the message says why and what to do.
    """
    if unknown not in ("raise", "check"):
        raise ValueError(f'unknown must be "raise" or "check", got {unknown!r}')
    top: Any = getattr(model, "config", None)
    if top is None:
        held = (name for name, part in model.named_modules() if hasattr(part, "generate"))
        inside = next(held, "")
        cure = f": attach to the one that it holds, target.{inside}" if inside else ""
        raise TypeError(
            f"{type(model).__name__} is no transformers model (it has no config), so it can't be "
            f"attached to{cure}"
        )
    family = family_of(top)
    if family is None:
        alone = top is not None and _is_text(top)
        if alone and not spans and unknown == "raise":
            raise ValueError(
                f"{type(model).__name__} is a language model alone, so no image tokens are known: "
                "attach to the whole vision-language model, or pass spans= (where images are)"
            )
        if unknown == "raise" and not alone:
            raise ValueError(unknown_family(model_type(top)))
        family = guess(top)
    tower = _decoder(model, family)
    config: Any = tower.config
    ids = {_field(top, name) for name in family.image_ids}
    sites = find_sites(tower)
    heads = {_of_layer(config, site.layer, "num_attention_heads") for site in sites}
    if len(heads) > 1:
        raise ValueError(
            f"the layers of this {family.title} have different numbers of heads "
            f"({', '.join(map(str, sorted(heads)))}), which no method allows for"
        )
    n_heads = heads.pop()
    return Host(
        model=model,
        tower=tower,
        processor=processor,
        family=family,
        n_layers=len(tower.layers),  # type: ignore[arg-type]
        n_heads=n_heads,
        n_kv_heads=_of_layer(config, sites[0].layer, "num_key_value_heads") or n_heads,
        hidden_size=config.hidden_size,
        image_ids=frozenset(int(i) for i in ids if i is not None),
        spans=spans,
        sites=sites,
    )


def find_text(model: nn.Module) -> tuple[nn.Module, frozenset[int]]:
    """The text decoder of any model and its image token ids, also where nothing can be attached.

    Returns:
        The decoder, and the ids; none where images enter otherwise, or it isn't known how.

    Raises:
        TypeError: No text decoder.
    """
    top: Any = getattr(model, "config", None)
    known = FAMILIES.get(model_type(top))
    family = known if known is not None and not known.refuse else guess(top)
    ids = {_field(top, name) for name in family.image_ids}
    refused = known is not None and known.refuse
    found = frozenset(int(i) for i in ids if i is not None and not refused)
    return _decoder(model, family), found


def _field(config: Any, path: str) -> Any:
    """A field of a config, or of a part of it: ``vision_config.image_token_id``."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _of_layer(config: Any, layer: int, name: str) -> Any:
    """A field of a tower's config, which may say it for each layer."""
    layers = getattr(config, "per_layer_config", None)
    return getattr(config if layers is None else layers[layer], name, None)


def _is_text(config: Any) -> bool:
    """Return whether a config is that of a language model alone."""
    return hasattr(config, "get_text_config") and config.get_text_config() is config


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
    """Read the token ids of images, and of what stands inside them, from config and tokenizer."""
    family = host.family
    config = getattr(host.model, "config", None)
    per_image = None if family.per_image is None else int(_field(config, family.per_image))
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
        TypeError: They are no list of whole numbers.
        ValueError: One doesn't exist.
    """
    try:
        indices = sorted({operator.index(i) for i in given})
    except TypeError as error:
        raise TypeError(f"{what}s must be a list of indices, got {shown(given)}") from error
    for index in indices:
        if not 0 <= index < size:
            raise ValueError(f"there is no {what} {index}: the model has {what}s 0 to {size - 1}")
    return indices
