from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy import save_toy_model, toy_model

from regaze.evals.asking.models import identify, load, processor_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("models") / "toy")


def copy(folder: Path, to: Path, *without: str) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.name not in without:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_folder_loads_ready_to_answer(folder: Path) -> None:
    loaded = load(str(folder))
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.processor.chat_template
    assert loaded.identity["name"] == str(folder)


def test_dtype_and_attention_are_taken_as_given(folder: Path) -> None:
    model = load(str(folder), dtype="bfloat16", attn_implementation="eager").model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def weights_hash(folder: Path) -> str:
    return str(load(str(folder)).identity["weights_sha256"])


def test_the_hash_sees_a_changed_weight_of_the_same_size(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other")
    assert weights_hash(other) == weights_hash(folder)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert weights_hash(other) != weights_hash(folder)


def test_pickled_weights_are_refused_without_being_opened(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other", "model.safetensors")
    (other / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"only pytorch_model\.bin, a pickle.*safetensors only"):
        load(str(other))


def test_folders_that_hold_no_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="no weights"):
        load(str(copy(folder, tmp_path / "other", "model.safetensors")))


def test_a_damaged_weight_file_is_one_line(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ValueError, match=r"^cannot load .*$"):
        load(str(other))


def test_a_model_without_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other", "chat_template.jinja")
    path = other / "processor_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no chat template"):
        load(str(other))


def test_names_that_lead_nowhere_say_what_would() -> None:
    with pytest.raises(ValueError, match="did you mean sandbox"):
        load("sandbx")
    with pytest.raises(ValueError, match="it can't be had from the Hub"):
        load("nobody/no-such-model")
    with pytest.raises(ValueError, match="it can't be a Hub id either"):
        load("/no/such/folder")


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn", "float8_e4m3fn", ""])
def test_unknown_dtypes_are_refused(folder: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        load(str(folder), dtype=dtype)


def test_unknown_devices_are_refused(folder: Path) -> None:
    for device in ("gpu", "meta", "cuda:99", ""):
        with pytest.raises(ValueError, match=f"there is no device '{device}' for a model here"):
            load(str(folder), device=device)
    with pytest.raises(ValueError, match="exclude each other"):
        load(str(folder), device="cpu", device_map="auto")


def test_identities_tell_models_apart() -> None:
    (model, _), (other, _) = toy_model(), toy_model()
    assert identify(other) == identify(model)
    next(other.parameters()).data.view(-1)[0] += 1
    assert identify(other) != identify(model)


def test_using_a_processor_does_not_change_what_is_recorded_of_it() -> None:
    _, processor = toy_model()
    before = processor_settings(processor)
    processor.tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=2)
    assert processor_settings(processor) == before
