"""What an intervention is attached to: a model, its text tower, and its image tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regaze.hooks.grids import columns_per_image
from regaze.hooks.tokens import ImageTokens

# What model configs call the ids of image and video placeholders.
_IMAGE_ID_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# Configs with one of these send the image through learned queries: columns, but not patches.
_RESAMPLERS = ("qformer_config", "perceiver_config")
# Structure inside an image, by the names processors give it: row ends (Mistral3), tiles (Idefics3).
_FENCE, _FIRST_TILE = "<fake_token_around_image>", "<row_1_col_1>"
_INSIDE = (
    "[IMG_BREAK]",
    "<global-img>",
    _FENCE,
    *(f"<row_{row}_col_{column}>" for row in range(1, 11) for column in range(1, 11)),
)
_BREAKS = ("\n", "\n\n", "\u010a", "\u010a\u010a", "<0x0A>")


@dataclass(frozen=True)
class Host:
    """Facts about a model's text tower that specs are checked against.

    Attributes:
        model: The model that was attached to.
        tower: Its text decoder, the module with ``.layers``.
        processor: The processor or tokenizer, if the caller gave one.
        model_type: The config's ``model_type``.
        n_layers: Decoder layers.
        n_heads: Query heads per layer.
        n_kv_heads: Key/value heads per layer.
        hidden_size: Width of the residual stream.
        image_columns: Whether image patches are columns of the tower's self-attention. False for
            Q-Former outputs (resampled: no patch behind a column) and cross-attention models.
        image_ids: Token ids that stand for image or video features.
    """

    model: nn.Module
    tower: nn.Module
    processor: Any
    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_size: int
    image_columns: bool
    image_ids: frozenset[int]


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


def find_host(model: nn.Module, processor: Any = None) -> Host:
    """Describe the text decoder of a transformers model.

    Raises:
        TypeError: No decoder whose attention goes through transformers' attention interface.
    """
    tower = _decoder(model)
    config: Any = tower.config
    heads = config.num_attention_heads
    top: Any = getattr(model, "config", config)
    ids = {getattr(top, name, None) for name in _IMAGE_ID_FIELDS}
    image_ids = frozenset(int(i) for i in ids if i is not None)
    crosses = any(hasattr(layer, "cross_attn") for layer in tower.layers)  # type: ignore[union-attr]
    resampled = any(getattr(top, name, None) is not None for name in _RESAMPLERS)
    return Host(
        model=model,
        tower=tower,
        processor=processor,
        model_type=str(getattr(top, "model_type", type(model).__name__)),
        n_layers=len(tower.layers),  # type: ignore[arg-type]
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        hidden_size=config.hidden_size,
        image_columns=bool(image_ids) and not crosses and not resampled,
        image_ids=frozenset() if crosses else image_ids,
    )


def _decoder(model: nn.Module) -> nn.Module:
    module: Any = model
    # Wrappers nest: ForConditionalGeneration > Model > language model for causal LM > decoder.
    for _ in range(4):
        if hasattr(module, "layers") and hasattr(module.layers[0], "self_attn"):
            return module  # type: ignore[no-any-return]
        inner = module.get_decoder() if hasattr(module, "get_decoder") else None
        if inner is None or inner is module:
            inner = getattr(module, "model", None)
        if inner is None:
            break
        module = inner
    raise TypeError(
        f"{type(model).__name__} has no text decoder that regaze knows (a module with .layers, "
        "each with .self_attn): it can't be attached to"
    )


def image_tokens(info: Host) -> ImageTokens:
    """Which token ids are images, and what stands inside them, from config and tokenizer."""
    per_image = columns_per_image(getattr(info.model, "config", None))
    tokenizer = getattr(info.processor, "tokenizer", info.processor)
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return ImageTokens(info.image_ids, per_image=per_image)
    unknown = getattr(tokenizer, "unk_token_id", None)

    def ids(names: Sequence[str]) -> list[int | None]:
        found = tokenizer.convert_tokens_to_ids(list(names))
        return [None if i == unknown else i for i in found]

    return ImageTokens(
        image=info.image_ids,
        inside=frozenset(i for i in ids(_INSIDE) if i is not None),
        breaks=frozenset(i for i in ids(_BREAKS) if i is not None),
        fence=ids([_FENCE])[0],
        first_tile=ids([_FIRST_TILE])[0],
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
