"""Every kind of run, shared out by a launcher: ``torchrun ... launching.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from killing import kinds

from regaze.evals.runs.distributed import join


def main(root: Path) -> None:
    """Run everything with as many processes as there are."""
    # Of processes that have met, transformers lets only the first one save a model.
    runs = kinds()
    world = join()
    if world.size != 2:
        sys.exit(f"the launcher started {world.size} process")
    for name, run in runs.items():
        run(root / name, world)
        world.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
