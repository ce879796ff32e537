"""Lead and guide motion modules: one clip from the same noise under several methods.

ByTheWay strengthens temporal attention in the first steps, Enhance-A-Video by how much its frames
see of each other, and STG leads away from a branch whose last motion modules see no other frame.

Run:  python examples/longer_motion.py [--model FOLDER_OR_HUB_ID] [--frames 8] [--out clip.gif]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import regaze
from regaze.evals.clips import animation
from regaze.evals.pictures import pipelines
from regaze.evals.pictures.render import Painter, Shot
from regaze.hooks.diffusion import sites


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-motion", help="or an AnimateDiff pipeline")
    arguments.add_argument("--prompt", default="a red circle and a blue square")
    arguments.add_argument("--frames", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--guidance", type=float, default=1.0)
    arguments.add_argument("--beta", type=float, default=1.5, help="ByTheWay's")
    arguments.add_argument("--weight", type=float, default=1.0, help="Enhance-A-Video's")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("clip.gif"))
    given = arguments.parse_args()
    animation.check_format(given.out)

    loaded = pipelines.load(given.model)
    temporal = [site for site in sites(loaded.pipeline) if site.kind == "temporal"]
    last = tuple(site.name for site in temporal if site.block == temporal[-1].block)
    methods: dict[str, list[Any]] = {
        "plain": [],
        "bytheway": [regaze.ByTheWay(beta=given.beta, tau=min(7, given.frames // 2 - 1))],
        "enhance_a_video": [regaze.EnhanceAVideo(weight=given.weight)],
        "stg": [regaze.STG(layers=last, skip="attention")],
    }
    call = {
        "num_frames": given.frames,
        "num_inference_steps": given.steps,
        "guidance_scale": given.guidance,
    }
    painter = Painter(loaded.pipeline, {**loaded.arguments, **call})
    clips = {}
    for name, specs in methods.items():
        with regaze.attach(loaded.pipeline, *specs) as run:
            (clip,) = painter.paint([Shot(given.prompt, given.seed)])
        clips[name] = clip.frames
        print(run.report() if specs else "plain")

    animation.save(given.out, animation.side_by_side(clips, given.prompt), fps=4)
    still = given.out.with_suffix(".png")
    animation.strips(clips, given.prompt).save(still)
    print(f"wrote {given.out} and {still}")


if __name__ == "__main__":
    main()
