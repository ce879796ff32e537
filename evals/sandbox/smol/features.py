"""Frozen features of scenes, and which kind each of their cells shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regaze.evals.runs import files
from regaze.evals.sandbox.smol.assemble import PIXEL_MEAN, PIXEL_STD
from regaze.evals.sandbox.smol.scenes import NAMES, Scene, scene

CELLS = 49
GRID = 7
BACKGROUND = len(NAMES)
"""Number of a cell that shows no kind; kinds are numbered as in ``NAMES``."""
_COVERED = 0.3
_BATCH = 20


@dataclass(frozen=True)
class Seen:
    """The vision tower's features of scenes.

    Attributes:
        features: ``(n, 49, 1280)``, float16.
        cells: ``(n, 49)``, number of the kind that covers most of a cell, if over 30 % of it.
        kinds: Kinds of each scene's objects, the largest first.
        unseen: Kinds among them shown by a picture that was kept from training.
    """

    features: Tensor
    cells: Tensor
    kinds: list[list[str]]
    unseen: list[list[str]]


@torch.no_grad()
def encode(tower: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    """Features of images: ``(n, 49, 1280)``, float16."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    stacked = np.stack([np.asarray(image) for image in images])
    pixels = (torch.from_numpy(stacked).permute(0, 3, 1, 2) / 255 - mean) / std
    found: Tensor = tower(pixels.contiguous(memory_format=torch.channels_last)).last_hidden_state
    return found.flatten(2).transpose(1, 2).half().contiguous()


def see(tower: nn.Module, split: str, count: int) -> Seen:
    """The first scenes of a split."""
    features, cells, kinds, unseen = [], [], [], []
    for start in range(0, count, _BATCH):
        scenes = [scene(split, i) for i in range(start, min(start + _BATCH, count))]
        features.append(encode(tower, [s.image for s in scenes]))
        cells += [cell_kinds(s) for s in scenes]
        kinds += [by_size(s) for s in scenes]
        unseen += [sorted(s.unseen) for s in scenes]
    return Seen(torch.cat(features), torch.tensor(np.array(cells)), kinds, unseen)


def seen(tower: nn.Module, split: str, count: int, folder: Path) -> Seen:
    """The features of scenes, kept in a folder for the next time."""
    path = folder / f"{split}-{count}.safetensors"
    words = path.with_suffix(".json")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = see(tower, split, count)
        files.write_json(words, {"kinds": new.kinds, "unseen": new.unseen})
        with files.replacing(path) as temporary:
            save_file({"features": new.features, "cells": new.cells}, temporary)
    held, said = load_file(path), files.read_json(words)
    return Seen(held["features"], held["cells"], said["kinds"], said["unseen"])


def by_size(s: Scene) -> list[str]:
    """Kinds of a scene, the one with the most visible pixels first."""
    shown = [int((s.drawn[1] == i).sum()) for i in range(len(s.objects))]
    order = sorted(range(len(shown)), key=lambda i: -shown[i])
    return [s.objects[i].picture.kind for i in order]


def cell_kinds(s: Scene) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Number of the kind that each cell shows: ``(49,)``."""
    labels = s.drawn[1]
    side = labels.shape[0] // GRID
    by_cell = labels.reshape(GRID, side, GRID, side).swapaxes(1, 2).reshape(CELLS, -1)
    found = np.full(CELLS, BACKGROUND, np.int64)
    for cell, pixels in enumerate(by_cell):
        objects = pixels[pixels >= 0]
        if len(objects) > _COVERED * len(pixels):
            item = s.objects[int(np.bincount(objects).argmax())]
            found[cell] = NAMES.index(item.picture.kind)
    return found
