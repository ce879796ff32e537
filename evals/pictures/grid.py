"""A labelled grid of pictures: a column per condition, rows per prompt and seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from regaze.evals.outputs import whole
from regaze.evals.pictures.render import Picture

KEY = "regaze"
"""Name of the PNG text chunk that says how a grid was made."""

_PAPER, _INK, _FAINT, _HOLE = "white", (28, 28, 30), (110, 110, 115), (225, 225, 228)
_SMALL, _LARGE = 192, 512
_SMALLEST_FONT = 13
_MS_PER_FRAME = 125


@dataclass(frozen=True)
class Block:
    """All pictures of one prompt.

    Attributes:
        title: The prompt.
        rows: A label for each row, e.g. ``seed 0``.
        cells: Pictures by row and column; None stays empty.
    """

    title: str
    rows: Sequence[str]
    cells: Sequence[Sequence[Image.Image | None]]


def blocks(
    prompts: Sequence[str],
    seeds: Sequence[int],
    columns: Sequence[Sequence[Picture]],
    frame: int | None = None,
) -> list[Block]:
    """Arrange pictures.

    Args:
        prompts: One block each.
        seeds: One row each.
        columns: Pictures of each condition, all seeds of the first prompt first.
        frame: The frame of videos to show. Default: the first, middle and last, side by side.
    """
    for number, column in enumerate(columns):
        if len(column) != len(prompts) * len(seeds):
            raise ValueError(
                f"column {number} has {len(column)} pictures, but {len(prompts)} prompts with "
                f"{len(seeds)} seeds make {len(prompts) * len(seeds)}"
            )

    def cell(picture: Picture) -> Image.Image | None:
        if picture.flagged:
            return None
        return _strip(picture.frames) if frame is None else picture.frames[frame]

    return [
        Block(
            prompt,
            [f"seed {seed}" for seed in seeds],
            [
                [cell(column[place * len(seeds) + row]) for column in columns]
                for row in range(len(seeds))
            ],
        )
        for place, prompt in enumerate(prompts)
    ]


def draw(
    columns: Sequence[str], blocks: Sequence[Block], *, cell: int | None = None
) -> Image.Image:
    """Draw a grid.

    Text is set in DejaVu Sans in a size that follows the pictures', and wrapped: column labels to
    the width of a picture, prompts to that of the grid.

    Args:
        columns: A label for each column.
        blocks: From top to bottom.
        cell: The longer side of a picture in the grid, in pixels. Default: the pictures' own,
            larger ones reduced to 512 and smaller ones enlarged by a whole factor to 192 or more.

    Raises:
        ValueError: Pictures differ in size, there are none, or a row hasn't a picture for every
            column.
    """
    width, height = _cell_size(columns, blocks, cell)
    font = _font(max(_SMALLEST_FONT, round(max(width, height) / 15)))
    bold = _font(font.size, bold=True)
    gap = max(6, width // 40)
    line = round(font.size * 1.3)
    margin = max(int(font.getlength(label)) for b in blocks for label in b.rows) + 3 * gap
    across = max(margin + len(columns) * (width + gap) - gap, 18 * line)
    heads = [wrap(label, font, width) for label in columns]
    titles = [wrap(block.title, bold, across - 2 * gap) for block in blocks]
    head = max(map(len, heads)) * line + gap
    tall = [
        len(title) * line + 3 * gap + len(block.rows) * (height + gap)
        for block, title in zip(blocks, titles, strict=True)
    ]
    canvas = Image.new("RGB", (across + 2 * gap, head + sum(tall) + 2 * gap), _PAPER)
    pen = ImageDraw.Draw(canvas)

    def write(x: float, y: float, text: str, face: ImageFont.FreeTypeFont, colour: Any) -> None:
        pen.text((x, y), text, fill=colour, font=face)

    for place, lines in enumerate(heads):
        left = margin + place * (width + gap)
        # Set on the bottom, so that every label stands on its column.
        top = gap + head - gap - len(lines) * line
        for number, text in enumerate(lines):
            write(left, top + number * line, text, font, _INK)
    y = gap + head
    for block, title in zip(blocks, titles, strict=True):
        pen.line((2 * gap, y, across, y), fill=_HOLE, width=max(1, gap // 4))
        y += gap
        for text in title:
            write(2 * gap, y, text, bold, _INK)
            y += line
        y += gap
        for label, pictures in zip(block.rows, block.cells, strict=True):
            write(2 * gap, y + (height - line) / 2, label, font, _FAINT)
            for place, picture in enumerate(pictures):
                corner = (margin + place * (width + gap), y)
                if picture is None:
                    pen.rectangle((*corner, corner[0] + width - 1, y + height - 1), fill=_HOLE)
                    write(corner[0] + gap, y + gap, "held back", font, _FAINT)
                else:
                    canvas.paste(_scaled(picture, (width, height)), corner)
            y += height + gap
        y += gap
    return canvas


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines no wider than ``width`` pixels: at spaces, else after punctuation.

    A piece without either is broken anywhere.
    """
    lines = [""]
    for piece in re.findall(r"\s+|[^\s,:+/_]*[,:+/_]+|[^\s,:+/_]+", " ".join(text.split())):
        if font.getlength(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
            continue
        lines.append("")
        for letter in piece.lstrip():
            if font.getlength(lines[-1] + letter) > width and lines[-1]:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()] or [""]


def save_png(path: Path, image: Image.Image, about: Mapping[str, Any]) -> None:
    """Write a picture with a JSON text chunk that says how it was made; read it by `about`.

    Raises:
        OSError: The file can't be written.
    """
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt(KEY, json.dumps(about, ensure_ascii=False))
    chunk.add_text("Software", "regaze")
    with whole(path) as part:
        image.save(part, "png", pnginfo=chunk)


def about(path: Path) -> dict[str, Any]:
    """The making of a grid, as `save_png` stored it.

    Raises:
        ValueError: The picture doesn't say.
        OSError: It can't be read.
    """
    with Image.open(path) as image:
        image.load()
        text = image.info.get(KEY)
    if text is None:
        raise ValueError(f"{path} doesn't say how it was made: it is no grid made by regaze")
    found: dict[str, Any] = json.loads(text)
    return found


def save_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write an animation that repeats, eight frames a second.

    Raises:
        OSError: The file can't be written.
    """
    first, *others = frames
    with whole(path) as part:
        first.save(part, "gif", save_all=True, append_images=others, duration=_MS_PER_FRAME, loop=0)


def _cell_size(
    columns: Sequence[str], blocks: Sequence[Block], cell: int | None
) -> tuple[int, int]:
    sizes: dict[tuple[int, int], str] = {}
    for block in blocks:
        for label, row in zip(block.rows, block.cells, strict=True):
            if len(row) != len(columns):
                raise ValueError(
                    f"{block.title!r}, {label} has {len(row)} pictures for {len(columns)} columns"
                )
            for column, picture in zip(columns, row, strict=True):
                if picture is not None:
                    sizes.setdefault(picture.size, f"{block.title!r}, {label}, {column}")
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"pictures of different sizes don't make a grid: {one[0]} x {one[1]} ({first}) and "
            f"{other[0]} x {other[1]} ({second}); make all with the same --size"
        )
    if not sizes:
        raise ValueError("there is no picture to show: the safety checker held all of them back")
    ((width, height),) = sizes
    longest = max(width, height)
    factor = float(-(-_SMALL // longest)) if longest < _SMALL else min(1.0, _LARGE / longest)
    factor = cell / longest if cell else factor
    return max(1, round(width * factor)), max(1, round(height * factor))


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    shown = [frames[place] for place in sorted({0, len(frames) // 2, len(frames) - 1})]
    strip = Image.new("RGB", (sum(f.width for f in shown), max(f.height for f in shown)))
    for place, frame in enumerate(shown):
        strip.paste(frame, (sum(f.width for f in shown[:place]), 0))
    return strip


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    larger = size[0] >= picture.width
    # Tiny pictures keep their pixels; smoothing would hide what the model made.
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, in many alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # Pillow 10.1 takes no path object.
    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), round(size))
