"""Load a vision-language model and its processor: embedded, from a folder or from the Hub.

Weights are read from safetensors only and no code from a model's folder is run, so an unknown
model can't execute anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from regaze.evals import devices, sandbox, weights
from regaze.evals.errors import first_line
from regaze.evals.runs.files import digest
from regaze.evals.sandbox import smol
from regaze.evals.sandbox.video import PIPELINES

_LOADABLE = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# Second copies of the weights in other layouts.
_DUPLICATES = ["consolidated*", "original/*"]


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        model: In evaluation mode, on its device.
        processor: The model's processor, with a chat template.
        identity: Facts that tell this model from others, JSON-able: name, revision, weights' hash.
        notes: Remarks for its user, a line each: weights that are left out.
    """

    model: PreTrainedModel
    processor: Any
    identity: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def load(
    name: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> Loaded:
    """Load a model by name.

    Args:
        name: ``sandbox`` or ``sandbox-plain``, ``smol`` or ``smol-twin`` once fetched, a folder, or
            a Hub id with an optional ``@revision``.
        dtype: A torch dtype's name, or ``auto`` for the checkpoint's own. Default: float32 on the
            CPU, ``auto`` elsewhere.
        device: Default: the first GPU, else the CPU.
        device_map: Spread the model over devices, e.g. ``auto``; excludes ``device``.
        attn_implementation: ``sdpa``, ``eager``, ...; default: transformers' choice.

    Raises:
        ValueError: No such model, no safetensors in it, weights that are missing, code of its own,
            an unknown dtype or device, or no chat template.
    """
    if device is not None and device_map is not None:
        raise ValueError("--device and --device-map exclude each other: give one of them")
    check_name(name)
    folder = _folder(name)
    files = _files(folder, name)
    has_gpu = torch.cuda.is_available()
    device = devices.device(device)
    on_cpu = not has_gpu if device_map is not None else device == "cpu"
    named = ("float32" if on_cpu else "auto") if dtype is None else dtype
    chosen = named if named == "auto" else devices.dtype(named, "auto")
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        loader: Any = AutoModelForImageTextToText
        model, info = loader.from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=chosen,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
        )
        note = weights.check_loaded(name, info)
        if device_map is None:
            nn.Module.to(model, device)
    except Exception as error:  # whatever a damaged folder makes its many readers raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(_unloadable(name, error)) from error
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{name} has no chat template, so there is no telling how to ask it: add the file "
            "chat_template.jinja to its folder"
        )
    return Loaded(model.eval(), processor, _identity(name, folder, files), (note,) if note else ())


def check_name(name: object) -> None:
    """Check that a model's name is one.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a model's name is text (a shipped one's, a folder or a Hub id), got a "
            f"{type(name).__name__}"
        )
    if not name.strip():
        raise ValueError("a model's name is missing: give a shipped one's, a folder or a Hub id")


def identify(model: PreTrainedModel) -> dict[str, Any]:
    """Identity of a model in memory: a hash of its weights as they are now.

    Raises:
        ValueError: Some weights aren't in memory (offloaded).
    """
    total = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(f"{key} is offloaded, so the model can't be hashed: pass `identity`")
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"name": type(model).__name__, "weights_sha256": total.hexdigest()}


def processor_settings(processor: Any) -> dict[str, Any]:
    """Everything of a processor that shapes a prompt, JSON-able; the tokenizer as a hash."""
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = tokenizer.get_vocab()
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        vocabulary = json.loads(backend.to_str())
        # What the last call happened to pad or cut is no setting.
        vocabulary.update(padding=None, truncation=None)
    return {
        "settings": json.loads(json.dumps(processor.to_dict(), default=str)),
        "chat_template": processor.chat_template,
        "tokenizer_sha256": digest(vocabulary),
    }


def _folder(name: str) -> Path:
    if sandbox.is_sandbox(name):
        return sandbox.model_path(name)
    if smol.is_smol(name):
        return smol.model_path(name)
    if Path(name).is_dir():
        return Path(name)
    if name in PIPELINES:
        raise ValueError(
            f"{name} paints: name a model that answers questions, such as {sandbox.MODELS[0]}"
        )
    repository, _, revision = name.partition("@")
    near = get_close_matches(name, (*sandbox.MODELS, *smol.MODELS), n=1)
    hint = (f"did you mean {near[0]}? There is " if near else "") + f"no folder {name!r} here, and"
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=_LOADABLE,
                ignore_patterns=_DUPLICATES,
            )
        )
    except HFValidationError as error:
        raise ValueError(
            f"{hint} it can't be a Hub id either (those look like owner/name); the models that "
            f"ship with regaze are {' and '.join(sandbox.MODELS)}"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, RepositoryNotFoundError):
            raise ValueError(f"{hint} the Hub knows no such public model either") from error
        raise ValueError(
            f"{hint} it can't be had from the Hub (offline, and not in the local cache): check "
            f"the spelling or the connection, or use --model {sandbox.MODELS[0]}"
        ) from error


def _files(folder: Path, name: str) -> list[Path]:
    """The files that tell the model from others: its config, its weights and their indexes."""
    config = folder / "config.json"
    if not config.exists():
        raise ValueError(f"{name} is not a model's folder: it has no config.json")
    weights.check_folder(folder, name)
    chosen = weights.read_object(config).get("transformers_weights")
    if chosen is not None and Path(str(chosen)).name != chosen:
        raise ValueError(f"{config} takes weights from {chosen!r}, which is no file of that folder")
    # The config counts too: another rope scaling is another model.
    return [config, *sorted(folder.glob("*.safetensors")), *weights.indexes(folder)]


def _identity(name: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    revision = folder.name if folder.parent.name == "snapshots" else None
    named = sandbox.is_sandbox(name) or smol.is_smol(name)
    local = not named and revision is None
    return {
        "name": str(Path(name).resolve()) if local else name.partition("@")[0],
        "revision": revision,
        "weights_sha256": weights.sha256(files),
    }


def _unloadable(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings code of its own, which regaze doesn't run: use a model of a type that "
            "transformers knows"
        )
    said = first_line(error)
    return said if said.startswith(name) else f"cannot load {name}: {said}"
