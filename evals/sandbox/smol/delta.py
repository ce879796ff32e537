"""The shipped weights: a projector and low-rank updates of the language model's attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from regaze.evals.runs.files import replacing

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The linear layers of every attention module that are updated."""
VERSION = 2
"""The layout's version. In the second, a tensor is stored as two planes, of all its low bytes and
of all its high ones, (2, ...): a packed file is then 4 % smaller."""


@dataclass(frozen=True)
class About:
    """A delta's origin.

    Attributes:
        rank: Rank of the updates.
        scale: Factor of ``B @ A``.
        seed: Seed of the training.
        steps: Taken in training.
        version: Version of this file's layout.
    """

    rank: int
    scale: float
    seed: int
    steps: int
    version: int = VERSION


@dataclass(frozen=True)
class Delta:
    """Weights that turn the parts into a model that sees.

    Attributes:
        tensors: ``projector.linear_1.weight`` and the like, named as in
            `FastVlmMultiModalProjector`, and for layer l and each target t ``lora.l.t.A``
            (rank, in) and ``lora.l.t.B`` (out, rank).
        about: The delta's origin.
    """

    tensors: Mapping[str, Tensor]
    about: About


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta as float16, a whole file or none."""
    planes = {name: _split(x.detach().half()) for name, x in delta.tensors.items()}
    about = {name: str(value) for name, value in asdict(delta.about).items()}
    with replacing(path) as temporary:
        save_file(planes, temporary, metadata=about)


def load_delta(path: Path) -> Delta:
    """Read a delta.

    Raises:
        ValueError: Its metadata are missing, or it has another layout.
    """
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
        planes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    missing = [field.name for field in fields(About) if field.name not in said]
    if missing:
        raise ValueError(f"{path} is no delta: its metadata lack {', '.join(missing)}")
    if int(said["version"]) != VERSION:
        raise ValueError(f"{path} has layout {said['version']}, and this regaze reads {VERSION}")
    about = About(
        rank=int(said["rank"]),
        scale=float(said["scale"]),
        seed=int(said["seed"]),
        steps=int(said["steps"]),
    )
    return Delta({name: _joined(x) for name, x in planes.items()}, about)


def _split(halves: Tensor) -> Tensor:
    """The bytes of a float16 tensor as planes: uint8, ``(2, ...)``."""
    each = halves.contiguous().view(torch.uint8).reshape(*halves.shape, 2)
    return each.movedim(-1, 0).contiguous()


def _joined(planes: Tensor) -> Tensor:
    """The float16 tensor that `_split` took apart."""
    return planes.movedim(0, -1).contiguous().view(torch.float16).squeeze(-1)


@torch.no_grad()
def merge(model: nn.Module, delta: Delta) -> None:
    """Put a delta's projector into a model and add its updates to the attention's weights.

    Args:
        model: A `FastVlmForConditionalGeneration`; changed.
        delta: As `save_delta` rounds it, or not yet rounded.

    Raises:
        ValueError: Its tensors aren't those of this model.
    """
    inner = model.get_submodule("model")
    weights = dict(inner.named_parameters())
    left = set(delta.tensors)
    for name, x in delta.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "projector":
            _place(weights, f"multi_modal_projector.{rest}", x.shape, name).copy_(x)
            left.discard(name)
        elif kind == "lora" and rest.endswith(".A"):
            other = f"{name[:-1]}B"
            if other not in delta.tensors:
                raise ValueError(f"the delta holds {name} without {other}")
            layer, target, _ = rest.split(".")
            b = delta.tensors[other].float()
            place = f"language_model.layers.{layer}.self_attn.{target}.weight"
            shape = torch.Size((b.shape[0], x.shape[1]))
            _place(weights, place, shape, name).add_(b @ x.float(), alpha=delta.about.scale)
            left -= {name, other}
    if left:
        raise ValueError(f"the delta's {min(left)} has no place in the model")


def _place(weights: Mapping[str, Tensor], name: str, shape: torch.Size, of: str) -> Tensor:
    found = weights.get(name)
    if found is None or found.shape != shape:
        has = "no such weight" if found is None else f"the shape {tuple(found.shape)}"
        raise ValueError(f"the delta's {of} is for {name} of {tuple(shape)}; the model has {has}")
    return found
