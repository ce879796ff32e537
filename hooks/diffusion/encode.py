"""Further prompts for a denoiser: by the pipeline's own encoders, or embeddings kept in files."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.checks import reason
from regaze.hooks.diffusion.running import variables_of

POOLED: Mapping[str, int | None] = {
    "UNet2DConditionModel": None,
    "UNetMotionModel": None,
    "WanTransformer3DModel": None,
    "SD3Transformer2DModel": 2,
    "FluxTransformer2DModel": 1,
}
"""The place of the pooled text that a denoiser needs, by its class, among what its pipelines'
``encode_prompt`` returns; the text stream comes first. Read off diffusers 0.42."""

_ALIKE: Mapping[str, Any] = {}
_SETTINGS = ("device", "max_sequence_length", "clip_skip", "lora_scale")


@dataclass(frozen=True)
class Encoded:
    """Prompts as a denoiser is given them.

    Attributes:
        text: "P L C", the text stream of each.
        pooled: "P D", where the denoiser takes it.
    """

    text: Tensor
    pooled: Tensor | None = None


def encode(
    pipeline: Any, denoiser: str, prompts: Sequence[str], others: Mapping[str, Any] = _ALIKE
) -> Encoded:
    """Encode prompts as a running pipeline encodes its own.

    Args:
        pipeline: The pipeline, with its text encoders.
        denoiser: The class of its denoiser, one of `POOLED`.
        prompts: Prompts to encode.
        others: Texts that further encoders read in their place, as arguments of ``encode_prompt``.

    Raises:
        ValueError: It has no text encoder.
    """
    parts = [n for n in pipeline.components if n.startswith("text_encoder")]
    if all(getattr(pipeline, name) is None for name in parts):
        raise ValueError(
            f"this {type(pipeline).__name__} has no text encoder to read {prompts[0]!r} with; give "
            "embeddings"
        )
    taken = inspect.signature(pipeline.encode_prompt).parameters
    variables = variables_of(pipeline)
    settings = {n: variables[n] for n in _SETTINGS if n in taken and n in variables}
    for name in ("prompt_2", "prompt_3"):
        if name in taken:
            given = others.get(name)
            settings[name] = [given] * len(prompts) if isinstance(given, str) else given
    settings |= {n: 1 for n in ("num_images_per_prompt", "num_videos_per_prompt") if n in taken}
    if "do_classifier_free_guidance" in taken:
        settings["do_classifier_free_guidance"] = False
    with torch.no_grad():
        found = pipeline.encode_prompt(prompt=list(prompts), **settings)
    place = POOLED[denoiser]
    return Encoded(found[0], None if place is None else found[place])


def read(method: str, path: str) -> Encoded:
    """Read a method's embeddings from a safetensors file with "text" and maybe "pooled".

    Raises:
        ValueError: It can't be read, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{method}: embeddings {path!r} can't be read: {reason(error)}") from None
    text, pooled = found.get("text"), found.get("pooled")
    if text is None or text.ndim != 3 or (pooled is not None and pooled.ndim != 2):
        shapes = {name: tuple(x.shape) for name, x in found.items()}
        raise ValueError(
            f'{method}: {path} must hold "text" (prompts, tokens, size) and maybe "pooled" '
            f"(prompts, size); it holds {shapes}"
        )
    return Encoded(text, pooled)


def keep(embeddings: Mapping[str, Tensor]) -> Path:
    """Keep embeddings in the cache, ``$XDG_CACHE_HOME/regaze/text``, and return their path.

    The name is the hash of their contents, so that a path stands for one text for good.
    """
    from safetensors.torch import save

    found = {n: x.detach().cpu().contiguous() for n, x in sorted(embeddings.items())}
    data = save(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "regaze" / "text" / f"{hashlib.sha256(data).hexdigest()[:20]}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)
    return path


def rows_of(x: Tensor, rows: int, like: Tensor, what: str) -> Tensor:
    """Prompts' embeddings for the rows of a batch, each prompt's one after the other.

    Args:
        x: One prompt's for all, or one for each of P prompts.
        rows: Number of rows of one branch.
        like: A tensor with their device, dtype and size.
        what: Their name in messages.

    Raises:
        ValueError: The rows aren't a multiple of the prompts, or they are of another size.
    """
    if rows % len(x):
        raise ValueError(f"{what} are of {len(x)} prompts, and the batch holds {rows} samples")
    if x.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"{what} are of size {x.shape[-1]}, and this denoiser's text is of size "
            f"{like.shape[-1]}"
        )
    return x.to(like).repeat_interleave(rows // len(x), 0)
