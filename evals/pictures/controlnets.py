"""Load a ControlNet: shipped, from a folder or from the Hub; weights from safetensors only."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from regaze.evals import weights
from regaze.evals.pictures.parts import is_a
from regaze.evals.sandbox.video import CONTROLNETS, controlnet_path


def load(name: str, dtype: torch.dtype, folder: Path, index: Mapping[str, Any]) -> Any:
    """A ControlNet of the class that its settings name.

    Args:
        name: A shipped one, a folder, or a Hub id.
        dtype: The weights' dtype.
        folder: Folder of the pipeline that it is for.
        index: The components of that pipeline.

    Raises:
        ValueError: It can't be loaded, or was made for another model.
    """
    import diffusers

    where = controlnet_path(name) if name in CONTROLNETS else name
    kind: Any = diffusers.ControlNetModel
    try:
        weights.check_source(str(where))
        named = kind.load_config(where).get("_class_name", kind.__name__)
        kind = getattr(diffusers, str(named), None)
        if not is_a(kind, diffusers.ModelMixin):
            raise ValueError(f"its config.json names {named!r}, which is no model of diffusers")
        with warnings.catch_warnings():
            # The newer name of this argument is one that older versions ignore silently.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*")
            net, info = kind.from_pretrained(
                where, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        weights.check_loaded(name, info)
    except Exception as error:  # whatever a damaged folder makes its loader raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        near = get_close_matches(name, CONTROLNETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{CONTROLNETS[0]} is the shipped one;"
        hint = "" if Path(name).is_dir() else f"{hint} "
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot load the ControlNet {name}: {hint}{said}") from error
    if ("unet" in index) != (kind is diffusers.ControlNetModel):
        raise ValueError(f"{name} is a {kind.__name__}, which a {index['_class_name']} can't use")
    if "unet" in index:
        unet = weights.read_object(folder / "unet" / "config.json")
        own, needed = net.config["cross_attention_dim"], unet.get("cross_attention_dim")
        if own != needed:
            raise ValueError(
                f"the ControlNet {name} was made for another model: it reads text of width {own}, "
                f"and this U-Net of width {needed}"
            )
    return net


def digest(module: torch.nn.Module) -> str:
    """A hash of a module's weights as they were loaded."""
    total = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
