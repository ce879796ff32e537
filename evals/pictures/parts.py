"""A pipeline's parts: of diffusers' and transformers' own classes, loaded with all their weights.

diffusers loads parts itself, but doesn't say whether their weights were all there, and the index of
a pipeline may name any class of any library. So the models among the parts are loaded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from regaze.evals import weights

# In older pipelines' indexes; diffusers knows it, too.
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


def classes(path: Path, index: Mapping[str, Any], name: str) -> dict[str, type]:
    """The class of each part that an index names.

    Args:
        path: Path of the index, ``model_index.json``.
        index: The parts that the pipeline's ``model_index.json`` names.
        name: The pipeline's name.

    Raises:
        ValueError: It names code of its own, another library's class, a class that isn't there, or
            a part that has no folder.
    """
    import diffusers

    folder = path.parent
    own = next((file for part in index for file in sorted((folder / part).glob("*.py"))), None)
    kind = index.get("_class_name")
    if own or not isinstance(kind, str):
        raise ValueError(
            f"{name} brings code of its own ({own or kind}), which regaze doesn't run: use a "
            "pipeline made of diffusers' own classes"
        )
    if not is_a(getattr(diffusers, kind, None), diffusers.DiffusionPipeline):
        raise ValueError(f"{path} names {kind!r}, which is no pipeline of this diffusers")
    found = {}
    for part, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue  # a setting of the pipeline, or a part that it was saved without
        if not part.isidentifier() or not (folder / part).is_dir():
            raise ValueError(f"{path} names the part {part!r}, which has no folder beside it")
        found[part] = _class(value, f"{path}: {part}")
    return found


def load(
    folder: Path, kinds: Mapping[str, type], dtype: torch.dtype, variant: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load the models among a pipeline's parts.

    Args:
        folder: The pipeline's folder.
        kinds: The class of each part.
        dtype: The weights' dtype.
        variant: The copy of the weights to read, where there are several.

    Returns:
        The models by their parts' names, and notes on them for the user.

    Raises:
        ValueError: Weights are missing.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    models, notes = {}, []
    for part, kind in kinds.items():
        if not issubclass(kind, ModelMixin | PreTrainedModel):
            continue
        named = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
        files = of_variant((folder / part).glob("*"), variant)
        loader: Any = kind
        models[part], info = loader.from_pretrained(
            folder / part,
            use_safetensors=True,
            variant=variant if files else None,
            output_loading_info=True,
            **named,
        )
        notes.append(weights.check_loaded(f"{folder.name}/{part}", info))
    return models, tuple(note for note in notes if note)


def of_variant(files: Iterable[Path], variant: str | None) -> list[Path]:
    """The files that are of a variant, such as ``model.fp16.safetensors``."""
    return sorted(path for path in files if variant and f".{variant}." in path.name)


def _class(value: list[Any], where: str) -> type:
    """A plain class of diffusers, of one of its pipelines, or of transformers."""
    import diffusers
    import transformers

    library, kind = (*value, None, None)[:2]
    if not (isinstance(library, str) and isinstance(kind, str)) or len(value) != 2:
        raise ValueError(f"{where} must be a library and a class, got {value}")
    found: Any = None
    pipelines = Path(diffusers.__file__).parent / "pipelines"
    if library in ("diffusers", "transformers"):
        own = {"diffusers": diffusers, "transformers": transformers}[library]
        found = getattr(own, _RENAMED.get(kind, kind), None)
    elif library.isidentifier() and (pipelines / library).is_dir():
        found = getattr(getattr(diffusers.pipelines, library, None), kind, None)
    else:
        raise ValueError(
            f"{where} is of the library {library!r}; regaze runs no code but diffusers' and "
            "transformers' own"
        )
    # An Auto class takes what the part's own settings name.
    auto = kind.startswith("Auto" if library == "transformers" else ("AutoModel", "AutoPipeline"))
    if not isinstance(found, type) or auto:
        raise ValueError(f"{where} names {kind!r}, which is no plain class of {library}")
    return found


def is_a(found: Any, kind: type) -> bool:
    """True of a class of a kind."""
    return isinstance(found, type) and issubclass(found, kind)
