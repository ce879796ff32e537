"""Put an object into a picture: pasted, by its latents alone, and with steered attention.

Without pictures it takes a composition of the painting world, whose truth is known.

Run:  python examples/compose.py [--background room.png --object cat.png --box 0.1 0.5 0.4 0.9
          --prompt "a room with a cat" --subject cat --model stable-diffusion-v1-5/...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from regaze.evals.pictures import comparison, grid, pipelines
from regaze.evals.places import composing
from regaze.evals.places.world import placement
from regaze.interventions.diffusion.arranging import kept_picture
from regaze.interventions.diffusion.places import stored


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-unet", help="or a folder, or a Hub id")
    arguments.add_argument("--background", help="a picture")
    arguments.add_argument("--object", help="a picture, transparent around the object")
    arguments.add_argument("--box", type=float, nargs=4, help="left top right bottom, in shares")
    arguments.add_argument("--prompt", help="what the whole picture shows")
    arguments.add_argument("--subject", help="the prompt's words for the object")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=Path("composed.png"))
    given = arguments.parse_args()

    if given.background:
        box = None if given.box is None else tuple(given.box)
        words = None if given.subject is None else (given.subject,)
        asked = composing.Asked(given.prompt, given.background, given.object, None, box, words)
    else:
        shown = placement("test", "same", 4)
        thing: Any = shown.thing
        asked = composing.Asked(
            shown.wanted.prompt, kept_picture(thing.background), kept_picture(thing.picture),
            stored(thing.mask), shown.boxes[0], (str(shown.wanted.kinds[-1]),),
        )  # fmt: skip

    loaded = pipelines.load(given.model)
    # The last one moves latents as the others do, and leaves attention as it is.
    titles = ["none", "primecomposer", "primecomposer:correlate=0.6", "primecomposer:correlate=0"]
    seeds = range(given.seeds)
    arranged, made = composing.compose(
        loaded, comparison.parse(titles), asked, seeds, loaded.arguments
    )
    strip = composing.draw_strip(arranged, made, seeds, asked.prompt)
    grid.save_png(given.out, strip, {"model": loaded.identity, "prompt": asked.prompt})
    print(f"Strip: {given.out}")


if __name__ == "__main__":
    main()
