"""Bad values given to Python functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny_painter
import torch
from PIL import Image
from toy import toy_model

import regaze
from bad_inputs.case import Case, call
from regaze.evals.asking import models
from regaze.evals.asking.decoding import Decoding
from regaze.evals.pictures import pipelines, prompts
from regaze.hooks import capture
from regaze.hooks.host import find_host
from regaze.interventions.base import get, names
from regaze.interventions.diffusion import flow

_ANYTHING: tuple[Any, ...] = (None, 5, "x", [], {}, object(), b"", 1.5, torch.zeros(2), np.zeros(2))
_NOT_SPECS: tuple[Any, ...] = ("vhr", None, 5, ["vhr"], {"name": "vhr"}, regaze.VHR, object())
_VALUES: tuple[Any, ...] = (
    float("nan"), float("inf"), 10**400, "abc", b"x", object(), {"a": 1}, [[1, [2]]], 1j,
    np.array([np.nan]), torch.tensor([float("nan")]), {1, 2}, lambda: 1, Path("x"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    for value in _ANYTHING:
        shown = f"{type(value).__name__} {value!r}"[:60]
        yield call("api: attach", f"attach({shown})", partial(regaze.attach, value))
        yield call("api: parse", f"parse({shown})", partial(regaze.parse, value))
        yield call("api: from_dict", f"from_dict({shown})", partial(regaze.from_dict, value))
        yield call("api: capture", f"capture({shown})", partial(capture, value))
        yield call("api: sinks", f"discover_sinks({shown})", partial(regaze.discover_sinks, value))
        yield call("api: verify", f"verify({shown})", partial(regaze.verify, value))
        yield call("api: closer", f"look_closer({shown})",
                   partial(_anything, regaze.look_closer, value, None, None, ""))  # fmt: skip
        if not isinstance(value, str):
            yield call("api: load", f"models.load({shown})", partial(models.load, value))
            yield call("api: load", f"pipelines.load({shown})", partial(pipelines.load, value))
    for spec in _NOT_SPECS:
        name = repr(spec)[:40]
        yield call("api: attach", f"a model, {name}", partial(_attached, spec))
        yield call("api: attach", f"a pipeline, {name}", partial(_on_painter, spec))
    for name in names():
        cls = get(name)
        for field in dataclasses.fields(cls):
            free = str(field.type) in ("str", "Any")
            for value in () if free else _VALUES:
                if "tuple" in str(field.type) and isinstance(value, Path):
                    continue
                shown = f"{cls.__name__}({field.name}={value!r})"[:90]
                yield call(
                    "api: specs",
                    shown,
                    partial(_used, cls, field.name, value),
                )
        yield call("api: specs", f"{name} preset", partial(cls.preset, "nope"))
    for spans in ("x", 5, [5], [{"image": 5}], [{"image": [5]}], [{"image": [(1,)]}],
                  [{"image": [(5, 2)]}], [{"nope": [(0, 1)]}], [None], [{"image": [("a", "b")]}],
                  [{"image": [(0, 10**9)]}], [{"image": [(0.5, 2)]}]):  # fmt: skip
        yield call("api: spans", f"spans={spans!r}", partial(_with_spans, spans))
    for rows in (5, "x", [], [True], [[0]], torch.tensor([5]), None, object()):
        if rows is not None:
            yield call("api: cond_rows", f"cond_rows={rows!r}"[:50],
                       partial(_on_painter, regaze.PAG(), cond_rows=rows))  # fmt: skip
    for rows in ("first", 5, [], None, {}):
        yield call("api: capture", f"rows={rows!r}", partial(_captured, rows=rows))
    for layers in ([99], [-1], ["a"], 5, "all", [[0]], [1.5]):
        yield call("api: capture", f"layers={layers!r}",
                   partial(_captured, layers=layers))  # fmt: skip
    for heads in ([99], [-1], ["a"], 5, "max", [1.5]):
        yield call("api: capture", f"heads={heads!r}",
                   partial(_captured, heads=heads))  # fmt: skip
    for fields in ({"beams": 0}, {"beams": -1}, {"temperature": float("nan")},
                   {"temperature": 0},
                   {"top_p": 2.0}, {"top_k": -1}, {"seeds": ()}, {"seeds": (0, 0)},
                   {"beams": "x"}, {"temperature": "x"}, {"seeds": 5},
                   {"seeds": (-1,)}):  # fmt: skip
        yield call("api: decoding", f"Decoding({fields})", partial(Decoding, **fields))
    for texts in ([], [5], None, 5, [None]):
        yield call("api: prompts", f"prompts.of({texts})", partial(_anything, prompts.of, texts))
    for question in ("", " ", None, 5, ["a"]):
        yield call("api: closer", f"a question {question!r}", partial(
            _closer, Image.new("RGB", (64, 64)), question))  # fmt: skip
    for image in (None, "x.png", 5, np.zeros((2, 2, 3)), [Image.new("RGB", (9, 9))]):
        act = partial(_closer, image, "is there a dog?")
        yield call("api: closer", f"an image {type(image)}", act)
    for path in ("no.npz", "file.txt", "empty", "", "folder.png"):
        yield call("api: flow", f"flow.read({path!r})", partial(flow.read, Path(path)))


def _model() -> tuple[Any, Any]:
    return toy_model()


def _anything(function: Any, *given: Any) -> Any:
    return function(*given)


def _captured(**options: Any) -> Any:
    return capture(_model()[0], **options)


def _closer(image: Any, question: Any) -> Any:
    return regaze.look_closer(*_model(), image, question)


def _used(cls: Any, field: str, value: Any) -> Any:
    """A spec that was made may be refused where it meets a model."""
    spec = cls(**{field: value})
    if spec.stage == "question":
        return spec.resolve(find_host(*_model()))
    return (_attached if spec.acts_on == "vision-language models" else _on_painter)(spec)


def _attached(spec: Any) -> Any:
    model, processor = _model()
    return regaze.attach(model, spec, processor=processor)


def _with_spans(spans: Any) -> Any:
    model, _ = _model()
    ids = torch.tensor([[5, 6, 7, 8]])
    with regaze.attach(model, regaze.PAI(), spans=spans):
        return model(input_ids=ids)


def _on_painter(spec: Any, **options: Any) -> Any:
    pipe = tiny_painter.fresh().pipeline
    with regaze.attach(pipe, spec, **options):
        return pipe("a red circle", num_inference_steps=1, output_type="latent")
