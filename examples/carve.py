"""Show what a question looks at: CARVE's contrast map, mask and crop, and both answers.

Run:  python examples/carve.py [--image photo.jpg --question "..." --model ID] [--out carve.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import regaze
from regaze.evals.asking.models import load
from regaze.evals.sandbox import is_sandbox
from regaze.evals.sandbox.scenes import scene

# Chosen on validation scenes, see the sandbox model's card; it knows few words.
SANDBOX = "carve:layers=[3,4,5],steps=first,regions=1,general=Describe the image."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="sandbox")
    arguments.add_argument("--image", type=Path, help="default: a drawn scene of small shapes")
    arguments.add_argument("--question", help="needed with --image")
    arguments.add_argument("--spec", help="e.g. carve:sense=v4")
    arguments.add_argument("--out", type=Path, default=Path("carve.png"))
    given = arguments.parse_args()

    loaded = load(given.model)
    drawn = scene("clutter", 15)
    picture = Image.open(given.image).convert("RGB") if given.image else drawn.image
    question = given.question or f"Is there a {drawn.objects[0].phrase} in the image?"
    spec = regaze.parse(given.spec or (SANDBOX if is_sandbox(given.model) else "carve"))
    if not isinstance(spec, regaze.CARVE):
        arguments.error(f"--spec must be carve or carve:..., not {spec.name}")

    closer = regaze.look_closer(loaded.model, loaded.processor, picture, question, spec)
    after = closer.answer()

    kept = np.asarray(picture) * closer.mask[..., None]
    panels = [
        (f"{question}\n“{closer.before}”", picture, {}),
        ("contrast with\nthe general question", closer.contrast, {"cmap": "inferno"}),
        (f"{closer.mask.mean():.0%} of the\npicture is kept", kept, {}),
        (f"looked at closer\n“{after}”", closer.crop, {}),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.8))
    for axis, (title, shown, options) in zip(axes, panels, strict=True):
        axis.imshow(shown, **options)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    left, top, right, bottom = closer.box
    outline = plt.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white")
    axes[0].add_patch(outline)
    figure.savefig(given.out, dpi=150, bbox_inches="tight")
    print(f"{question} {closer.before!r}, looked at closer {after!r}; wrote {given.out}")


if __name__ == "__main__":
    main()
