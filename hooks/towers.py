"""Finding a model's text tower and the token ids that stand for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from regaze.hooks.edits import TowerInfo
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


def find_tower(model: nn.Module, processor: Any = None) -> TowerInfo:
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
    return TowerInfo(
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


def image_tokens(info: TowerInfo) -> ImageTokens:
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
