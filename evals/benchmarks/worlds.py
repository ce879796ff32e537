"""The built-in worlds of scenes with exact truth, and what benchmarks ask about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from regaze.evals import sandbox
from regaze.evals.benchmarks.chair import PROMPT, phrase_extractor
from regaze.evals.polling import Record
from regaze.evals.sandbox import scenes, smol, tasks, text
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.smol import tasks as smol_tasks
from regaze.hooks.checks import unknown


@dataclass(frozen=True)
class World:
    """Scenes of one kind, and their ground truth.

    Attributes:
        splits: Names of all that may be asked about.
        validation: The split to choose settings on.
        tests: The test splits, and what a reader calls their scenes: a method that only removes
            the prior shines on the first alone.
        pope_records: POPE's records of a split's first scenes, from a seed.
        chair_truth: Objects of a split's first scenes that are described.
        load_image: Draws the image of a key.
        mentioned: Finds the objects that a text mentions.
        prompt: Asks for a caption.
    """

    splits: tuple[str, ...]
    validation: str
    tests: Mapping[str, str]
    pope_records: Callable[[str, int, int], list[Record]]
    chair_truth: Callable[[str, int], dict[str, list[str]]]
    load_image: Callable[[str], Image.Image]
    mentioned: Callable[[str], list[str]]
    prompt: str


SHAPES = World(
    scenes.SPLITS,
    "validation",
    {"test": "prior-free scenes", "test-prior": "scenes that follow the prior"},
    tasks.pope_records,
    tasks.chair_truth,
    tasks.load_image,
    phrase_extractor(COLOURS, scenes.SHAPES),
    text.CAPTION_PROMPT,
)
"""Drawn shapes, the world of ``sandbox`` and ``sandbox-plain``."""
SMOL = World(
    smol_tasks.SPLITS,
    "smol-validation",
    {
        "smol-test": "prior-free scenes of pictures",
        "smol-test-prior": "scenes of pictures that follow the prior",
    },
    smol_tasks.pope_records,
    smol_tasks.chair_truth,
    smol_tasks.load_image,
    smol_tasks.mentioned,
    PROMPT,
)
"""Cut-out pictures, the world of ``smol``."""
WORLDS = (SHAPES, SMOL)
TESTS = {split: title for world in WORLDS for split, title in world.tests.items()}
"""The test splits of all worlds."""


def world_of(split: str) -> World:
    """The world whose scenes a split holds.

    Raises:
        ValueError: There is no such split; the message names the nearest.
    """
    for world in WORLDS:
        if split in world.splits:
            return world
    every = [name for world in WORLDS for name in world.splits]
    raise ValueError(unknown("split of the sandbox", split, every))


def home(model: str) -> World | None:
    """The world that a built-in model was trained in; None for any other model."""
    if sandbox.is_sandbox(model):
        return SHAPES
    return SMOL if model in smol.MODELS else None
