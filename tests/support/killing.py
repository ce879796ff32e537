"""Runs that are killed again and again, in a process that forks: ``killing.py FOLDER N M``.

Each kind of run is made once without a kill, and then over and over with kills: N with a model that
is a stub, M with a real one. They strike at any time, or before the k-th step by which something
reaches its place on the disk, where a part of what was being written is lost; in one process, or in
either of two, whose other one a launcher then stops. The first strikes in the middle of a picture.
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
import stub_works
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
from regaze.evals.runs import sessions
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.distributed import World
from regaze.evals.sandbox.video.pipeline import load_pipeline
from regaze.interventions.diffusion.soft_pag import SoftPAG

Kind = Callable[[Path, World], object]
NAMES = ("questions", "pictures", "clips", "heads")
_STEPS = 40
_PICTURE = -1


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
    """The run to kill; models are loaded once."""
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

    return dict(zip(NAMES, (questions, paintings, moving, heads(painter)), strict=True))


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


def die_before(moment: int, out: Path) -> None:
    """Kill this process before that many steps of writing, with a part of what it syncs lost.

    If ``moment`` is ``_PICTURE``, before the step that writes the first picture of a run.
    """
    sync, synced = os.fsync, dict[int, int]()
    left = moment

    def strike(written: Path | None = None) -> bool:
        nonlocal left
        if moment == _PICTURE:
            return written is not None and out.resolve() == written.parent.parent.parent
        left -= 1
        return left <= 0

    def fsync(handle: int) -> None:
        about = os.fstat(handle)
        if strike(Path(f"/proc/self/fd/{handle}").readlink()):
            if stat.S_ISREG(about.st_mode):
                added = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND
                kept = min(synced.get(about.st_ino, 0), about.st_size) if added else 0
                os.truncate(f"/proc/self/fd/{handle}", random.randint(kept, about.st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)
        synced[about.st_ino] = about.st_size

    def mortal(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*given: Any, **named: Any) -> Any:
            if strike():
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **named)

        return stepping

    os.fsync = fsync  # type: ignore[assignment]
    for name in ("replace", "unlink"):
        setattr(Path, name, mortal(getattr(Path, name)))


def fork(run: Kind, out: Path, size: int, moment: int | None, victim: int = 0) -> list[int]:
    """Start the processes of a run; one of them dies at a moment."""
    place = Path(tempfile.mkdtemp())
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            try:
                random.seed(str((out, moment)))
                if moment and rank == victim:
                    die_before(moment, out)
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


def kill(run: Kind, root: Path, kills: int) -> dict[str, int]:
    """Run something with that many kills; how many there were, in how many runs, and what they hit.

    ``halves`` are pictures that were being written, ``shared`` kills that left the file of a
    second process.
    """
    began = time.monotonic()
    end(fork(run, root / "whole", 1, None))
    took = time.monotonic() - began
    told, begun = dict.fromkeys(("kills", "runs", "halves", "shared"), 0), 0
    while told["kills"] < kills:
        told["runs"] += 1
        out, killed = root / f"killed{told['runs']}", True
        while killed:
            done = told["kills"]
            if done >= kills:
                killed = end(fork(run, out, 1, None))
                continue
            size, moment, timed = 1 + done % 2, random.randint(1, _STEPS), done % 4 == 3
            victim = random.randrange(size)
            if begun == 0:
                size, moment, timed, victim = 1, _PICTURE, False, 0
            begun += 1
            pids = fork(run, out, size, None if timed else moment, victim)
            if timed:
                time.sleep(random.uniform(0, took))
                os.kill(pids[victim], signal.SIGKILL)
            killed = end(pids)
            told["kills"] += killed
            told["halves"] += any(out.glob("*/*/.*.part"))
            told["shared"] += any(out.rglob("*.rank1.jsonl"))
    return told


def main(root: Path, stubbed: int, real: int) -> None:
    """Run everything; prints how often each kind was killed, and in how many runs."""
    sessions.code_version()  # asked for once, not by every process
    told = {
        f"stub-{name}": kill(run, root / f"stub-{name}", stubbed)
        for name, run in stub_works.KINDS.items()
    }
    told |= {
        f"real-{name}": kill(run, root / f"real-{name}", real) for name, run in kinds().items()
    }
    print(json.dumps(told))


if __name__ == "__main__":
    random.seed(0)
    logging.disable()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
