"""Allowed contents of a model's folder, and missing weights: models, parts, scorers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_painter
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import save_toy_model

from regaze.evals.asking import models
from regaze.evals.pictures import pipelines
from regaze.evals.pictures.scorers.clip import load_model
from regaze.evals.weights import shards

Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "toy")


@pytest.fixture
def painter(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_painter.folder(), tmp_path / "painter")


def clip_folder(folder: Path) -> Path:
    """A tiny CLIP model, without its processor."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    size["projection_dim"] = 8
    config = transformers.CLIPConfig(
        text_config={**size, "num_hidden_layers": 2, "vocab_size": 8},
        vision_config={**size, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def rewrite(path: Path, change: Change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(dict(change(tensors)), path, {"format": "pt"})


def without(word: str) -> Change:
    return lambda tensors: {key: value for key, value in tensors.items() if word not in key}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder: Path, *, also: str | None = None, stem: str = "model") -> Path:
    """Split a folder's weights in two; give ``also`` as the file of the last tensor."""
    single = folder / f"{stem}.safetensors"
    tensors = load_file(single)
    names = sorted(tensors)
    half = len(names) // 2
    found: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:])):
        file = f"{stem}-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name].clone() for name in part}, folder / file, {"format": "pt"})
        found |= dict.fromkeys(part, file)
    if also is not None:
        found[names[-1]] = also
    single.unlink()
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": found}))
    return index


# -- missing and surplus weights ---------------------------------------------------------------


def test_a_model_with_missing_weights_is_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    rewrite(weights, without("layers.1."))
    with pytest.raises(ValueError, match=r"^\S*toy lacks \d+ weights \(.*layers\.1\..*random"):
        models.load(str(model))
    # A wrong prefix: all is surplus, and all is missing.
    weights.write_bytes(whole)
    rewrite(weights, lambda tensors: {f"net.{key}": value for key, value in tensors.items()})
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        models.load(str(model))


def test_a_config_with_another_layer_is_refused_and_with_fewer_told(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    text = config["text_config"]
    assert models.load(str(model)).notes == ()
    for layers in (text["num_hidden_layers"] + 1, text["num_hidden_layers"] - 1):
        changed = {**text, "num_hidden_layers": layers}
        if "layer_types" in text:
            changed["layer_types"] = ["full_attention"] * layers
        edit(model / "config.json", text_config=changed)
        if layers > text["num_hidden_layers"]:
            with pytest.raises(ValueError, match=rf"lacks .*layers\.{layers - 1}\."):
                models.load(str(model))
    (note,) = models.load(str(model)).notes
    assert "no place for: left out" in note and f"layers.{layers}." in note


def test_a_pipelines_parts_with_missing_weights_are_refused(painter: Path) -> None:
    assert pipelines.load(str(painter)).notes == ()
    for part in ("text_encoder", "unet", "vae"):
        (weights,) = (painter / part).glob("*.safetensors")
        whole = weights.read_bytes()
        rewrite(weights, lambda tensors: dict(sorted(tensors.items())[1:]))
        with pytest.raises(ValueError, match=rf"painter/{part} lacks the weight "):
            pipelines.load(str(painter))
        weights.write_bytes(whole)
    (weights,) = (painter / "text_encoder").glob("*.safetensors")
    rewrite(weights, lambda tensors: {**tensors, "lora_down.weight": torch.zeros(1)})
    assert pipelines.load(str(painter)).notes == (
        "painter/text_encoder holds the weight lora_down.weight that its config.json has no place "
        "for: left out",
    )


def test_a_scorer_with_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    # The picture half alone is whole, although the text half is left over.
    load_model(transformers.CLIPVisionModelWithProjection, str(folder), "cpu")
    rewrite(folder / "model.safetensors", without("text_model.encoder.layers.0."))
    load_model(transformers.CLIPVisionModelWithProjection, str(folder), "cpu")
    with pytest.raises(ValueError, match=r"clip is damaged .*lacks \d+ weights"):
        load_model(transformers.CLIPModel, str(folder), "cpu")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_would_be_left_out_is_refused(model: Path, file: str) -> None:
    (model / file).write_text('{"peft_type": "LORA", "base_model_name_or_path": "other/model"}')
    with pytest.raises(ValueError, match=rf"holds an adapter \({file}\), which would be left out"):
        models.load(str(model))


# -- shards ------------------------------------------------------------------------------------


def test_shards_are_read_and_each_of_them_is_part_of_the_identity(model: Path) -> None:
    index = shard(model)
    first = models.load(str(model)).identity
    last = model / "model-00002-of-00002.safetensors"
    rewrite(last, lambda tensors: {key: value + 1 for key, value in tensors.items()})
    second = models.load(str(model)).identity
    assert first["name"] == second["name"]
    assert first["weights_sha256"] != second["weights_sha256"]
    edit(index, metadata={"total_size": 2})
    assert models.load(str(model)).identity["weights_sha256"] != second["weights_sha256"]


def test_a_pipelines_shards_are_part_of_its_identity(painter: Path) -> None:
    shard(painter / "text_encoder")
    # Named so that it doesn't look like the plain copy of the weights.
    index = painter / "text_encoder" / "model.safetensors.index.json"
    odd = painter / "text_encoder" / "model.a.b.safetensors"
    (painter / "text_encoder" / "model-00002-of-00002.safetensors").rename(odd)
    names = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={k: odd.name if "-00002-" in v else v for k, v in names.items()})
    first = pipelines.load(str(painter)).identity["weights_sha256"]
    rewrite(odd, lambda tensors: {key: value + 1 for key, value in tensors.items()})
    assert pipelines.load(str(painter)).identity["weights_sha256"] != first


@pytest.mark.parametrize(
    "named", ["w.bin", "/etc/passwd", "../toy/w.safetensors", "sub/w.safetensors", "w", ""]
)
def test_an_index_may_name_safetensors_of_its_own_folder_only(model: Path, named: str) -> None:
    (model / "w.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    index = shard(model, also=named)
    with pytest.raises(ValueError, match=rf"index\.json names '{named}' as a file of weights"):
        models.load(str(model))
    with pytest.raises(ValueError, match="reads safetensors files of the same folder only"):
        shards(index, here=False)


def test_a_shard_that_is_not_there_is_named(model: Path) -> None:
    index = shard(model, also="model-00003-of-00003.safetensors")
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.safetensors, which isn't there"):
        models.load(str(model))
    for text in ("[]", "{}", '{"weight_map": 5}', "{", "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"^\S*index\.json (is|holds) "):
            models.load(str(model))


def test_pickled_shards_of_parts_and_scorers_are_refused(painter: Path, tmp_path: Path) -> None:
    shard(painter / "text_encoder", also="w.bin")
    with pytest.raises(ValueError, match=r"names 'w\.bin' as a file of weights"):
        pipelines.load(str(painter))
    folder = clip_folder(tmp_path / "clip")
    shard(folder, also="w.bin")
    with pytest.raises(ValueError, match=r"names 'w\.bin' as a file of weights"):
        load_model(transformers.CLIPModel, str(folder), "cpu")


def test_a_config_may_not_lead_to_weights_elsewhere(model: Path) -> None:
    (model / "sub").mkdir()
    shutil.copy(model / "model.safetensors", model / "sub" / "other.safetensors")
    edit(model / "config.json", transformers_weights="sub/other.safetensors")
    with pytest.raises(ValueError, match="takes weights from 'sub/other.safetensors'"):
        models.load(str(model))


# -- code of a folder's own --------------------------------------------------------------------


def test_code_of_a_models_own_is_never_run_nor_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    ran = tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\nclass M: pass\n")
    edit(
        model / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"},
    )
    with pytest.raises(ValueError, match="code of its own, which regaze doesn't run"):
        models.load(str(model))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["../evil", "Evil"], "of the library '../evil'"),
        (["rootevil", "Evil"], "of the library 'rootevil'"),
        (["os", "system"], "of the library 'os'"),
        (["diffusers", "AutoModel"], "no plain class of diffusers"),
        (["transformers", "AutoTokenizer"], "no plain class of transformers"),
        (["transformers", "pipeline"], "no plain class of transformers"),
        (["transformers", "NoSuchModel"], "no plain class of transformers"),
        (["stable_diffusion", "os"], "no plain class of stable_diffusion"),
        (["diffusers"], "must be a library and a class"),
        ([5, None], "must be a library and a class"),
    ],
)
def test_a_pipelines_index_may_name_plain_classes_of_two_libraries(
    painter: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    (painter / "rootevil.py").write_text("raise SystemExit('code of the folder ran')")
    monkeypatch.chdir(painter)
    monkeypatch.syspath_prepend(str(painter))
    edit(painter / "model_index.json", unet=value)
    with pytest.raises(ValueError, match=rf"model_index\.json: unet .*{message}"):
        pipelines.load(str(painter))


def test_a_pipelines_index_must_make_sense(painter: Path) -> None:
    index = painter / "model_index.json"
    whole = index.read_text()
    for changes, message in (
        ({"_class_name": "Evil"}, "'Evil', which is no pipeline of this diffusers"),
        ({"_class_name": "UNet2DConditionModel"}, "no pipeline of this diffusers"),
        ({"../x": ["diffusers", "AutoencoderKL"]}, "the part '../x', which has no folder"),
        ({"more": ["diffusers", "AutoencoderKL"]}, "the part 'more', which has no folder"),
    ):
        edit(index, **changes)
        with pytest.raises(ValueError, match=message):
            pipelines.load(str(painter))
        index.write_text(whole)
    for text, message in (("[]", "holds a list"), ("[" * 100_000, "nested too deeply")):
        index.write_text(text)
        with pytest.raises(ValueError, match=rf"model_index\.json {message}|is {message}"):
            pipelines.load(str(painter))
