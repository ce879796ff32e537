"""Bad folders: damaged models, pipelines, ControlNets and run directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from bad_inputs.case import Case, command

Change = Callable[[Path], Any]
_TEXTS = {
    "empty": "", "half": "{", "null": "null", "list": "[]", "number": "5", "object": "{}",
    "deep": "[" * 100_000,
}  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    ask = ("eval", "pope", "--split", "test", "--n-images", "2", "--max-new-tokens", "1", "--model")
    for name, change in _models():
        yield _on_copy("models", "toy", name, change, *ask)
    paint = ("compare", "-p", "a red circle", "--with", "none", "--seeds", "1", "--steps", "1")
    for name, change in _pipelines():
        yield _on_copy("pipelines", "painter", name, change, *paint, "--model")
    for name, change in _runs():
        yield _on_copy("run directories", "run", name, change, "show")
        again = ("eval", "pope", "--split", "test", "--n-images", "2", "--max-new-tokens", "1")
        if name.startswith(("manifest.json", "predictions.jsonl")) and name.endswith(
            ("half", "list", "number")
        ):
            yield _on_copy("run directories", "run", name, change, *again, "--model", "toy",
                           "--out")  # fmt: skip


def _on_copy(kind: str, of: str, name: str, change: Change, *arguments: str) -> Case:
    folder = f"changed {of}"

    def files() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(of, folder)
        change(Path(folder))

    case = command(kind, *arguments, folder, files=files)
    return Case(kind, f"{name}: {arguments[0]}", case.act)


def _models() -> Iterator[tuple[str, Change]]:
    for file in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        for what, text in _TEXTS.items():
            if (file, what) != ("tokenizer_config.json", "object"):
                yield f"{file} {what}", _write(file, text)
        yield f"no {file}", _remove(file)
    for key, value in (
        ("model_type", "nope"), ("model_type", 5), ("text_config", None), ("text_config", []),
        ("vision_config", None), ("image_token_index", 10**9), ("image_token_index", -5),
        ("image_token_id", 10**9), ("vision_feature_layer", 99),
        ("transformers_weights", "../x.safetensors"),
    ):  # fmt: skip
        yield f"config.json {key}={value}", _edit("config.json", **{key: value})
    for key, value in (
        ("num_hidden_layers", 99), ("num_attention_heads", 0), ("num_attention_heads", 3),
        ("hidden_size", 7), ("vocab_size", 3), ("hidden_act", "nope"),
    ):  # fmt: skip
        yield f"text_config {key}={value}", _inner("config.json", "text_config", key, value)
    for template in ("{{", "{{ 1/0 }}", "{{ raise_exception('no') }}", "{% for %}", "",
                     "{{ ''.__class__.__mro__ }}", "no image here"):  # fmt: skip
        yield f"template {template!r}", _write("chat_template.jinja", template)
    yield "no weights", _remove("model.safetensors")
    yield "empty weights", _write("model.safetensors", "")
    yield "cut weights", lambda folder: _cut(folder / "model.safetensors")
    yield "missing weights", lambda folder: _drop(folder / "model.safetensors", 9)
    yield "an adapter", _write("adapter_config.json", "{}")
    for shard in ("w.bin", "/etc/passwd", "../x.safetensors", "gone.safetensors"):
        index = json.dumps({"metadata": {}, "weight_map": {"a": shard}})
        yield f"index {shard}", _write("model.safetensors.index.json", index)
    for what, text in _TEXTS.items():
        yield f"index {what}", _write("model.safetensors.index.json", text)


def _pipelines() -> Iterator[tuple[str, Change]]:
    value: Any
    files = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
             "scheduler/scheduler_config.json")  # fmt: skip
    for file in files:
        for what, text in _TEXTS.items():
            if (file, what) != ("scheduler/scheduler_config.json", "object"):
                yield f"{file} {what}", _write(file, text)
        yield f"no {file}", _remove(file)
    for part in ("unet", "vae", "text_encoder"):
        yield f"no {part}", partial(_without, part)
        for what, damage in (("cut", _cut), ("missing", _drop), ("empty", _empty)):
            yield (
                f"{part} {what}",
                partial(_damaged, part, damage),
            )
    for value in (["../evil", "E"], ["os", "system"], ["diffusers", "Nope"], [], [5, 5], "x", None,
                  ["transformers", "AutoModel"], ["diffusers", "DDIMScheduler"]):  # fmt: skip
        yield f"unet={value}", _edit("model_index.json", unet=value)
    for name in ("Nope", 5, ["a", "B"], None, "UNet2DConditionModel", "../x"):
        yield f"_class_name={name}", _edit("model_index.json", _class_name=name)
    yield "code", _write("unet/unet.py", "raise SystemExit")


def _runs() -> Iterator[tuple[str, Change]]:
    value: Any
    condition = "none"
    for file in ("run.json", f"{condition}/manifest.json", f"{condition}/predictions.jsonl"):
        for what, text in _TEXTS.items():
            lines = text + "\n" if file.endswith("l") and text else text
            yield f"{Path(file).name} {what}", _write(file, lines)
    for key in ("source", "conditions", "limit"):
        for value in (None, 5, "x", [], {}, [5]):
            if (key, value) not in (("limit", None), ("limit", 5)):
                yield f"run.json {key}={value}", _edit("run.json", **{key: value})
    for key in ("benchmark", "data", "n_images", "split", "profiles", "seed"):
        for value in ({}, "x", [5], -1):
            yield f"source {key}={value}", _inner("run.json", "source", key, value)
    for key in ("config", "sessions", "counts"):
        for value in (5, "x", [5]):
            yield f"manifest {key}={value}", _edit(f"{condition}/manifest.json", **{key: value})
    yield "no manifest", _remove(f"{condition}/manifest.json")


def _without(part: str, folder: Path) -> None:
    shutil.rmtree(folder / part)


def _damaged(part: str, damage: Callable[[Path], None], folder: Path) -> None:
    damage(next((folder / part).glob("*.safetensors")))


def _write(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def _remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink(missing_ok=True)


def _edit(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**fields, **changes}))

    return change


def _inner(file: str, part: str, key: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        fields[part][key] = value
        (folder / file).write_text(json.dumps(fields))

    return change


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _drop(path: Path, count: int = 1) -> None:
    tensors = load_file(path)
    kept = sorted(tensors)[count:]
    save_file({name: tensors[name].clone() for name in kept}, path, {"format": "pt"})
