"""Runs that are killed again and again, in a process that forks: ``python killing.py FOLDER N``.

Each kind of run is made once without a kill, and then over and over with kills until N of them have
struck: at any time, or before the k-th moment at which something should reach the disk, where a
part of what was being written is lost; in one process or in one of two, whose other one a launcher
then stops.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import random
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny_painter
from toy import ToyTask, toy_model

from regaze.evals.asking import runner as asking
from regaze.evals.clips import runner as clips
from regaze.evals.clips.task import ClipSource
from regaze.evals.pictures import head_hunter
from regaze.evals.pictures import runner as pictures
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.render import Shot
from regaze.evals.pictures.task import Pictures
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.distributed import World
from regaze.evals.sandbox.video.pipeline import load_pipeline
from regaze.interventions.diffusion.soft_pag import SoftPAG

Kind = Callable[[Path, World], object]
NAMES = ("questions", "pictures", "clips")


def heads(painter: LoadedPipeline) -> Kind:
    """A search of heads."""

    def search(out: Path, world: World) -> object:
        return head_hunter.hunt(
            painter,
            [Shot("a red circle", 0)],
            lambda images, prompts: [float(np.asarray(image).mean()) for image in images],
            head_hunter.Search(2, 1, SoftPAG(scale=4.0, u=1.0), (1, 2)),
            out=out,
            arguments={**tiny_painter.CALL, "num_inference_steps": 1},
            world=world,
        )

    return search


def kinds() -> dict[str, Kind]:
    """What is run; models are loaded once."""
    model, processor = toy_model()
    painter, pipeline = tiny_painter.fresh(), load_pipeline()
    asked = with_controls([Condition.parse("vhr:alpha=4")])
    painted = [Condition.parse("pag:scale=5")]
    warped = [Condition.parse("flow_warp:weight=1.0")]
    prompts = [Prompt("a b", "a red circle"), Prompt("a_b", "a white triangle")]

    def questions(out: Path, world: World) -> object:
        given: dict[str, Any] = {"batch_size": 6, "max_new_tokens": 1, "identity": {"name": "toy"}}
        return asking.run(ToyTask(2), model, processor, asked, out=out, world=world, **given)

    def paintings(out: Path, world: World) -> object:
        task = Pictures(prompts, (0, 1, 2))
        call = {**tiny_painter.CALL, "num_inference_steps": 1}
        return pictures.run(task, painter, painted, call, out=out, batch_size=2, world=world)

    def moving(out: Path, world: World) -> object:
        source, call = ClipSource("validation", 2, frames=2), {"num_inference_steps": 1}
        identity = {"name": "x"}
        return clips.run(
            pipeline, warped, source, out=out, identity=identity, arguments=call, world=world
        )

    return dict(zip(NAMES, (questions, paintings, moving), strict=True))


@dataclass(frozen=True)
class Rank(World):
    """One of several forked processes."""

    place: Path = Path()
    met: Iterator[int] = field(default_factory=itertools.count, compare=False)

    def wait(self) -> None:
        """Go on once all have come this far."""
        number, deadline = next(self.met), time.monotonic() + 120
        (self.place / f"{number}.{self.rank}").touch()
        while len(list(self.place.glob(f"{number}.*"))) < self.size:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.rank} waits for others at place {number}")
            time.sleep(0.002)


def die_before(moment: int) -> None:
    """Kill this process before that many writes have reached the disk, with a part of them lost."""
    sync, synced = os.fsync, dict[int, int]()
    left = moment

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        about = os.fstat(handle)
        if left <= 0:
            if stat.S_ISREG(about.st_mode):
                added = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND
                kept = min(synced.get(about.st_ino, 0), about.st_size) if added else 0
                os.truncate(f"/proc/self/fd/{handle}", random.randint(kept, about.st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)
        synced[about.st_ino] = about.st_size

    os.fsync = fsync  # type: ignore[assignment]


def fork(run: Kind, out: Path, size: int, moment: int | None) -> list[int]:
    """Start the processes of a run; the last one dies at a moment."""
    place = Path(tempfile.mkdtemp())
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            try:
                random.seed(str((out, moment)))
                if moment and rank == size - 1:
                    die_before(moment)
                run(out, Rank(rank, size, place) if size > 1 else World())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    return pids


def end(pids: list[int]) -> bool:
    """Wait for the processes of a run; whether one was killed, so that the others were stopped."""
    killed, waiting = False, set(pids)
    while waiting:
        pid, status = os.wait()
        waiting.discard(pid)
        if os.WIFSIGNALED(status):
            killed = True
            for other in waiting:
                os.kill(other, signal.SIGKILL)
        elif status and not killed:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
            sys.exit("a run failed")
    return killed


def main(root: Path, kills: int) -> None:
    """Run everything; prints how often each kind was killed, and in how many runs."""
    told = {}
    for name, run in kinds().items():
        began = time.monotonic()
        end(fork(run, root / name / "whole", 1, None))
        took = time.monotonic() - began
        done = runs = 0
        while done < kills:
            runs += 1
            out, killed = root / name / f"killed{runs}", True
            while killed:
                size, moment = 1 + done % 2, random.randint(1, 30)
                if done >= kills:
                    killed = end(fork(run, out, 1, None))
                    continue
                timed = done % 4 == 3
                pids = fork(run, out, size, None if timed else moment)
                if timed:
                    time.sleep(random.uniform(0, took))
                    os.kill(pids[-1], signal.SIGKILL)
                killed = end(pids)
                done += killed
        told[name] = [done, runs]
    print(json.dumps(told))


if __name__ == "__main__":
    random.seed(0)
    logging.disable()
    main(Path(sys.argv[1]), int(sys.argv[2]))
