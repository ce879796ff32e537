"""regaze edit, and eval edits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import call, on_tiny, one_line
from PIL import Image
from torch import Tensor

from regaze.evals.edits.editing import fitted, overlay
from regaze.evals.pictures import grid
from regaze.interventions.diffusion import masks, places

ASKED = ("-p", "a red circle and a blue square", "-e", "a yellow circle and a blue square")


def test_a_painted_picture_is_edited(tmp_path: Path) -> None:
    out = tmp_path / "edit.png"
    result = call(
        "edit", *ASKED, "--steps", "2", "--seeds", "1,4", "--with", "none", "--with",
        "consistedit:strength=0.5", "--out", str(out), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    made, said = grid.about(out), json.loads(result.stdout)
    assert made == {k: v for k, v in said.items() if k not in ("strip", "pictures")}
    assert made["seeds"] == [1, 4]
    (spec,) = made["columns"][1]["interventions"]
    assert spec["words"] == ["red"] and spec["source"].endswith(".safetensors")
    pictures = {path.name: path for path in (tmp_path / "edit" / "seed-1").iterdir()}
    assert set(pictures) == {"source.png", "none.png", "consistedit_strength=0.5.png"}
    shown = [np.asarray(Image.open(path)) for path in pictures.values()]
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])


def test_a_real_picture_is_edited(tmp_path: Path) -> None:
    picture = tmp_path / "in.png"
    Image.new("RGB", (70, 64), (40, 40, 44)).save(picture)
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), 255).save(mask)
    result = call(
        "edit", *ASKED, "--image", str(picture), "--mask", str(mask), "--steps", "2", "--out",
        str(tmp_path / "e.png"),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "e" / "source.png") as source:
        assert source.size == (32, 32)
    assert "Strip:" in result.stdout


def test_pictures_are_fitted_to_the_model_in_about_their_proportions() -> None:
    class Pipeline:
        vae_scale_factor, default_sample_size = 8, 128

    for size, want in (((1024, 1024), (1024, 1024)), ((640, 480), (1184, 880)), ((90, 10), None)):
        width, height = fitted(Pipeline, Image.new("RGB", size)).size
        assert width % 16 == height % 16 == 0
        assert want is None or (width, height) == want
        assert width * height == pytest.approx(1024**2, rel=0.05)


def test_an_overlay_tints_what_may_change() -> None:
    import torch

    picture = Image.new("RGB", (4, 4), (100, 100, 100))
    got = np.asarray(overlay(picture, torch.tensor([[True, False], [False, False]])))
    assert (got[:2, :2] == (167, 80, 80)).all() and (got[2:] == 100).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ASKED[:2], "-e", ASKED[1]), "--edit is the same as --prompt"),
        ((*ASKED, "--out", "e.jpg"), "must name a .png"),
        ((*ASKED, "--words", "red", "--mask", "all"), "either --words or --mask"),
        ((*ASKED, "--image", "nowhere.png"), "nowhere.png can't be read"),
        ((*ASKED, "--image", "nowhere.png", "--seeds", "2"), "--seeds is for painted pictures"),
        ((*ASKED, "--with", "consistedit:strength=2"), "strength must be"),
        ((*ASKED, "--steps", "1"), "has no joint attention"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = on_tiny("edit", *arguments)
    assert result.exit_code == 2
    assert message in one_line(result)
    assert "Traceback" not in result.stderr


def test_words_and_masks_that_do_not_fit(tmp_path: Path) -> None:
    for more, message in (
        (("--words", "hat"), "'hat' isn't in the source prompt"),
        (("--mask", "nowhere.npy"), "nowhere.npy can't be read"),
    ):
        result = call("edit", *ASKED, *more, "--steps", "1", "--out", str(tmp_path / "e.png"))
        assert result.exit_code == 2 and message in one_line(result)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [masks.read, places.read_mask])
def test_a_mask_of_something_else_is_named(read: Callable[[str], Tensor], tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    for data in (b"", b"junk"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="mask.* can't be read: it isn't an array of numbers"):
            read(str(path))
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="it isn't an array of numbers"):
        read(str(path))
    path.unlink()
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read(str(path))


def test_eval_edits(tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ("--with", "consistedit:mask=exact", "--edits", "2", "--kind", "colour")
    result = call("eval", "edits", *given, "--steps", "2", "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)
    assert (out / "report.html").exists()
    again = call("show", str(out))
    assert again.exit_code == 0 and "consistedit" in again.stdout
