"""Edit a picture: one object gets another colour, everything else stays.

Paints a picture with the built-in painter, or inverts a real one, and edits it by a second prompt:
by that prompt alone, and by ConsistEdit. Writes the strip and prints how far pixels moved that
should have stayed.

Run:  python examples/edit.py [--image in.png] [--out edit.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regaze.evals.edits.editing import Asked, draw_strip, edit
from regaze.evals.pictures import pipelines
from regaze.evals.runs.conditions import Condition
from regaze.interventions import ConsistEdit

PROMPT = "a red circle and a blue square"
EDIT = "a yellow circle and a blue square"


def main() -> None:
    """Edit and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="painter-mmdit", help="SD3, FLUX or the like")
    parser.add_argument("--prompt", default=PROMPT, help="what the picture shows")
    parser.add_argument("--edit", default=EDIT, help="what it should show")
    parser.add_argument("--image", type=Path, help="a real picture")
    parser.add_argument("--strength", type=float, default=0.3, help="1: keep all structure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("edit.png"))
    given = parser.parse_args()
    torch.set_num_threads(1)

    loaded = pipelines.load(given.model)
    spec = ConsistEdit(strength=given.strength, threshold=0.5)
    conditions = {"the prompt alone": Condition(), "ConsistEdit": Condition((spec,))}
    asked = Asked(given.prompt, given.edit, seed=given.seed)
    image = None if given.image is None else Image.open(given.image)
    source, found = edit(loaded, conditions, asked, loaded.arguments, image=image)
    draw_strip({"": (source, found)}, f"{given.prompt} > {given.edit}").save(given.out)

    free = next(one.mask for one in found if one.mask is not None)
    shown = Image.fromarray(free.numpy()).resize(source.size, Image.Resampling.NEAREST)
    stays = ~np.asarray(shown, bool)
    for one in found:
        moved = np.asarray(one.picture, float)[stays] - np.asarray(source, float)[stays]
        print(f"{one.title}: what should stay moved by {np.sqrt(np.mean(moved**2)):.1f} of 255")
    print(f"Strip: {given.out}")


if __name__ == "__main__":
    main()
