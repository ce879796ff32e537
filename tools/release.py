"""Steps of a release: its heading and date, the files people install, proof that they work.

python tools/release.py cut 0.2.0 2026-11-28   # dates the changelog, sets the version
python tools/release.py wheel                  # builds, and tries both files in empty environments
python tools/release.py notes                  # prints the release's part of the changelog
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT, DIST = ROOT / "build" / "release", ROOT / "dist"
UNRELEASED = "## Unreleased\n"
VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)
CITED = re.compile(r"^version: .*$", re.MULTILINE), re.compile(r"^date-released: .*$", re.MULTILINE)
TRIALS = (
    ["-c", "import regaze; print('regaze', regaze.__version__)"],
    ["-m", "regaze", "list"],
    ["-m", "regaze", "verify", "--with", "vhr"],
    [
        "-m",
        "regaze",
        "compare",
        "-p",
        "a red circle",
        "--with",
        "none",
        "--seeds",
        "1",
        "--steps",
        "1",
    ],
)
"""First steps of a new user: a file missing from the wheel shows here."""


def cut(text: str, version: str, date: str) -> str:
    """A changelog whose unreleased lines are a version's; an empty heading stays for the next.

    Raises:
        ValueError: That version has a heading already, or nothing is unreleased.
    """
    if f"\n## {version} " in text:
        raise ValueError(f"CHANGELOG.md has a heading for {version} already")
    before, heading, after = text.partition(UNRELEASED)
    if not heading or not after.partition("\n## ")[0].strip():
        raise ValueError("CHANGELOG.md has nothing under '## Unreleased'")
    return f"{before}{UNRELEASED}\n## {version} ({date})\n{after}"


def notes(text: str, version: str) -> str:
    """A version's part of the changelog.

    Raises:
        ValueError: It has none.
    """
    found = re.search(rf"^## {re.escape(version)} \([^\n]*\)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no heading for {version}: make cut VERSION={version}")
    return found[1].strip() + "\n"


def version() -> str:
    """The version of pyproject.toml, the only place that says it to Python."""
    found = VERSION.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("pyproject.toml has no version")
    return found[1]


def cut_files(number: str, date: str) -> None:
    """Set a version and its date wherever they stand."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", number):
        raise ValueError(f"a version reads 1.2.3, got {number!r}")
    datetime.date.fromisoformat(date)
    changelog, project, cited = (
        ROOT / n for n in ("CHANGELOG.md", "pyproject.toml", "CITATION.cff")
    )
    changed = cut(changelog.read_text(encoding="utf-8"), number, date)
    changelog.write_text(changed, encoding="utf-8")
    text = project.read_text(encoding="utf-8")
    project.write_text(VERSION.sub(f'version = "{number}"', text, count=1), encoding="utf-8")
    text = CITED[0].sub(f"version: {number}", cited.read_text(encoding="utf-8"))
    cited.write_text(CITED[1].sub(f"date-released: {date}", text), encoding="utf-8")
    say(f"Cut {number}: commit, then make release")


def build() -> list[Path]:
    """The source distribution and the wheel, of what is committed."""
    shutil.rmtree(BUILT, ignore_errors=True)
    source = BUILT / "source"
    source.mkdir(parents=True)
    archive = BUILT / "source.tar"
    run("git", "archive", "--output", str(archive), "HEAD")
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data") if hasattr(tarfile, "data_filter") else (
            packed.extractall(source)
        )
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(source))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, DIST.iterdir()))
    return sorted(DIST.iterdir())


def sizes(wheel: Path) -> None:
    """Print what a user downloads, part by part."""
    parts: dict[str, int] = {}
    with zipfile.ZipFile(wheel) as packed:
        for one in packed.infolist():
            folder = re.match(r"regaze/evals/sandbox/(?:models/[^/]+|smol)", one.filename)
            name = folder[0] if folder else "/".join(one.filename.split("/")[:2])
            parts[name] = parts.get(name, 0) + one.compress_size
    for name, size in sorted(parts.items(), key=lambda part: -part[1]):
        if size >= 50_000:
            say(f"{size / 1e6:8.2f} MB  {name}")
    say(f"{wheel.stat().st_size / 1e6:8.2f} MB  {wheel.name}")


def try_out(file: Path, pip: list[str]) -> None:
    """Install a file with pinned requirements into an empty environment, and use it there."""
    place = BUILT / f"env-{file.suffix.lstrip('.')}"
    say(f"==> Trying {file.name} in an empty environment")
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    pinned = ["-c", str(ROOT / "constraints.txt")]
    run(python, "-m", "pip", "install", "-q", *pip, *pinned, str(file))
    # Away from the repository, whose folders would stand in for what is missing; offline, too.
    away = BUILT / "away"
    away.mkdir(exist_ok=True)
    for trial in TRIALS:
        run(python, *trial, cwd=away)


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; one that fails ends the release."""
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    surroundings.pop("PYTHONPATH", None)
    found = subprocess.run(
        command,
        cwd=cwd,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if found.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{found.stdout}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="set version and date")
    cutting.add_argument("version")
    cutting.add_argument("date", nargs="?", default=datetime.date.today().isoformat())
    commands.add_parser("notes", help="print the release's part of the changelog")
    trying = commands.add_parser("wheel", help="build, check and try both files")
    trying.add_argument("--pip", default="", help="more arguments for pip")
    given = parser.parse_args()
    if given.command == "cut":
        cut_files(given.version, given.date)
    elif given.command == "notes":
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version()), end="")
    else:
        files = build()
        sizes(next(file for file in files if file.suffix == ".whl"))
        for file in files:
            try_out(file, shlex.split(given.pip))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
