"""Flows: what files hold them, what they must be, how Python's arrays are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import regaze
from regaze.interventions.diffusion.flow import Flow, keep, read, write

RNG = np.random.default_rng(0)
FLOW: NDArray[np.float32] = RNG.normal(size=(2, 4, 6, 2)).astype(np.float32)


def middlebury(path: Path, flow: NDArray[np.float32]) -> None:
    size = np.array([flow.shape[1], flow.shape[0]], "<i4").tobytes()
    path.write_bytes(b"PIEH" + size + flow.astype("<f4").tobytes())


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "regaze" / "flow"


def test_every_format_gives_the_same_flow(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FLOW)
    np.savez(tmp_path / "a.npz", flow=FLOW)
    (tmp_path / "many").mkdir()
    for number, one in enumerate(FLOW):
        middlebury(tmp_path / "many" / f"{number:03d}.flo", one)
    for name in ("a.npy", "a.npz", "many"):
        flow = read(tmp_path / name)
        assert np.array_equal(flow.backward, FLOW)
        assert (flow.frames, flow.visible) == (3, None)
    alone = read(tmp_path / "many" / "001.flo")
    assert np.array_equal(alone.backward, FLOW[1:])


def test_unknown_pixels_of_a_flo_file_are_not_visible(tmp_path: Path) -> None:
    holed = FLOW[0].copy()
    holed[1, 2] = 1.7e9
    middlebury(tmp_path / "a.flo", holed)
    flow = read(tmp_path / "a.flo")
    assert flow.visible is not None
    assert np.argwhere(~flow.visible).tolist() == [[0, 1, 2]]
    assert not flow.backward[0, 1, 2].any()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    visible = FLOW[..., 0] > 0
    path = tmp_path / "deep" / "a.npz"
    write(path, Flow(FLOW, visible))
    again = read(path)
    assert np.array_equal(again.backward, FLOW)
    assert again.visible is not None
    assert np.array_equal(again.visible, visible)
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_a_forward_flow_says_what_is_visible(tmp_path: Path) -> None:
    there = np.zeros((1, 4, 6, 2), np.float32)
    there[..., 0] = 2
    np.savez(tmp_path / "a.npz", flow=there, forward=-there)
    flow = read(tmp_path / "a.npz")
    assert flow.visible is not None
    assert np.array_equal(flow.visible[0].all(0), [True] * 4 + [False] * 2)
    with pytest.raises(ValueError, match="forward flow is"):
        Flow.checked(there, there[:, :3])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 4, 6, 2)), "a single frame has none"),
        (
            np.zeros((4, 6, 2)),
            r"must be an array \(frames - 1, height, width, 2\), got \(4, 6, 2\)",
        ),
        (np.zeros((2, 2, 4, 6)), "must be an array"),
        (np.where(np.arange(96).reshape(2, 4, 6, 2) == 60, np.nan, 0), "frame 2 holds NaN"),
        (np.full((1, 4, 6, 2), np.inf), "frame 1 holds NaN or infinite"),
    ],
)
def test_what_is_no_flow_is_refused(array: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flow(array)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"flow_warp: .*{message}"):
        regaze.FlowWarp(flow=array)


def test_visible_has_the_flows_shape() -> None:
    with pytest.raises(ValueError, match="one truth value per pixel"):
        Flow(FLOW, np.ones((2, 4, 5), bool))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.flo", b"PIEH" + b"\0" * 5, "a.flo"),
        ("a.flo", b"no flow, but long enough", "is no .flo file"),
        ("a.npy", b"text", "a.npy"),
        ("a.npz", b"text", "a.npz"),
        ("a.mp4", b"", "a flow is read from"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_what_a_file_lacks_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", flows=FLOW)
    with pytest.raises(ValueError, match="no array named flow in it, only flows"):
        read(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="holds no .flo files"):
        read(tmp_path)
    with pytest.raises(OSError, match="missing"):
        read(tmp_path / "missing.npy")


def test_an_array_is_kept_under_its_hash(cache: Path) -> None:
    spec = regaze.FlowWarp(flow=FLOW)
    assert spec == regaze.FlowWarp(flow=FLOW.copy()) == regaze.FlowWarp(flow=Flow(FLOW))
    assert Path(spec.flow).parent == cache
    assert len(list(cache.iterdir())) == 1
    assert np.array_equal(read(spec.flow).backward, FLOW)
    other = regaze.FlowWarp(flow=Flow(FLOW, FLOW[..., 0] > 0))
    assert other.flow not in (spec.flow, str(keep(Flow(FLOW + 1))))
    assert regaze.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_path_stays_as_it_was_given(cache: Path) -> None:
    assert regaze.FlowWarp(flow=Path("a/b.npz")) == regaze.FlowWarp(flow="a/b.npz")
    assert not cache.exists()
