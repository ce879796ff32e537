"""Optical flow of a clip: read from files, written, and kept under the hash of its contents.

    .npy    float array "F-1 H W 2"
    .npz    the same as ``flow``; optionally ``forward``, the opposite flow, or ``visible``
    .flo    Middlebury's format (Baker et al., IJCV 2011), of one pair of frames; or a folder of
            them, in the order of their names

A flow is backward: ``flow[f - 1, y, x] = (dx, dy)`` says that what frame f shows at (x, y) was at
(x + dx, y + dy) in frame f - 1, in pixels, x to the right and y downwards.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from regaze.hooks.diffusion.warp import consistent

_MAGIC = 202021.25
# Middlebury's files mark pixels of unknown flow by anything larger.
_UNKNOWN = 1e9


@dataclass(frozen=True, eq=False)
class Flow:
    """The backward flow of a clip of F frames.

    Attributes:
        backward: "F-1 H W 2" float32, in pixels.
        visible: "F-1 H W" bool, which pixels of a frame are seen in the one before; None if that
            isn't known.

    Raises:
        ValueError: An array has another shape, or the flow isn't finite.
    """

    backward: NDArray[np.float32]
    visible: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        backward = np.ascontiguousarray(self.backward, np.float32)
        shape = backward.shape
        if backward.ndim != 4 or shape[-1] != 2 or not backward.size:
            raise ValueError(
                f"a flow must be an array (frames - 1, height, width, 2), got {shape}: the "
                "backward flow (dx, dy) of every frame but the first; a single frame has none"
            )
        if not np.isfinite(backward).all():
            bad = np.flatnonzero(~np.isfinite(backward).all((1, 2, 3))) + 1
            raise ValueError(
                f"the flow of frame {bad[0]} holds NaN or infinite values; set them to 0 and mark "
                "these pixels by visible"
            )
        object.__setattr__(self, "backward", backward)
        if self.visible is not None:
            visible = np.ascontiguousarray(self.visible, bool)
            if visible.shape != shape[:-1]:
                raise ValueError(
                    f"visible must be one truth value per pixel of the flow, {shape[:-1]}, got "
                    f"{visible.shape}"
                )
            object.__setattr__(self, "visible", visible)

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return len(self.backward) + 1

    @classmethod
    def checked(cls, backward: NDArray[Any], forward: NDArray[Any]) -> Flow:
        """A flow whose visible pixels are those at which both directions agree.

        Args:
            backward: "F-1 H W 2", from frame f to f - 1.
            forward: The same from frame f - 1 to f.

        Raises:
            ValueError: They differ in shape, or either is no flow.
        """
        there, back = cls(backward).backward, cls(forward).backward
        if there.shape != back.shape:
            raise ValueError(f"forward flow is {back.shape}, backward flow {there.shape}")
        both = consistent(torch.from_numpy(there), torch.from_numpy(back))
        return cls(there, both.numpy())


def read(path: str | Path) -> Flow:
    """Read a flow; formats as above.

    Raises:
        ValueError: The file holds something else.
        OSError: It can't be read.
    """
    path = Path(path)
    try:
        return _read(path)
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> Flow:
    if path.is_dir():
        files = sorted(path.glob("*.flo"))
        if not files:
            raise ValueError("the folder holds no .flo files")
        if len({_middlebury(file).shape for file in files}) > 1:
            raise ValueError("its .flo files differ in size")
        return _known(np.stack([_middlebury(file) for file in files]))
    if path.suffix == ".flo":
        return _known(_middlebury(path)[None])
    if path.suffix not in (".npy", ".npz"):
        raise ValueError("a flow is read from .npy, .npz, .flo or a folder of .flo files")
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return Flow(found)
    with found:
        if "flow" not in found:
            raise ValueError(f"no array named flow in it, only {', '.join(found) or 'nothing'}")
        if "forward" in found:
            return Flow.checked(found["flow"], found["forward"])
        return Flow(found["flow"], found.get("visible"))


def _middlebury(path: Path) -> NDArray[np.float32]:
    data = path.read_bytes()
    magic, (width, height) = np.frombuffer(data, "<f4", 1), np.frombuffer(data, "<i4", 2, 4)
    if magic[0] != np.float32(_MAGIC) or len(data) != 12 + 8 * int(width) * int(height):
        raise ValueError(f"{path.name} is no .flo file, or it is cut off")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2)


def _known(flow: NDArray[np.float32]) -> Flow:
    """A flow whose unknown pixels count as not visible."""
    known: NDArray[np.bool_] = np.abs(flow).max(-1) <= _UNKNOWN
    if known.all():
        return Flow(flow)
    return Flow(np.where(known[..., None], flow, 0), known)


def write(path: Path, flow: Flow) -> None:
    """Write a flow as .npz, under a temporary name first.

    Raises:
        OSError: It can't be written.
    """
    unfinished = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            save(file, flow)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def save(file: IO[bytes], flow: Flow) -> None:
    """Write a flow as .npz into an open file."""
    arrays: dict[str, NDArray[Any]] = {"flow": flow.backward}
    if flow.visible is not None:
        arrays["visible"] = flow.visible
    np.savez_compressed(file, allow_pickle=False, **arrays)


def keep(flow: Flow) -> Path:
    """The path of a flow in the cache, ``$XDG_CACHE_HOME/regaze/flow``; written if it is new.

    The name is the hash of its contents, so that a path stands for one flow for good.
    """
    total = hashlib.sha256(repr(flow.backward.shape).encode() + flow.backward.tobytes())
    if flow.visible is not None:
        total.update(flow.visible.tobytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "regaze" / "flow" / f"{total.hexdigest()[:20]}.npz"
    if not path.exists():
        try:
            write(path, flow)
        except OSError as error:
            raise OSError(f"{error}; XDG_CACHE_HOME names another folder for it") from error
    return path
