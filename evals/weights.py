"""Weights as files: which a model's folder may hold, and whether they were all that it needs.

A checkpoint that lacks tensors loads all the same, with random numbers in their place, and an index
may name any file as a shard, a pickle included. Both are refused here, for models, pipelines'
parts and scorers alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_INDEXES = "*.safetensors.index*.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: It holds something else, or can't be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object with settings")
    return found


def indexes(folder: Path) -> list[Path]:
    """The indexes of sharded weights in a folder."""
    return sorted(folder.glob(_INDEXES))


def shards(index: Path, *, here: bool = True) -> list[Path]:
    """The files that an index names.

    Args:
        index: The JSON file that says which tensor is in which file.
        here: True if the files must be there by now.

    Raises:
        ValueError: It names something else than safetensors beside it, or a file that isn't there.
    """
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{index} is no index of weights: it has no weight_map")
    found = []
    for name in sorted({str(name) for name in names.values()}):
        path = index.parent / name
        if Path(name).name != name or "\\" in name or path.suffix != ".safetensors":
            raise ValueError(
                f"{index} names {name!r} as a file of weights; regaze reads safetensors files of "
                "the same folder only: convert the model once with save_pretrained in an "
                "environment you trust"
            )
        if here and not path.is_file():
            raise ValueError(f"{index} names {name}, which isn't there: copy or download it again")
        found.append(path)
    return found


def check_folder(folder: Path, name: str) -> None:
    """Check that nothing but whole safetensors of a folder would be read.

    Args:
        folder: A model's folder.
        name: The folder's name in messages.

    Raises:
        ValueError: It holds pickles only, an index that names other files, or an adapter.
    """
    adapter = next((one for one in _ADAPTERS if (folder / one).exists()), None)
    if adapter:
        raise ValueError(
            f"{name} holds an adapter ({adapter}), which would be left out: merge it into the "
            "weights once (merge_and_unload in peft, fuse_lora in diffusers) and save them, or "
            "take the file out of the folder"
        )
    for index in indexes(folder):
        shards(index)
    if next(folder.glob("*.safetensors"), None) is None:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"only {pickles[0]}, a pickle, which could run code" if pickles else "no weights"
        raise ValueError(
            f"{name} holds {found}; regaze reads safetensors only: convert it once with "
            "save_pretrained in an environment you trust"
        )


def check_source(name: str) -> None:
    """`check_folder`, or for a Hub id that its indexes name safetensors only.

    Args:
        name: A folder or a Hub id.

    Raises:
        ValueError: See `check_folder`.
        OSError: The Hub can't be reached, or knows no such model.
    """
    if Path(name).is_dir():
        check_folder(Path(name), name)
        return
    for index in indexes(Path(snapshot_download(name, allow_patterns=["*.json"]))):
        shards(index, here=False)


def check_loaded(name: str, info: Mapping[str, Any]) -> str:
    """Check that every weight of a model came from its files.

    Args:
        name: The model's name for messages.
        info: The report of ``from_pretrained(..., output_loading_info=True)``.

    Returns:
        What to tell the user: files may hold more than the model has a place for; else "".

    Raises:
        ValueError: Weights are missing, or have another shape.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {_counted(missing)}, which would be random numbers: its weights are not "
            "those of its config.json; copy or download the folder again"
        )
    other = sorted(str(key[0]) for key in info["mismatched_keys"])
    if other:
        raise ValueError(
            f"{name} holds {_counted(other)} in another shape than its config.json says"
        )
    surplus = sorted(info["unexpected_keys"])
    if not surplus:
        return ""
    return f"{name} holds {_counted(surplus)} that its config.json has no place for: left out"


def sha256(files: Iterable[Path], root: Path | None = None) -> str:
    """A hash of files' contents, and of their names below ``root`` where one is given."""
    total = hashlib.sha256()
    for path in files:
        if root is not None:
            total.update(f"{path.relative_to(root)}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def _counted(names: Collection[str]) -> str:
    first = next(iter(names))
    return f"{len(names)} weights ({first}, ...)" if len(names) > 1 else f"the weight {first}"
