"""Studies of clips: what is painted, kept, measured and compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

from regaze.cli.commands import app
from regaze.evals.clips import runner
from regaze.evals.clips.consistency import FrameConsistency
from regaze.evals.clips.study import open_run, run_video
from regaze.evals.clips.task import Clips, ClipSource, measure, open_strip, strip
from regaze.evals.pictures.scorers import Ready, Scorer
from regaze.evals.pictures.scorers.base import Images
from regaze.evals.runs.conditions import Condition
from regaze.evals.sandbox.video.painting import paint_clip
from regaze.evals.sandbox.video.pipeline import load_pipeline
from regaze.evals.sandbox.video.world import clip
from regaze.evals.scoring.scored import Scored
from regaze.evals.task import Counts

PLAN = ClipSource("validation", 2, frames=3)
CALL = {"num_inference_steps": 2, "guidance_scale": 1.0}
CONDITIONS = [Condition.parse("flow_warp:weight=1.0"), Condition.parse("none")]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline()


@pytest.fixture(scope="module")
def done(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scored]:
    out = tmp_path_factory.mktemp("study")
    return out, run(pipeline, out)


def run(pipeline: Any, out: Path, **settings: Any) -> Scored:
    given = {"arguments": CALL, "identity": {"name": "x", "weights_sha256": "0"}, **settings}
    scored = run_video(pipeline, CONDITIONS, given.pop("plan", PLAN), out=out, **given)
    assert scored is not None
    return scored


def test_a_perfect_clip_has_no_error(tmp_path: Path) -> None:
    truth = clip("validation", 0)
    found = measure(truth.images, truth)
    errors = ("warping_error", "flicker", "colour_drift")
    assert [round(found[name], 9) for name in errors] == [0, 0, 0]
    assert found["structure_rmse"] < 0.5
    assert found["structure_psnr"] > 55


def test_errors_are_in_grey_levels() -> None:
    truth = clip("validation", 0)
    brighter = [
        Image.fromarray(np.asarray(image) + np.uint8(10 * (f % 2)))
        for f, image in enumerate(truth.images)
    ]
    found = measure(brighter, truth)
    for name in ("warping_error", "flicker", "colour_drift"):
        assert found[name] == pytest.approx(10)


def test_counts_of_a_strip(tmp_path: Path) -> None:
    task = Clips(ClipSource("validation", 1), tmp_path, [Redness()])
    empty, full = task.items
    assert (task.prompt(empty), task.prompt(full)) == ("", task.clip(full).prompt)
    assert task.noise_seed(empty) == task.noise_seed(full)
    frames = task.clip(full).images
    strip(frames).save(tmp_path / "strip.png")
    again = open_strip(tmp_path / "strip.png")
    assert [a.tobytes() for a in again] == [b.tobytes() for b in frames]
    told, untold = task.counts(full, "strip.png"), task.counts(empty, "strip.png")
    assert told["found"] == told["wanted"] == 8 * len(task.clip(full).wanted.kinds)
    assert (told["correct"], untold["correct"], untold["wanted"]) == (1, 0, 0)
    metrics = task.metrics({key: np.array([value]) for key, value in told.items()})
    assert metrics["found"] == 1
    assert metrics["redness"] == pytest.approx((red(frames[-1]) - red(frames[0])) / 7)
    assert set(metrics) == set(task.directions)


@dataclass(frozen=True)
class Redness(Scorer):
    """Red of a frame less that of the frame before."""

    name: ClassVar[str] = "redness"
    directions: ClassVar = {"redness": 0}

    def load(self, device: str) -> Ready:
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            assert len(images) == len(prompts) == len(references) == 7
            return [{"redness": red(a) - red(b)} for a, b in zip(images, references, strict=True)]

        return Ready(score, {})


def red(image: Image.Image) -> float:
    return float(np.asarray(image)[..., 0].mean())


def test_frame_consistency_is_the_cosine_of_neighbours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16, projection_dim=8,
    )  # fmt: skip
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path)
    first, second = clip("validation", 0).images[:2]
    score = FrameConsistency(str(tmp_path)).load("cpu").score
    same, moved = score([first, second], ["", ""], [first, first])
    assert same["frame_consistency"] == pytest.approx(100)
    pixels = transformers.CLIPImageProcessor.from_pretrained(tmp_path)(
        images=[first, second], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        a, b = model(pixel_values=pixels).image_embeds
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert moved["frame_consistency"] == pytest.approx(100 * cosine, abs=1e-3)
    with pytest.raises(ValueError, match="model .*/none is no folder here"):
        FrameConsistency(str(tmp_path / "none")).load("cpu")


def test_a_study_compares_conditions_on_the_same_clips(done: tuple[Path, Scored]) -> None:
    out, scored = done
    (scores,) = scored.scores
    assert [c.label for c in scores.conditions] == ["none", CONDITIONS[0].label]
    assert scores.groups == ["empty prompt", "full prompt"]
    assert (scores.clusters, scores.scored) == (2, 4)
    assert all(c.status == "scored" and c.answered == 4 for c in scores.conditions)
    change = scores.conditions[1].change
    assert change
    assert set(change.groups["empty prompt"].metrics) >= {"warping_error", "structure_rmse"}
    assert (out / "scores.json").exists()
    assert len(list(out.rglob("*.png"))) == 8
    manifest = json.loads((out / "none" / "manifest.json").read_text())
    assert manifest["config"]["plan"] == json.loads(json.dumps(PLAN.to_dict()))


def test_each_clip_gets_its_own_exact_flow(done: tuple[Path, Scored]) -> None:
    out, _ = done
    for number in range(2):
        with np.load(out / "flows" / f"{number}.npz") as kept:
            np.testing.assert_array_equal(kept["flow"], clip("validation", number, frames=3).flow)
            np.testing.assert_array_equal(
                kept["visible"], clip("validation", number, frames=3).visible
            )


def test_a_study_goes_on_where_it_stopped(
    done: tuple[Path, Scored], pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scored = done
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    path = out / "none" / "predictions.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:2]) + kept[2][:20])
    painted: list[int] = []

    def counting(*given: Any, **settings: Any) -> Any:
        painted.append(given[3])
        return paint(*given, **settings)

    paint = paint_clip
    monkeypatch.setattr(runner, "paint_clip", counting)
    again = run(pipeline, out)
    assert painted == [0, 1]
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    assert errors(again) == errors(open_run(out).scored()) == errors(scored)


def errors(scored: Scored) -> list[Any]:
    sections = scored.scores[0].sections
    return [row.metrics["warping_error"] for section in sections for row in section.rows]


def test_clips_painted_otherwise_are_never_mixed(
    done: tuple[Path, Scored], pipeline: Any, tmp_path: Path
) -> None:
    out, _ = done
    with pytest.raises(ValueError, match="decoding.num_inference_steps: 2 there, 3 now"):
        run(pipeline, out, arguments={**CALL, "num_inference_steps": 3})
    with pytest.raises(ValueError, match="flow is missing"):
        run(pipeline, out, flow="own")
    with pytest.raises(ValueError, match="flow is missing"):
        run(pipeline, tmp_path / "new", flow="own")
    assert not list(tmp_path.rglob("*.png"))  # refused before the first clip
    with pytest.raises(ValueError, match="is not a run directory"):
        open_run(tmp_path)
    with pytest.raises(ValueError, match="unknown prompts 'half'"):
        ClipSource(prompts=("half",))


@dataclass(frozen=True)
class Absent(Redness):
    """A scorer whose library is missing."""

    def load(self, device: str) -> Ready:
        raise ImportError("ssim isn't installed: pip install it")


def test_a_missing_library_is_told_before_anything_is_painted(
    pipeline: Any, tmp_path: Path
) -> None:
    with pytest.raises(ImportError, match="pip install"):
        run(pipeline, tmp_path, scorers=[Absent()])
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    given = ["eval", "video", "--clips", "2", "--frames", "2", "--steps", "2", "--prompts", "empty"]
    given += ["--out", str(tmp_path), "--with", "none"]
    result = CliRunner().invoke(app, [*given, "--with", "flow_warp"])
    assert result.exit_code == 0, result.output
    assert "flow_warp" in result.stdout
    assert "warping error" in result.stdout
    assert (tmp_path / "report.html").exists()
    again = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert "warping error" in again.stdout
    for wrong, told in (
        (["--with", "flow_wrap"], "did you mean flow_warp"),
        (["--score", "fid:reference=x"], "scores sets of pictures"),
    ):
        result = CliRunner().invoke(app, [*given, *wrong])
        assert result.exit_code == 2
        assert told in result.stderr
