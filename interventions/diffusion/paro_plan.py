"""PAROAttention's calibration as a file, and the orders of tokens that it chooses from.

A plan is one safetensors file: ``{site}`` holds the blocks of that layer, "groups heads bytes"
uint8, eight blocks a byte; its metadata say which order each head has, of which model it is, and
for which size of clip and number of steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.hooks.diffusion.blocks import Blocks
from regaze.hooks.diffusion.conventions import defining
from regaze.hooks.diffusion.host import Host

FORMAT = "regaze paro 1"
ORDERS = ("fhw", "fwh", "hfw", "hwf", "wfh", "whf")
"""Axes of a clip's tokens, the slowest first."""
_SAMPLE = 16
_CLOSE = 0.02
"""The most that a weight may be off in another dtype, as a share of the largest."""


@dataclass(frozen=True)
class Identity:
    """The identity of the denoiser that a calibration is of.

    Attributes:
        model: Name of its class.
        config: SHA-256 of its config.
        weights: A few numbers of its first calibrated layer; empty where they couldn't be read.
    """

    model: str
    config: str
    weights: tuple[float, ...]

    @classmethod
    def of(cls, denoiser: Any, site: str) -> Identity:
        """The identity of a denoiser.

        Args:
            denoiser: The denoiser.
            site: The layer of which a few weights are noted.
        """
        config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_")}
        text = json.dumps(config, sort_keys=True, default=str)
        model = defining(denoiser, "forward")
        return cls(model, hashlib.sha256(text.encode()).hexdigest(), _weights(denoiser, site))


@dataclass(frozen=True, eq=False)
class Plan:
    """A calibration.

    Attributes:
        identity: The model that it is of.
        grid: Frames, rows and columns of the picture's tokens.
        steps: Sampling steps.
        size: Tokens of a block.
        density: Share of blocks that was asked for.
        orders: By layer: each head's order.
        masks: By layer: "groups heads bytes", `packed` from "groups heads R R" for the R blocks
            that the picture fills.
        digest: SHA-256 of its file, the first 16 digits.
        parts: Each layer's last part, and the call that it was for.
    """

    identity: Identity
    grid: tuple[int, int, int]
    steps: int
    size: int
    density: float
    orders: Mapping[str, Sequence[str]]
    masks: Mapping[str, Tensor]
    digest: str = ""
    parts: dict[str, tuple[Any, Blocks, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def groups(self) -> int:
        """The number of masks that each head has."""
        return group_of(self.steps - 1, self.steps) + 1

    def mask(self, site: str, group: int) -> Tensor:
        """A layer's blocks, bool "heads R R"."""
        number = math.prod(self.grid) // self.size
        bits = (
            self.masks[site][group][..., None] >> torch.arange(8, dtype=torch.uint8, device="cpu")
            & 1
        )
        mask: Tensor = bits.flatten(1)[:, : number**2].unflatten(1, (number, number)).bool()
        return mask

    def fits(self, host: Host) -> None:
        """Check that a model has the layers that were calibrated.

        Raises:
            ValueError: It is another model.
        """
        heads = {site.name: site.heads for site in host.sites}
        known = {name: len(orders) for name, orders in self.orders.items()}
        if host.model != self.identity.model or any(heads.get(n) != h for n, h in known.items()):
            raise ValueError(
                f"paro: this calibration is of a {self.identity.model} with {len(known)} layers, "
                f"and the model is a {host.model} with {len(host.layers)}; calibrate it with "
                "`regaze discover paro`"
            )

    def is_of(self, denoiser: Any) -> None:
        """Check that a denoiser is the one that was calibrated.

        Raises:
            ValueError: Its settings or weights are others.
        """
        here = Identity.of(denoiser, next(iter(self.orders)))
        what = ""
        if here.config != self.identity.config:
            what = "settings"
        elif here.weights and self.identity.weights and not _close(here, self.identity):
            what = "weights"
        if what:
            raise ValueError(
                f"paro: this calibration is of a {self.identity.model} with other {what}; "
                "calibrate this one with `regaze discover paro`"
            )

    def check_grid(self, grid: tuple[int, ...] | None, site: str) -> None:
        """Check that a call has the size that was calibrated.

        Raises:
            ValueError: It has another, or none that is known.
        """
        here = None if grid is None else (*[1] * (3 - len(grid)), *grid)
        if here != self.grid:
            what = "an unknown grid" if here is None else " x ".join(map(str, here))
            raise ValueError(
                f"paro: the tokens of {site} make {what}, and the calibration is of "
                f"{' x '.join(map(str, self.grid))}: calibrate for this size, number of frames "
                "included"
            )

    def check_steps(self, steps: int) -> None:
        """Check that a run has as many steps as were calibrated.

        Raises:
            ValueError: It has others.
        """
        if steps != self.steps:
            raise ValueError(
                f"paro: the calibration is of {self.steps} steps, and this run has {steps}: "
                "calibrate for as many"
            )

    def write(self, path: Path) -> None:
        """Write it; whoever calls this moves the file to its place."""
        about = {
            "format": FORMAT, "identity": asdict(self.identity), "grid": self.grid,
            "steps": self.steps, "size": self.size, "density": self.density,
            "orders": {name: list(orders) for name, orders in self.orders.items()},
        }  # fmt: skip
        save_file(dict(self.masks), path, {"regaze": json.dumps(about)})


def read(path: str | Path) -> Plan:
    """Read a calibration; once, as long as the file stays as it is.

    Raises:
        ValueError: It is no calibration, or can't be read.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"paro: can't read {path}: {error.strerror or error}") from error
    return _read(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4)
def _read(path: Path, stamp: tuple[int, int]) -> Plan:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("regaze", "{}"))
            if about.get("format") != FORMAT:
                raise ValueError("it doesn't say that it is one")
            masks = {name: file.get_tensor(name) for name in about["orders"]}
        frames, rows, columns = (int(n) for n in about["grid"])
        identity = about["identity"]
        weights = tuple(map(float, identity["weights"]))
        plan = Plan(
            Identity(str(identity["model"]), str(identity["config"]), weights),
            (frames, rows, columns), int(about["steps"]), int(about["size"]),
            float(about["density"]), about["orders"], masks, digest,
        )  # fmt: skip
        length = -(-((frames * rows * columns // plan.size) ** 2) // 8)
        for name, orders in plan.orders.items():
            shape = (plan.groups, len(orders), length)
            if masks[name].shape != shape or masks[name].dtype != torch.uint8:
                raise ValueError(f"{name} has other blocks than it says")
            if set(orders) - set(ORDERS):
                raise ValueError(f"{name} has an unknown order")
    except OSError as error:
        raise ValueError(f"paro: can't read {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"paro: {path} is no calibration ({error}); make one with `regaze discover paro`"
        ) from error
    return plan


def group_of(step: int, steps: int) -> int:
    """The number of a step's mask: its own in the first half of the steps, then one for all."""
    return min(step, math.ceil(steps / 2))


def permutation(grid: tuple[int, int, int], order: str) -> Tensor:
    """The token, counted frame after frame, that stands at each place: "N"."""
    tokens = torch.arange(math.prod(grid), device="cpu").view(grid)
    return tokens.permute(["fhw".index(axis) for axis in order]).flatten()


def packed(mask: Tensor) -> Tensor:
    """Blocks "groups heads R R" bool, eight a byte."""
    bits = torch.nn.functional.pad(mask.flatten(2).to(torch.uint8), (0, -mask[0, 0].numel() % 8))
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device="cpu")
    found: Tensor = (bits.unflatten(-1, (-1, 8)) * powers).sum(-1).to(torch.uint8)
    return found


def _weights(denoiser: Any, site: str) -> tuple[float, ...]:
    """A few weights of a layer, spread over its queries' projection."""
    weight = getattr(getattr(denoiser.get_submodule(site), "to_q", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        return ()
    flat = weight.detach().flatten()
    at = torch.linspace(0, len(flat) - 1, _SAMPLE, device=flat.device, dtype=torch.float32).long()
    return tuple(flat[at].float().tolist())


def _close(one: Identity, other: Identity) -> bool:
    a, b = (torch.tensor(each.weights, dtype=torch.float32, device="cpu") for each in (one, other))
    return len(a) == len(b) and bool(((a - b).abs() <= _CLOSE * b.abs().max()).all())
