"""Every method has a literal form, and the forms owe nothing to the engine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from tiny import tiny

from regaze.hooks import Map, MapForm
from regaze.interventions import Intervention, get, names

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", [n for n in names() if get(n).stage == "attention"])
def test_every_method_has_a_literal_form_and_a_strength(name: str) -> None:
    cls = get(name)
    assert cls.literal is not Intervention.literal
    idle = cls().idle()
    if name == "dola":  # A contrast of the model with itself, without a factor.
        assert idle is None
    else:
        assert isinstance(idle, cls) and idle == idle.idle()


@pytest.mark.parametrize(
    "path", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "hooks").rglob("literal*.py"))
)
def test_literal_forms_run_without_the_engine(path: str) -> None:
    engine = ("attention", "rows", "kernel", "null_prompt", "seat", "perturb", "fork", "attach")
    found = [
        node.module or ""
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not [name for name in found if name.rpartition(".")[2] in engine]


def test_a_map_form_sees_what_the_columns_are() -> None:
    model = tiny("llava")
    seen: list[Map] = []
    form = MapForm((0,), lambda z, m: seen.append(m) or z)  # type: ignore[func-returns-value]
    from asking import SHORT, ask

    from regaze.hooks.host import find_host
    from regaze.hooks.literal_runs import literally

    inputs = ask(model, (SHORT, [0]))
    with literally(find_host(model.model), inputs, [form]), torch.no_grad():
        model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    first, then = seen[0], seen[-1]
    columns = model.expected_image_columns(inputs)[0]
    assert torch.equal(first.image.flatten(), columns)
    assert first.last.flatten().nonzero().tolist() == [[len(columns) - 1]]
    assert first.seen[0, 0].tril().equal(first.seen[0, 0])
    assert then.image.shape[-1] == len(columns) + 1 and not then.prompt.flatten()[-1]
    assert then.text.all() and then.last.all()
