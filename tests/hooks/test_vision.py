"""Rows of vision towers, looked at and edited, against explicit attention maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask
from tiny import tiny
from tiny_vision import CLASS, MAPPED, SEEING, Scale, explicitly, eye, run
from torch import Tensor
from vision_maps import Raise, Spec, literal, of_picture

from regaze.hooks import attach, capture
from regaze.hooks.passes import Rows


def cases() -> list[Any]:
    rows: list[tuple[str, Rows]] = [(family, "all") for family in SEEING]
    rows += [(family, (0, 5)) for family in SEEING]
    rows += [(family, "class") for family in CLASS]
    return [pytest.param(f, r, id=f"{f}-{r if isinstance(r, str) else 'some'}") for f, r in rows]


@pytest.mark.parametrize(("family", "rows"), cases())
def test_captured_rows_are_those_of_explicit_maps(family: str, rows: Rows) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    plain = run(model, inputs)
    with capture(model.model, rows, processor=model.processor, tower="vision") as seen:
        looked = run(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(looked, plain, strict=True))
    with explicitly(model, inputs) as maps:
        run(model, inputs)
    assert {(one.layer, one.picture) for one in seen.captured} == {
        (layer, number) for layer in maps for number in range(len(seen.pictures))
    }
    for one in seen.captured:
        want = of_picture(maps[one.layer], [p.length for p in seen.pictures], one.picture)
        count = seen.pictures[one.picture].length
        wanted = range(count) if rows == "all" else [0] if rows == "class" else rows
        assert one.rows.tolist() == list(wanted)
        torch.testing.assert_close(one.weights, want[:, one.rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", MAPPED)
def test_captured_rows_are_those_that_the_eager_tower_returns(family: str) -> None:
    model, eager = tiny(family), tiny(family, attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]))
    with capture(model.model, "all", tower="vision") as seen:
        run(model, inputs)
    kept: list[Any] = []
    handle = eye(eager).tower.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append((args, kwargs)), with_kwargs=True
    )
    run(eager, inputs)
    handle.remove()
    args, kwargs = kept[0]
    attentions = eye(eager).tower(*args, **{**kwargs, "output_attentions": True}).attentions
    assert len(attentions) == 2
    for one in seen.captured:
        want = attentions[one.layer][one.picture]
        torch.testing.assert_close(one.weights, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "rows"), cases())
def test_an_edit_is_that_of_the_map(family: str, rows: Rows, implementation: str) -> None:
    model = tiny(family, attn_implementation=implementation)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    plain = run(model, inputs)
    with explicitly(model, inputs, literal(rows, family in CLASS)):
        want = run(model, inputs)
    with attach(model.model, Spec(Raise(rows)), processor=model.processor) as attached:
        found = run(model, inputs)
    report = attached.report()
    assert report.fired
    assert [one.layer for one in report.interventions[0].layers] == [0, 1]
    assert float((want[0] - plain[0]).abs().max()) > 1e-2
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))
    assert all(torch.equal(a, b) for a, b in zip(run(model, inputs), plain, strict=True))


@pytest.mark.parametrize("family", SEEING)
def test_scaled_heads_are_those_of_the_map(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    seen = eye(model)
    factors = torch.arange(1, seen.n_heads + 1).float() / 2

    def scaling(layer: int) -> Callable[..., Any]:
        def scale(module: Any, args: Any) -> Any:
            parts = args[0].unflatten(-1, (seen.n_heads, -1))
            return ((parts * (factors + layer)[:, None]).flatten(-2), *args[1:])

        return scale

    handles = []
    for layer, path in seen.paths.items():
        module = seen.tower.get_submodule(path)
        names = ("out_proj", "o_proj", "proj", "projection", "projection_layer")
        last = next(getattr(module, name) for name in names if hasattr(module, name))
        handles.append(last.register_forward_pre_hook(scaling(layer)))
    want = run(model, inputs)
    for handle in handles:
        handle.remove()
    with attach(model.model, Spec(Scale()), processor=model.processor) as attached:
        found = run(model, inputs)
    assert attached.report().fired
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


@pytest.mark.parametrize("family", SEEING)
def test_a_batch_of_two_is_its_singles(family: str) -> None:
    model = tiny(family)
    both = ask(model, (SHORT, [0]), (LONG, [1]))
    with attach(model.model, Spec(Raise("all")), Spec(Scale()), processor=model.processor):
        want = torch.cat([run(model, ask(model, (SHORT, [seed])))[0] for seed in (0, 1)])
        found, _ = run(model, both)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("family", SEEING)
def test_the_grid_is_where_patches_lie(family: str) -> None:
    """A picture that is dark but for one corner: its brightest patch is there."""
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    with capture(model.model, "all", tower="vision") as seen:
        run(model, inputs)
    for number, picture in enumerate(seen.pictures):
        columns = picture.grid.flatten()
        assert len(set(columns.tolist())) == len(columns)
        assert picture.length - len(columns) == int(family in CLASS)
        heat = seen.heat(number)
        assert heat.shape == picture.grid.shape
        assert 0 < float(heat.sum()) <= 1 + 1e-5


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_grid_names_patches_in_the_order_of_the_tower(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    entered: list[Tensor] = []
    tower = eye(model).tower
    handle = tower.blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["position_embeddings"][0]),
        with_kwargs=True,
    )
    with capture(model.model, "all", tower="vision") as seen:
        run(model, inputs)
    handle.remove()
    start = 0
    for picture in seen.pictures:
        turned = entered[0][start : start + picture.length][picture.grid]  # "rows cols D"
        start += picture.length
        # Half of the angles tell a patch's row, the others its column.
        down, across = turned.unflatten(-1, (2, -1))[..., 0, :].chunk(2, -1)
        assert torch.equal(down, down[:, :1].expand_as(down))
        assert torch.equal(across, across[:1].expand_as(across))
        assert not torch.equal(down[0], down[1])
        assert not torch.equal(across[:, 0], across[:, 1])


def test_a_window_counts_and_sees_itself_alone() -> None:
    model = tiny("qwen2_5_vl")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    with (
        attach(model.model, Spec(Raise("all"))) as run_,
        capture(model.model, "all", tower="vision") as seen,
    ):
        run(model, inputs)
    calls = {one.layer: one.calls for one in run_.report().interventions[0].layers}
    assert calls == {0: 10, 1: 2}
    first = next(one for one in seen.captured if one.layer == 0)
    assert int((first.weights[0] > 0).sum()) == 16**2 * 2 + 8**2 * 2


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_what_is_seen_is_what_edits_leave(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    with (
        attach(model.model, Spec(Raise("all"))),
        capture(model.model, (1,), [1], [1], tower="vision") as seen,
    ):
        run(model, inputs)
    with explicitly(model, inputs, literal("all", family in CLASS)) as maps:
        run(model, inputs)
    (one,) = seen.captured
    want = of_picture(maps[1], [p.length for p in seen.pictures], 0)
    torch.testing.assert_close(one.weights, want[[1]][:, [1]], rtol=0, atol=1e-5)


def test_a_mean_over_heads() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with (
        capture(model.model, "class", heads="mean", tower="vision") as mean,
        capture(model.model, "class", tower="vision") as every,
    ):
        model.model.generate(**inputs, max_new_tokens=3)
    for a, b in zip(mean.captured, every.captured, strict=True):
        assert torch.allclose(a.weights, b.weights.mean(0, keepdim=True))


def test_padded_patches_are_none() -> None:
    model = tiny("idefics3")
    inputs = ask(model, (SHORT, [0]))
    inputs["pixel_attention_mask"][0, 0, :, 9:] = 0  # the right half of the first tile
    plain = run(model, inputs)
    with capture(model.model, "all", tower="vision") as seen:
        assert torch.equal(run(model, inputs)[1], plain[1])
    assert seen.pictures[0].grid.shape == (6, 3)
    assert seen.pictures[1].grid.shape == (6, 6)
    first = next(one for one in seen.captured if (one.layer, one.picture) == (1, 0))
    shown = seen.pictures[0].grid.flatten()
    assert torch.equal(first.rows, shown)
    hidden = torch.ones(36, dtype=torch.bool)
    hidden[shown] = False
    assert not bool(first.weights[..., hidden].any())
    with explicitly(model, inputs) as maps:
        run(model, inputs)
    torch.testing.assert_close(first.weights, maps[1][0][0][:, shown], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_maps_that_the_model_returns_are_the_edited_ones(family: str) -> None:
    model = tiny(family, attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    kept: list[Any] = []
    handle = eye(model).tower.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append((args, kwargs)), with_kwargs=True
    )
    with explicitly(model, inputs, literal("all", family in CLASS)) as maps:
        run(model, inputs)
    handle.remove()
    args, kwargs = kept[0]
    with attach(model.model, Spec(Raise("all"))), torch.no_grad():
        out = eye(model).tower(*args, **{**kwargs, "output_attentions": True})
    for layer, found in enumerate(out.attentions):
        torch.testing.assert_close(found, maps[layer][0], rtol=0, atol=1e-5)
