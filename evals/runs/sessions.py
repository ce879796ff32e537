"""Records of the sessions that made a condition's answers."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regaze.evals.runs import files, store
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.distributed import World
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import read_sessions, session_files

_PACKAGES = ("regaze", "torch", "transformers", "diffusers", "accelerate", "numpy", "pillow")
_SECONDS_BETWEEN_SAVES = 30.0


def counts(found: Iterable[Record]) -> dict[str, int]:
    """Numbers of answers by kind."""
    answers = list(found)
    given = [record for record in answers if record.ok]
    return {
        "answered": len(given),
        "errors": len(answers) - len(given),
        "truncated": sum(record.finish == "length" for record in given),
        "blank": sum(not record.text.strip() for record in given),
    }


class Session:
    """One process's work for one condition, noted beside its answers until all have finished.

    The file says that interventions acted before the first answer that they made is on the disk.

    Args:
        folder: The condition's.
        world: This process among the others.
        device: The model's device.
    """

    def __init__(self, folder: Path, world: World, device: str) -> None:
        self._path = folder / f"session.rank{world.rank}.json"
        self._saved = -_SECONDS_BETWEEN_SAVES
        self._warm_up: Cost | None = None
        self._costs = Cost()
        self._entry: dict[str, Any] = {
            "started": _now(),
            "ended": None,
            "answered": 0,
            "firing": None,
            "cost": None,
            "rank": world.rank,
            "world_size": world.size,
            "batch_size": None,
            "device": device,
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
            "code": code_version(),
        }

    def note(self, answered: int, cost: Cost, size: int, firing: Mapping[str, Any] | None) -> None:
        """Record a finished batch.

        Args:
            answered: Answers that are new.
            cost: The batch's cost.
            size: Most items that are asked together now.
            firing: The interventions' firing since the session began.
        """
        if self._warm_up is None:
            # Kernels are chosen and memory is claimed in the first batch.
            self._warm_up = cost
        else:
            self._costs = Cost.total([self._costs, cost])
        fired = bool(firing and firing["fired"])
        changed = self._entry["ended"] is None or fired != bool(
            self._entry["firing"] and self._entry["firing"]["fired"]
        )
        self._entry |= {
            "ended": _now(),
            "answered": self._entry["answered"] + answered,
            "firing": firing,
            "cost": (self._costs if self._costs.items else self._warm_up).to_dict(),
            "batch_size": size,
        }
        if changed or time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write what is known; nothing if nothing was answered."""
        if self._entry["ended"] is not None:
            files.write_json(self._path, self._entry)
            self._saved = time.monotonic()


def certify(folder: Path, certificate: Mapping[str, Any]) -> None:
    """Keep in a condition's manifest what was verified of its methods on this model."""
    path = folder / store.MANIFEST
    files.write_json(path, {**files.read_json(path), "certificate": dict(certificate)})


def settle(folder: Path, found: Iterable[Record]) -> dict[str, int]:
    """Move the sessions of all processes into the manifest; return the numbers of answers."""
    path = folder / store.MANIFEST
    manifest = store.read_manifest(folder)
    new = [one for one in read_sessions(folder) if one not in manifest["sessions"]]
    numbers = counts(found)
    if new or manifest.get("counts") != numbers:
        sessions = [*manifest["sessions"], *new]
        files.write_json(path, {**manifest, "counts": numbers, "sessions": sessions})
    for file in session_files(folder):
        with files.writing(file):
            file.unlink()
    return numbers


@functools.cache
def code_version() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether files in it were changed.

    None if it is installed, or git isn't there to tell.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        # An installed copy may lie within the checkout of something else.
        git("ls-files", "--error-unmatch", here.name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
