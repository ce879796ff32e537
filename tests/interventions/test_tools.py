"""The generic tools: what they do to known numbers, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, answer, ask, logits
from tiny import tiny
from torch import Tensor

from regaze.hooks import Columns, attach
from regaze.hooks.host import find_host
from regaze.hooks.literal_runs import literally
from regaze.interventions import (
    PAI,
    ColumnScale,
    HeadAblate,
    HeadScale,
    Intervention,
    LogitBias,
    Patch,
    Steer,
    head_outputs,
    parse,
)

LAYERS = (0, 1, 2)
COLUMNS = Columns(
    image=torch.tensor([False, True, True, False])[None, None, None],
    system=torch.tensor([True, False, False, False])[None, None, None],
)


def test_column_tools_on_known_logits() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 2.0])[None, None, None]
    biased = LogitBias(bias=0.5, columns="rest").edit(0, z, COLUMNS)
    assert biased.flatten().tolist() == [0.0, 1.0, -1.0, 2.5]
    scaled = ColumnScale(factor=3).edit(0, z, COLUMNS).softmax(-1).flatten()
    want = torch.tensor([1.0, 3.0, 3.0, 1.0]) * z.softmax(-1).flatten()
    torch.testing.assert_close(scaled, want / want.sum())
    hidden = ColumnScale(factor=0, columns="system").edit(0, z, COLUMNS).softmax(-1)
    assert hidden.flatten()[0] < 1e-29


def test_vectors_go_to_the_heads_that_they_are_for() -> None:
    spec = Steer(heads=((0, 2), (1, 0)), vectors=((1.0, 2.0), (3.0, 4.0)), strength=2)
    out = torch.zeros(1, 4, 1, 2)
    assert spec.edit(0, out, COLUMNS)[0, 2, 0].tolist() == [2.0, 4.0]
    assert spec.edit(1, out, COLUMNS)[0, 0, 0].tolist() == [6.0, 8.0]
    assert spec.edit(1, out, COLUMNS)[0, 2].eq(0).all()
    with pytest.raises(ValueError, match="vectors have 2 numbers, but a head's output has 3"):
        spec.edit(0, torch.zeros(1, 4, 1, 3), COLUMNS)


def test_patching_a_run_with_its_own_outputs_changes_nothing_and_with_anothers_does() -> None:
    model = tiny("qwen2_vl")
    one, other = ask(model, (SHORT, [0])), ask(model, (SHORT, [1]))
    heads = tuple((layer, head) for layer in LAYERS for head in range(4))
    plain = logits(model, one)[0, -1]
    own = Patch(heads=heads, vectors=head_outputs(model.model, one, heads))
    torch.testing.assert_close(logits(model, one, own)[0, -1], plain, rtol=0, atol=1e-4)
    swapped = Patch(heads=heads, vectors=head_outputs(model.model, other, heads))
    assert (logits(model, one, swapped)[0, -1] - plain).abs().max() > 0.1
    with pytest.raises(ValueError, match="no image, so there is no row to read"):
        head_outputs(model.model, ask(model, (SHORT, [])), heads)


@pytest.mark.parametrize("spec", [Patch(), Steer()])
def test_without_vectors_nothing_changes_in_the_literal_form_either(spec: Any) -> None:
    model = tiny("llava")
    inputs, host = ask(model, (SHORT, [0])), find_host(model.model)
    with torch.no_grad():
        with literally(host, inputs, []):
            plain = model.model(**inputs).logits
        with literally(host, inputs, [spec.resolve(host).literal()]):
            assert torch.equal(model.model(**inputs).logits, plain)
    assert torch.equal(logits(model, inputs, spec), logits(model, inputs))


def test_a_silenced_head_is_the_same_as_one_scaled_to_nothing_or_patched_with_zeros() -> None:
    model = tiny("llava")
    inputs, heads = ask(model, (SHORT, [0])), ((1, 3), (2, 0))
    ablated = logits(model, inputs, HeadAblate(heads=heads))
    zeros = Patch(heads=heads, vectors=((0.0,) * 16,), rows="text")
    assert torch.equal(ablated, logits(model, inputs, HeadScale(heads=heads, factor=0)))
    assert torch.equal(ablated, logits(model, inputs, zeros))
    assert not torch.equal(ablated, logits(model, inputs, HeadAblate(heads=heads[:1])))
    assert answer(model, inputs, HeadAblate(heads=heads)) == answer(model, inputs, zeros)


def test_layers_are_those_of_the_heads_and_rows_those_asked_for() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, HeadScale(heads=((2, 1),), factor=0)) as run:
        last_and_before: Tensor = model.model(**inputs).logits
    assert run.specs[0].layers == (2,)  # type: ignore[attr-defined]
    assert [one.layer for one in run.report().interventions[0].layers] == [2]
    changed = (last_and_before != logits(model, inputs))[0].any(-1)
    last = logits(model, inputs, HeadScale(heads=((2, 1),), factor=0, rows="last"))
    assert int(changed.sum()) > 1
    assert (last != logits(model, inputs))[0].any(-1).nonzero().tolist() == [[len(changed) - 1]]


def test_outputs_are_edited_in_batches_beams_and_beside_other_edits_as_alone() -> None:
    model = tiny("qwen2_vl")
    specs = (
        PAI(alpha=0.5, layers=(1,)),
        Steer(heads=((0, 1), (1, 1)), vectors=((0.5,) * 16,)),
        HeadScale(heads=((1, 1), (1, 2)), factor=2),
    )
    rows: list[Row] = [(SHORT, [0]), (LONG, [1])]
    batch = answer(model, ask(model, *rows), *specs, num_beams=2)
    assert batch == [answer(model, ask(model, row), *specs, num_beams=2)[0] for row in rows]
    # An edit of outputs comes behind those of logits, and later ones see what earlier ones left.
    inputs = ask(model, rows[0])
    assert torch.equal(
        logits(model, inputs, specs[1], specs[0], specs[2]), logits(model, inputs, *specs)
    )
    other = logits(model, inputs, specs[0], specs[2], specs[1])
    assert not torch.equal(other, logits(model, inputs, *specs))


@pytest.mark.parametrize("spec", [HeadScale(), HeadAblate(), LogitBias(), ColumnScale(), Steer()])
def test_by_default_tools_do_nothing_and_say_so(spec: Intervention) -> None:
    with attach(tiny("llava").model, spec) as run:
        pass
    assert run.report().interventions[0].exempt


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("headscale", "factor"),
        ("headscale:heads=[[0,1]]", "factor"),
        ("headscale:factor=2,heads=[]", "heads"),
        ("headablate", "heads"),
        ("headablate:to=uniform", "heads"),
        ("logitbias:columns=rest", "bias"),
        ("columnscale:rows=last", "factor"),
        ("steer", "vectors"),
        ("steer:heads=[[0,1]],strength=2", "vectors"),
        ("patch", "vectors"),
    ],
)
def test_what_changes_nothing_as_given_is_said_with_the_field_to_set(text: str, field: str) -> None:
    name = text.partition(":")[0]
    with pytest.raises(ValueError, match=f"^{name} changes nothing as it is given: set {field} to"):
        parse(text).check_given()


@pytest.mark.parametrize(
    "text",
    [
        "headscale:factor=0",
        "headablate:heads=[[0,1]]",
        "headablate:heads=all",
        "logitbias:bias=-1",
        "columnscale:factor=2",
        "steer:vectors=[[1]]",
        "steer:vectors=[[1]],strength=0",
        "patch:vectors=[[1]]",
    ],
)
def test_what_is_set_is_taken_and_so_is_a_strength_that_is_zero_on_purpose(text: str) -> None:
    parse(text).check_given()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("headscale:heads=[0,1]", r"heads must be .*pairs such as \[\[4,0\],\[4,3\]\]"),
        ("headscale:heads=[[0,1],[0,1]]", "names a head twice"),
        ("headscale:heads=every", "heads must be"),
        ("headscale:factor=1e9", "factor must be"),
        ("headscale:rows=lst", "did you mean last"),
        ("headablate:to=zeros", "did you mean zero"),
        ("logitbias:columns=images", "did you mean image"),
        ("columnscale:factor=-1", "factor must be"),
        ("steer:vectors=[1,2]", "vectors must be lists of numbers"),
        ("steer:vectors=[[1,null]]", "vectors must be a finite number"),
        ("patch:heads=[[0,0]],vectors=[[1],[2]]", "2 vectors for 1 heads"),
    ],
)
def test_wrong_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("heads", "message"),
    [(((9, 0),), "layers holds 9"), (((0, 9),), "heads holds 9"), (((-1, 0),), "layers holds -1")],
)
def test_heads_that_do_not_exist_raise(heads: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(tiny("llava").model, HeadScale(heads=heads))
