"""Load a diffusers pipeline: embedded, from a folder or from the Hub.

Weights are read from safetensors only and no code from a model's folder is run, so an unknown
model can't execute anything.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from regaze.evals import devices, sandbox, weights
from regaze.evals.asking.models import check_name
from regaze.evals.errors import first_line
from regaze.evals.pictures import controlnets, parts
from regaze.evals.sandbox import smol
from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.video import FRAMES, MOVING, PIPELINES, motion_path
from regaze.hooks.diffusion.families import DENOISERS

Offload = Literal["none", "model", "sequential"]

_INDEX = "model_index.json"
_PAINTER = {"num_inference_steps": 25, "guidance_scale": 3.0}
# The MM-DiT's third text encoder says nothing; once is enough.
_ARGUMENTS = {
    "painter-unet": _PAINTER,
    "painter-mmdit": {**_PAINTER, "max_sequence_length": 16},
    "painter-motion": {**_PAINTER, "num_frames": FRAMES},
}


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline that is ready to paint.

    Attributes:
        pipeline: A diffusers pipeline on its device, its own progress bars off.
        identity: Facts that tell it from any other, JSON-able: name, revision, weights' hash.
        arguments: Arguments of its call, where its own defaults are made for larger models.
        notes: Remarks for its user, a line each: weights that are left out.
    """

    pipeline: Any
    identity: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The pipeline's name for readers."""
        return Path(self.identity["name"]).name

    @property
    def dtype(self) -> str:
        """The denoiser's dtype, e.g. ``float16``."""
        parts = (getattr(self.pipeline, name, None) for name in DENOISERS)
        found = next((part for part in parts if part is not None), self.pipeline)
        return str(found.dtype).removeprefix("torch.")


def load(
    name: str,
    *,
    controlnet: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    offload: Offload = "none",
    variant: str | None = None,
) -> LoadedPipeline:
    """Load a pipeline by name.

    Args:
        name: One of the shipped ones, a folder, or a Hub id with an optional ``@revision``.
        controlnet: A ControlNet to put on it: a shipped one, a folder, or a Hub id.
        dtype: A torch dtype's name. Default: float32 on the CPU, elsewhere the dtype in which
            the denoiser is stored.
        device: Default: the first GPU, else the CPU.
        offload: Keep in GPU memory the part at work (``model``) or the layer at work
            (``sequential``) only.
        variant: The copy of the weights to read, e.g. ``fp16``.

    Raises:
        ValueError: No such pipeline, no safetensors in it, weights that are missing, code of its
            own, an unknown dtype or device, or offloading without a GPU.
    """
    if offload not in get_args(Offload):
        raise ValueError(f"unknown offload {offload!r}: use {', '.join(get_args(Offload))}")
    check_name(name)
    device = devices.device(device)
    if offload != "none" and device == "cpu":
        raise ValueError("offloading moves parts of a pipeline to a GPU and back; there is no GPU")
    # Loading all of diffusers takes seconds, which other commands need not spend.
    from diffusers import (
        AnimateDiffPipeline,
        AutoPipelineForText2Image,
        DiffusionPipeline,
        MotionAdapter,
    )

    folder = _folder(name, variant)
    index = _index(folder, name)
    classes = parts.classes(folder / _INDEX, index, name)
    read = _weights(folder, classes, name, variant)
    # Components that a pipeline was saved without have to be named, some pipelines ask for them.
    given: dict[str, Any] = {key: None for key, value in index.items() if value == [None, None]}
    if dtype is not None:
        chosen = devices.dtype(dtype)
    else:
        chosen = torch.float32 if device == "cpu" else _stored(read)
    loader = DiffusionPipeline if controlnet is None else AutoPipelineForText2Image
    identity = _identity(name, folder, read)
    if name in MOVING:
        if controlnet is not None:
            raise ValueError(f"{name} can't be steered by a ControlNet; painter-unet can")
        loader, adapter = AnimateDiffPipeline, MotionAdapter.from_pretrained(motion_path(name))
        identity["motion_sha256"] = controlnets.digest(adapter)
        del given["safety_checker"]  # AnimateDiff's pipeline has none.
        given["motion_adapter"] = adapter.to(chosen)
    if controlnet is not None:
        net = controlnets.load(controlnet, chosen, folder, index)
        identity["controlnet"] = {"name": controlnet, "weights_sha256": controlnets.digest(net)}
        given["controlnet"] = net
    try:
        models, notes = parts.load(folder, classes, chosen, variant)
        with warnings.catch_warnings():
            # The newer name of this argument is one that older versions ignore silently.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*")
            pipeline = loader.from_pretrained(
                folder, torch_dtype=chosen, use_safetensors=True, variant=variant, **given, **models
            )
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except Exception as error:  # whatever a damaged folder makes its many loaders raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"cannot load {name}: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return LoadedPipeline(pipeline, identity, _ARGUMENTS.get(name, {}), notes)


def is_pipeline(model: str) -> bool:
    """True if a model is a diffusers pipeline: by name, by its folder, or by its files on the Hub.

    Raises:
        ValueError: The Hub can't be asked.
    """
    if model in PIPELINES or sandbox.is_sandbox(model) or smol.is_smol(model):
        return model in PIPELINES
    if Path(model).is_dir():
        return (Path(model) / "model_index.json").exists()
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = model.partition("@")
    try:
        return bool(file_exists(repository, "model_index.json", revision=revision or None))
    except HFValidationError:
        return False  # Loading it says what is wrong with the name.
    except OSError:
        return _in_cache(repository, revision)


def _in_cache(repository: str, revision: str) -> bool:
    """True if a pipeline of that name is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "model_index.json", revision=revision or None)
    return isinstance(found, str)


def _folder(name: str, variant: str | None) -> Path:
    if name in PIPELINES:
        return painter_path("painter-unet" if name in MOVING else name)
    if Path(name).is_dir():
        return Path(name)
    if sandbox.is_sandbox(name) or smol.is_smol(name):
        raise ValueError(
            f"{name} answers questions: name a pipeline that paints, such as {PIPELINES[0]}"
        )
    from diffusers import DiffusionPipeline

    repository, _, revision = name.partition("@")
    near = get_close_matches(name, PIPELINES, n=1)
    hint = (f"did you mean {near[0]}? There is " if near else "") + f"no folder {name!r} here, and"
    options = {"revision": revision or None, "variant": variant, "use_safetensors": True}
    try:
        return Path(DiffusionPipeline.download(repository, **options))
    except HFValidationError as error:
        raise ValueError(
            f"{hint} it can't be a Hub id either (those look like owner/name); the pipelines that "
            f"ship with regaze are {', '.join(PIPELINES)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{hint} the Hub knows no such public model either") from error
    except (OSError, ValueError) as error:
        # diffusers is long about a model that is not in the cache.
        why = first_line(error)
        why = "offline, and not in the local cache" if "not fully cached" in why else why
        raise ValueError(
            f"{hint} it can't be had from the Hub ({why}): check the spelling or the connection"
        ) from error


def _index(folder: Path, name: str) -> dict[str, Any]:
    """The parts that the pipeline is made of."""
    if not (folder / _INDEX).exists():
        kind = ": that is a model for regaze eval" if (folder / "config.json").exists() else ""
        raise ValueError(f"{name} is not a pipeline's folder: it has no {_INDEX}{kind}")
    return weights.read_object(folder / _INDEX)


def _weights(
    folder: Path, classes: Mapping[str, type], name: str, variant: str | None
) -> list[Path]:
    """The files of weights that may be read."""
    found = []
    for part in classes:
        files = sorted((folder / part).glob("*.safetensors"))
        chosen = parts.of_variant(files, variant)
        plain = [path for path in files if path.name.count(".") == 1]
        sharded = {path for one in weights.indexes(folder / part) for path in weights.shards(one)}
        found += sorted({*(chosen or plain or files), *sharded})
        pickles = sorted(p for p in (folder / part).glob("*") if p.suffix in weights.PICKLES)
        if pickles and not files:
            raise ValueError(
                f"{name} holds only {part}/{pickles[0].name}, a pickle, which could run code; "
                "regaze reads safetensors only: convert it once with save_pretrained in an "
                "environment you trust"
            )
    if not found:
        raise ValueError(f"{name} holds no weights: regaze reads *.safetensors in its components")
    return found


def _stored(weights: list[Path]) -> torch.dtype:
    """The dtype of most of the denoiser's weights, read from its file's header."""
    path = next((path for path in weights if path.parent.name in DENOISERS), weights[0])
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kinds = [value["dtype"] for key, value in header.items() if key != "__metadata__"]
    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    return names.get(max(set(kinds), key=kinds.count), torch.float32)


def _identity(name: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    # The settings count too: another scheduler makes other pictures.
    settings = sorted(folder.glob("*/*.json"))
    revision = folder.name if folder.parent.name == "snapshots" else None
    local = name not in PIPELINES and revision is None
    return {
        "name": str(Path(name).resolve()) if local else name.partition("@")[0],
        "revision": revision,
        "weights_sha256": weights.sha256([folder / _INDEX, *settings, *files], folder),
    }
