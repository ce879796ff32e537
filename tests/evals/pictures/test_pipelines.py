from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_painter
import torch

from regaze.evals.pictures import pipelines


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_painter.folder(), tmp_path / "copy")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_loads_in_float32_on_the_cpu_with_a_hash_of_all_it_depends_on(copy: Path) -> None:
    first, second = tiny_painter.shared(), pipelines.load(str(copy))
    assert first.dtype == "float32"
    assert first.identity["weights_sha256"] == second.identity["weights_sha256"]
    assert second.identity["name"] == str(copy)
    assert second.name == "copy"
    edit(copy / "scheduler" / "scheduler_config.json", timestep_spacing="leading")
    third = pipelines.load(str(copy))
    assert third.identity["weights_sha256"] != second.identity["weights_sha256"]


def test_a_dtype_can_be_chosen() -> None:
    loaded = pipelines.load(str(tiny_painter.folder()), dtype="bfloat16")
    assert loaded.dtype == "bfloat16"
    assert {p.dtype for p in loaded.pipeline.vae.parameters()} == {torch.bfloat16}


def test_code_in_a_folder_is_refused(copy: Path) -> None:
    (copy / "unet" / "unet.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"code of its own .*unet\.py"):
        pipelines.load(str(copy))
    (copy / "unet" / "unet.py").unlink()
    edit(copy / "model_index.json", _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(ValueError, match=r"code of its own .*MyPipeline"):
        pipelines.load(str(copy))


def test_pickles_are_refused(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "weights.bin")
    with pytest.raises(ValueError, match=r"only unet/weights\.bin, a pickle"):
        pipelines.load(str(copy))


def test_damaged_weights_are_named_in_one_line(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^cannot load .*copy: .+") as caught:
        pipelines.load(str(copy))
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model_index\.json$"):
        pipelines.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a model for regaze eval"):
        pipelines.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not valid JSON"):
        pipelines.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match=r"holds no weights"):
        pipelines.load(str(tmp_path))


def test_unknown_names_and_options_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"did you mean painter-unet\? There is no folder"):
        pipelines.load("painter-unett")
    with pytest.raises(ValueError, match=r"can't be had from the Hub \(offline, and not in"):
        pipelines.load("some/pipeline")
    folder = str(tiny_painter.folder())
    with pytest.raises(ValueError, match=r"unknown dtype 'int8'"):
        pipelines.load(folder, dtype="int8")
    with pytest.raises(ValueError, match=r"unknown offload 'disk': use none, model, sequential"):
        pipelines.load(folder, offload="disk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there is no GPU"):
        pipelines.load(folder, device="cpu", offload="model")
