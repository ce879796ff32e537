"""Reading what goes into a vision tower: which pictures, and where their patches are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.families import Family
from regaze.hooks.passes import Columns, Pass, Picture, Rows
from regaze.hooks.vision_towers import VISION, Vision


@dataclass(frozen=True)
class Eye:
    """Facts about a model's vision tower.

    Attributes:
        tower: The tower.
        vision: Facts about the tower's class.
        paths: Paths of the attention modules, from the tower, by layer.
        n_heads: Heads per layer.
    """

    tower: nn.Module
    vision: Vision
    paths: Mapping[int, str]
    n_heads: int

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.paths)


def find_eye(model: nn.Module, family: Family) -> Eye:
    """Describe the vision tower of a model.

    Raises:
        ValueError: It isn't known; the message says why.
    """
    if not family.vision:
        raise ValueError(
            f"regaze doesn't know the vision tower of {family.title} ({family.model_type}), so its "
            "rows can be neither edited nor looked at"
        )
    try:
        tower: Any = model.get_submodule(family.vision)
    except AttributeError as error:
        raise ValueError(
            f"{type(model).__name__} has no {family.vision}, where the vision tower of "
            f"{family.title} should be"
        ) from error
    name = type(tower).__name__
    vision = VISION.get(name)
    if vision is None:
        raise ValueError(
            f"the vision tower of this {family.title} is a {name}, which regaze doesn't know: its "
            f"rows can be neither edited nor looked at (known are: {', '.join(sorted(VISION))})"
        )
    layers = tower.get_submodule(vision.layers)
    paths = {i: f"{vision.layers}.{i}.{vision.attention}" for i in range(len(layers))}
    heads = getattr(tower.config, "num_attention_heads", None) or tower.config.num_heads
    return Eye(tower, vision, paths, int(heads))


class VisionPass(Pass):
    """One run of a vision tower, or of some of its pictures: columns are patches, not tokens.

    Attributes:
        numbers: Numbers of the run's pictures that are its batch rows.
        offset: Column of each picture that row and column 0 are.
        class_token: True if column 0 of a picture is its class token.
        real: Bool "B N": what is no padding.
    """

    def __init__(
        self,
        pictures: tuple[Picture, ...],
        length: int,
        device: torch.device,
        class_token: bool,
        real: Tensor,
        numbers: tuple[int, ...],
        offset: int = 0,
    ) -> None:
        nothing: Any = _NoTokens()
        super().__init__(nothing, 0, length, 0, True, 1, device, nothing, pictures=pictures)
        self.numbers = numbers
        self.offset = offset
        self.class_token = class_token
        self.real = real
        self._parts: dict[tuple[int, int, int], VisionPass] = {}

    @property
    def decodes(self) -> bool:
        """False: a vision tower doesn't decode."""
        return False

    @property
    def batch(self) -> int:
        """Number of pictures here."""
        return len(self.numbers)

    def part(self, number: int, offset: int, length: int) -> VisionPass:
        """The run as far as some columns of one picture go."""
        key = number, offset, length
        if key not in self._parts:
            real = self.real[number : number + 1, offset : offset + length]
            self._parts[key] = VisionPass(
                self.pictures, length, self.device, self.class_token, real, (number,), offset
            )
        return self._parts[key]

    def columns(self, offset: int, n_keys: int, device: torch.device) -> Columns:
        """Masks for a layer's keys."""
        key = (offset, n_keys, device)
        if key not in self._columns:
            real = self.real.to(device)[:, None, None]
            first = torch.zeros_like(real)
            first[..., 0] = self.class_token and self.offset == 0
            self._columns[key] = Columns(
                real & ~first,
                torch.zeros_like(real),
                self.offset,
                first & real,
                self.numbers,
            )
        return self._columns[key]

    def check(self, rows: Rows | None) -> None:
        """Check that rows that were asked for exist.

        Raises:
            ValueError: A picture has no such row.
        """
        if not isinstance(rows, tuple):
            return
        for number, picture in enumerate(self.pictures):
            if max(rows, default=0) >= picture.length:
                raise ValueError(
                    f"picture {number} has {picture.length} rows in the vision tower; there is no "
                    f"row {max(rows)}"
                )

    def _select(self, selector: Rows) -> Tensor:
        if selector == "all":
            return self.real.clone()
        rows = selector if isinstance(selector, tuple) else (0,) if self.class_token else ()
        here = [row - self.offset for row in rows if 0 <= row - self.offset < self.length]
        chosen = torch.zeros_like(self.real)
        chosen[:, here] = True
        return chosen


class _NoTokens:
    """A stand-in for the prompt of a text tower's pass."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            "a pass of a vision tower has no prompt and no tokens; it has pass_.pictures"
        )


def read_pictures(tower: nn.Module, vision: Vision, given: Mapping[str, Any]) -> VisionPass:
    """Read what a vision tower is given.

    Args:
        tower: The tower.
        vision: Facts about the tower's class.
        given: Arguments of the tower's call, by name.

    Raises:
        ValueError: Something isn't as it is known here.
    """
    config: Any = tower.config
    grids = vision.layout in ("grids", "windows")
    entering = given.get("hidden_states" if grids else "pixel_values")
    if not isinstance(entering, Tensor) or entering.ndim != (2 if grids else 4):
        what = "patches (N E)" if grids else "pixels (B C H W)"
        raise ValueError(
            f"{type(tower).__name__} was given no {what}, so regaze can't tell its pictures"
        )
    real: Tensor | None = None
    if vision.layout == "batch":
        pictures, real = _batch(given, config, vision.class_token)
    elif grids:
        pictures = _grids(given, config, vision.layout == "windows")
    else:
        pictures = _packed(given, config)
    length = max((one.length for one in pictures), default=0)
    if real is None:
        real = (
            torch.arange(length, device="cpu")
            < torch.tensor([one.length for one in pictures], device="cpu")[:, None]
        )
    numbers = tuple(range(len(pictures)))
    return VisionPass(pictures, length, entering.device, vision.class_token, real, numbers)


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _batch(
    given: Mapping[str, Any], config: Any, class_token: bool
) -> tuple[tuple[Picture, ...], Tensor]:
    """A picture a batch row, in reading order; maybe with padding."""
    pixels: Tensor = given["pixel_values"]
    high, wide = _pair(config.patch_size)
    batch, height, width = pixels.shape[0], pixels.shape[2] // high, pixels.shape[3] // wide
    before = int(class_token)
    grid = torch.arange(height * width, device="cpu").view(height, width) + before
    mask = given.get("patch_attention_mask")
    shown = (
        torch.ones(batch, height, width, dtype=torch.float32, device="cpu")
        if mask is None
        else mask.cpu()
    )
    shown = shown.bool()
    if shown.shape != (batch, height, width):
        raise ValueError(
            f"patch_attention_mask is {tuple(shown.shape)} where the pictures have "
            f"{batch} x {height} x {width} patches"
        )
    pictures = tuple(
        Picture(height * width + before, grid[one.any(1)][:, one.any(0)]) for one in shown
    )
    return pictures, nn.functional.pad(shown.flatten(1), (before, 0), value=True)


def _packed(given: Mapping[str, Any], config: Any) -> tuple[Picture, ...]:
    """All pictures in one sequence, each in reading order."""
    high, wide = _pair(config.patch_size)
    pixels, sizes = given["pixel_values"], given.get("image_sizes")
    sizes = [pixels.shape[2:]] * len(pixels) if sizes is None else sizes
    found = []
    for height, width in sizes:
        rows, cols = int(height) // high, int(width) // wide
        found.append(Picture(rows * cols, torch.arange(rows * cols, device="cpu").view(rows, cols)))
    return tuple(found)


def _grids(given: Mapping[str, Any], config: Any, windows: bool) -> tuple[Picture, ...]:
    """All frames in one sequence, in blocks that are merged; maybe sorted by window."""
    merge = int(config.spatial_merge_size)
    grids = given["grid_thw"].tolist()
    order: list[Tensor] = []
    for time, rows, cols in grids:
        blocks = torch.arange(rows * cols, device="cpu").view(
            rows // merge, merge, cols // merge, merge
        )
        order += [blocks.transpose(1, 2).flatten()] * time
    if windows:
        # Newer transformers only; so are the towers that have windows.
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(
            given["grid_thw"], merge, config.window_size, config.patch_size, dict(given)
        )
        order = _sorted_by_window(order, index.cpu(), merge**2)
    found = []
    shapes = [(rows, cols) for time, rows, cols in grids for _ in range(time)]
    for places, (rows, cols) in zip(order, shapes, strict=True):
        found.append(Picture(rows * cols, places.argsort().view(rows, cols)))
    return tuple(found)


def _sorted_by_window(order: list[Tensor], index: Tensor, unit: int) -> list[Tensor]:
    """Return the order of each frame's patches, once blocks were put in another order.

    Raises:
        ValueError: A block would leave its frame.
    """
    sizes = [len(one) for one in order]
    frames = torch.arange(len(order), device="cpu").repeat_interleave(
        torch.tensor(sizes, device="cpu")
    )
    moved = torch.cat(order).view(-1, unit)[index].flatten()
    if not torch.equal(frames.view(-1, unit)[index].flatten(), frames):
        raise ValueError("the windows of this vision tower mix frames, which isn't known here")
    return list(moved.split(sizes))
