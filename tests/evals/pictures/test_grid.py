from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regaze.evals.pictures import grid
from regaze.evals.pictures.grid import Block
from regaze.evals.pictures.render import Picture

RED, BLUE = (200, 0, 0), (0, 0, 200)
LONG = "softpag:scale=3.0,u=0.5,layers=[blocks.1,blocks.2],averyveryverylongwordwithoutanybreaks"


def picture(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def places(canvas: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(canvas) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_each_picture_stands_in_its_row_and_column_enlarged_by_a_whole_factor() -> None:
    block = Block("a prompt", ["seed 0"], [[picture(RED), picture(BLUE)]])
    canvas = grid.draw(["one", "two"], [block])
    red, blue = places(canvas, RED), places(canvas, BLUE)
    assert (red[2] - red[0], red[3] - red[1]) == (192, 192)
    assert red[1] == blue[1]
    assert red[2] < blue[0]


def test_large_pictures_are_reduced_and_a_size_can_be_chosen() -> None:
    block = Block("a prompt", ["seed 0"], [[picture(size=(1024, 512))]])
    left, top, right, bottom = places(grid.draw(["one"], [block]), RED)
    assert (right - left, bottom - top) == (512, 256)
    left, top, right, bottom = places(grid.draw(["one"], [block], cell=100), RED)
    assert (right - left, bottom - top) == (100, 50)


@pytest.mark.parametrize("size", [13, 34])
def test_text_is_broken_to_fit_and_nothing_is_lost(size: int) -> None:
    font = grid._font(size)
    lines = grid.wrap(LONG, font, 150)
    assert "".join(lines) == LONG
    assert max(map(font.getlength, lines)) <= 150
    assert grid.wrap("a red circle", font, 9999) == ["a red circle"]
    assert " ".join(grid.wrap("a red circle and a blue square", font, 150)) == (
        "a red circle and a blue square"
    )


def test_no_label_runs_over_the_edge() -> None:
    block = Block(f"{LONG} {LONG}", ["seed 123456"], [[picture()]])
    canvas = np.asarray(grid.draw([LONG], [block]))
    edges = [canvas[:3], canvas[-3:], canvas[:, :3], canvas[:, -3:]]
    assert all((edge == 255).all() for edge in edges)


def test_pictures_of_different_sizes_are_refused_with_their_places() -> None:
    block = Block("a prompt", ["seed 0"], [[picture(), picture(size=(32, 48))]])
    with pytest.raises(ValueError, match=r"32 x 32 \('a prompt', seed 0, one\) and 32 x 48 .*two"):
        grid.draw(["one", "two"], [block])


def test_a_row_that_lacks_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 1 pictures for 2 columns"):
        grid.draw(["one", "two"], [Block("a prompt", ["seed 0"], [[picture()]])])


def test_blocks_take_the_seeds_of_a_prompt_together() -> None:
    column = [Picture((picture((i, 0, 0)),)) for i in range(4)]
    found = grid.blocks(["a", "b"], [7, 8], [column, column])
    assert [block.title for block in found] == ["a", "b"]
    assert found[1].rows == ["seed 7", "seed 8"]
    (cell, _), _ = found[1].cells
    assert cell is not None
    assert cell.getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(ValueError, match=r"column 0 has 3 pictures, but 2 prompts with 2 seeds"):
        grid.blocks(["a", "b"], [7, 8], [column[:3]])


def test_what_was_held_back_is_said_and_not_shown() -> None:
    pictures = [Picture((picture(RED),)), Picture((picture(BLUE),), flagged=True)]
    canvas = grid.draw(["one"], grid.blocks(["a"], [0, 1], [pictures]))
    assert not (np.asarray(canvas) == BLUE).all(-1).any()
    with pytest.raises(ValueError, match=r"held all of them back"):
        grid.draw(["one"], grid.blocks(["a"], [1], [pictures[1:]]))


def test_of_a_video_first_middle_and_last_frame_are_shown_or_the_one_asked_for() -> None:
    frames = tuple(picture((i, 0, 0)) for i in range(7))
    ((strip,),) = grid.blocks(["a"], [0], [[Picture(frames)]])[0].cells
    assert strip is not None
    assert strip.size == (96, 32)
    assert [strip.getpixel((x, 0)) for x in (0, 40, 90)] == [(0, 0, 0), (3, 0, 0), (6, 0, 0)]
    ((one,),) = grid.blocks(["a"], [0], [[Picture(frames)]], frame=5)[0].cells
    assert one is not None
    assert one.getpixel((0, 0)) == (5, 0, 0)


def test_a_png_says_how_it_was_made(tmp_path: Path) -> None:
    made = {"prompts": ["ein grüner Kreis"], "seeds": [1]}
    grid.save_png(tmp_path / "new" / "grid.png", picture(), made)
    assert grid.about(tmp_path / "new" / "grid.png") == made
    picture().save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"other\.png doesn't say how it was made"):
        grid.about(tmp_path / "other.png")


def test_a_gif_holds_all_frames(tmp_path: Path) -> None:
    grid.save_gif(tmp_path / "a.gif", [picture((60 * i, 0, 0)) for i in range(4)])
    with Image.open(tmp_path / "a.gif") as image:
        assert getattr(image, "n_frames") == 4  # noqa: B009 (only GIFs have it)
