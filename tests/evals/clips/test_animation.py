"""Clips side by side: painted from one noise, written as animation, strip and frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regaze.evals.clips import animation
from regaze.evals.pictures import comparison, pipelines
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.sandbox.video.world import clip
from regaze.interventions.diffusion.flow import Flow

CLIP = clip("validation", 0, frames=3)
QUICK = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def loaded() -> LoadedPipeline:
    return pipelines.load("painter-unet", controlnet="painter-controlnet")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_frames_start_from_one_noise_and_methods_get_the_flow(loaded: LoadedPipeline) -> None:
    conditions = comparison.parse(["none", "flow_warp:weight=1", "flow_warp:weight=0"])
    steps: list[tuple[str, int, int]] = []
    still = [CLIP.normals[0]] * 3
    columns = animation.animate(
        loaded, conditions, still, CLIP.prompt, flow=Flow(CLIP.flow), seed=3, arguments=QUICK,
        progress=lambda label, done, total: steps.append((label, done, total)),
    )  # fmt: skip
    plain, warped, off = ([np.asarray(p.image) for p in c.pictures] for c in columns)
    assert [c.title for c in columns] == ["none", "flow_warp:weight=1", "flow_warp:weight=0"]
    # The same structure, prompt and noise: the same picture.
    assert all(np.array_equal(frame, plain[0]) for frame in plain)
    assert np.array_equal(plain, off)
    assert np.array_equal(warped[0], plain[0])
    assert not np.array_equal(warped[1], plain[1])
    assert [c.silent for c in columns] == [False, False, False]
    assert steps == [(c.title, number, 2) for c in columns for number in (1, 2)]


def test_a_pipeline_without_pictures_is_refused() -> None:
    plain = pipelines.load("painter-unet")
    with pytest.raises(ValueError, match="isn't steered by pictures; give a ControlNet"):
        animation.animate(
            plain, comparison.parse(["none"]), CLIP.normals, "a red circle", arguments=QUICK
        )


def test_which_conditions_lack_a_flow() -> None:
    assert animation.wants_flow(comparison.parse(["none", "flow_warp"]))
    assert not animation.wants_flow(comparison.parse(["none", "pag", "flow_warp:flow=a.npy"]))


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4"])
def test_animations_are_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / f"clip.{ending}"
    frames = animation.side_by_side({"a": CLIP.normals, "b": CLIP.images}, "a prompt")
    if ending == "mp4":
        iio = pytest.importorskip("imageio.v3", reason="mp4 needs imageio")
        pytest.importorskip("imageio_ffmpeg", reason="mp4 needs imageio-ffmpeg")
        animation.save(path, frames)
        assert len(iio.imread(path)) == 3
        return
    animation.save(path, frames)
    with Image.open(path) as made:
        assert (made.n_frames, made.size) == (3, frames[0].size)  # type: ignore[attr-defined]
        made.seek(2)
        shown = np.asarray(made.convert("RGB"), int)
    off = np.abs(shown - np.asarray(frames[2])).mean()
    assert off < (1 if ending == "webp" else 4)


def test_formats_are_checked_before_anything_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must end in .gif, .webp, .mp4"):
        animation.check_format(Path("clip.avi"))
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'regaze\[video\]', or write a .gif"):
        animation.check_format(Path("clip.mp4"))


def test_frames_of_a_folder_come_in_order_and_in_one_size(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        CLIP.normals[number].save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = animation.read_frames(tmp_path)
    for got, want in zip(found, CLIP.normals, strict=True):
        assert np.array_equal(np.asarray(got), np.asarray(want))
    CLIP.normals[0].resize((16, 16)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match="must have one size"):
        animation.read_frames(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds 0 pictures"):
        animation.read_frames(tmp_path / "empty")
