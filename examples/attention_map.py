"""Show where a model looks: attention of the answer row on the picture, with and without a method.

Run:  python examples/attention_map.py [--model sandbox] [--out attention_map.png]

A name that ends in .html makes a page to look through head by head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

import regaze
from regaze.evals.asking.models import load
from regaze.evals.reports.seen import head_maps
from regaze.evals.reports.viewer import Side, element, page
from regaze.evals.sandbox.scenes import scene
from regaze.hooks import capture


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="sandbox")
    arguments.add_argument("--image", type=Path, help="default: a drawn scene")
    arguments.add_argument("--question", default="Describe the image.")
    arguments.add_argument(
        "--with", dest="method", default="pai:alpha=0.5", help="e.g. vhr:alpha=3"
    )
    arguments.add_argument("--out", type=Path, default=Path("attention_map.png"))
    given = arguments.parse_args()

    loaded = load(given.model)
    model, processor = loaded.model, loaded.processor
    picture = Image.open(given.image).convert("RGB") if given.image else scene("test", 5).image
    turn = [{"type": "image"}, {"type": "text", "text": given.question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True
    )
    inputs = processor(images=[picture], text=[text], return_tensors="pt").to(model.device)

    maps, sides = {}, []
    for name, specs in (("none", []), (given.method, [regaze.parse(given.method)])):
        with (
            torch.no_grad(),
            regaze.attach(model, *specs, processor=processor),
            capture(model, rows="last", processor=processor) as seen,
        ):
            model(**inputs)
        maps[name] = seen.heat()
        heads, single = head_maps(seen, inputs)
        sides.append(Side(name, picture, ("next token",), single, single.sum((2, 3))))

    if given.out.suffix == ".html":
        shown = element(heads, sides, "of attention on the picture")
        given.out.write_text(page("Where does the model look?", [shown]), encoding="utf-8")
        print(f"wrote {given.out}")
        return
    top = max(heat.max() for heat in maps.values())
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(3 * (1 + len(maps)), 3.4))
    axes[0].imshow(picture)
    axes[0].set_title("picture\n")
    for axis, (name, heat) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(picture.convert("L"), cmap="gray", extent=(0, 1, 0, 1))
        drawn = axis.imshow(heat, cmap="inferno", alpha=0.65, vmin=0, vmax=top, extent=(0, 1, 0, 1))
        axis.set_title(f"{name}\n{heat.sum():.0%} on the image")
    for axis in axes:
        axis.axis("off")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention per patch")
    figure.savefig(given.out, dpi=150, bbox_inches="tight")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
