"""Rows of vision towers, looked at and edited, against explicit attention maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import vision_maps
from asking import LONG, SHORT, ask, logits
from census_lvlm import tiny_model
from flash import NAME as FLASH
from flash import use_flash
from threads import together
from tiny import FAMILIES, Tiny, tiny
from torch import Tensor
from traces import trace
from vision_maps import Change, Raise, Spec, literal, of_picture

from regaze.hooks import Branch, Edit, attach, capture
from regaze.hooks.dispatch import SEATS
from regaze.hooks.families import FAMILIES as KNOWN
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass, Rows
from regaze.interventions import PAI

SEEING = tuple(family for family in FAMILIES if not KNOWN[family].refuse)
CLASS = ("llava", "llava_next", "internvl", "instructblip")
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3")
MAPPED = tuple(family for family in SEEING if "qwen" not in family)
"""Families whose vision towers can return their maps."""


def eye(model: Tiny) -> Any:
    return find_host(model.model, model.processor).eye


def sizes(model: Tiny, inputs: dict[str, Any]) -> list[int]:
    """Patches of each picture in a packed sequence."""
    if "image_grid_thw" in inputs:
        return [int(t * h * w) for t, h, w in inputs["image_grid_thw"]]
    if model.family == "mistral3":
        return [int(h // 4 * (w // 4)) for h, w in inputs["image_sizes"]]
    return []


def explicitly(
    model: Tiny, inputs: dict[str, Any], change: Change = lambda layer, z, first: z
) -> AbstractContextManager[dict[int, list[Tensor]]]:
    """Let the vision tower attend by explicit maps, changed."""
    return vision_maps.explicitly(eye(model), sizes(model, inputs), change)


@torch.no_grad()
def run(model: Tiny, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The vision tower's output, "N E" of all pictures, and the model's logits."""
    found: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append(output.last_hidden_state.flatten(0, -2))

    handle = eye(model).tower.register_forward_hook(keep)
    out = model.model(**inputs).logits
    handle.remove()
    (seen,) = found
    return seen, out


class Scale(Edit):
    """Heads get factors of their own."""

    tower = "vision"

    def __init__(self) -> None:
        super().__init__((0, 1))

    def scale_heads(self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass) -> Tensor:
        assert null is None
        return torch.arange(1, out.shape[2] + 1).float().expand(out.shape[0], -1) / 2 + layer


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


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mistral3", "gemma3"])
def test_both_towers_are_edited_together(family: str) -> None:
    model = tiny(family, fresh=True)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    plain, before = run(model, inputs), trace(model.model)
    text = PAI(alpha=0.5, layers=(0, 1, 2))
    with explicitly(model, inputs, literal("all", family in CLASS)):
        want = logits(model, inputs, text)
    both = attach(model.model, text, Spec(Raise("all")), processor=model.processor)
    found = run(model, inputs)[1]
    report = both.report()
    other = attach(model.model, Spec(Scale()), processor=model.processor)
    both.detach()
    both.detach()
    assert not torch.equal(run(model, inputs)[1], plain[1])
    other.detach()
    torch.testing.assert_close(found, want, rtol=0, atol=2e-5 * float(want.abs().max()))
    assert report.fired
    assert trace(model.model) == before
    assert all(torch.equal(a, b) for a, b in zip(run(model, inputs), plain, strict=True))


def test_a_second_run_of_the_model_is_not_edited() -> None:
    class Doubt(Edit):
        def __init__(self) -> None:
            super().__init__(())
            self.branches = (Branch(lambda given, pass_: given, lambda a, b, pass_: 2 * a - b),)

    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    edit = Raise("all")
    with attach(model.model, Spec(edit), Spec(Doubt())) as run_:
        model.model.generate(**inputs, max_new_tokens=2)
    vision, scores = run_.report().interventions
    assert vision.prompts == 1
    assert [one.calls for one in vision.layers] == [1, 1]
    assert scores.fired


class Odd:
    """A kernel that adds a bias which nobody knows of."""

    def __init__(self, size: float) -> None:
        self.size = size

    def __call__(self, layer: int, z: Tensor, first: int) -> Tensor:
        return z - self.size * torch.arange(z.shape[-1]) / z.shape[-1]


@pytest.mark.parametrize("edit", [Raise("all"), Raise((2,)), Scale()], ids=["all", "row", "heads"])
@pytest.mark.parametrize("family", ["llava", "siglip", "qwen2_5_vl", "mistral3"])
def test_an_unknown_bias_is_found_out(family: str, edit: Edit) -> None:
    model = tiny("gemma3" if family == "siglip" else family)
    inputs = ask(model, (SHORT, [0]))
    with (
        explicitly(model, inputs, Odd(1.0)),
        attach(model.model, Spec(edit)),
        pytest.raises(RuntimeError, match="isn't what regaze recomputes"),
    ):
        run(model, inputs)
    with explicitly(model, inputs, Odd(0.0)), attach(model.model, Spec(edit)):
        run(model, inputs)


def test_the_check_is_made_of_every_layer_and_after_every_attach() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))

    def odd_late(layer: int, z: Tensor, first: int) -> Tensor:
        return Odd(float(layer == 1))(layer, z, first)

    with explicitly(model, inputs, odd_late), attach(model.model, Spec(Raise("all", [0]))):
        run(model, inputs)
        with (
            attach(model.model, Spec(Raise("class", [1]))),
            pytest.raises(RuntimeError, match=r"layer 1 .*isn't what regaze recomputes"),
        ):
            run(model, inputs)


@pytest.mark.parametrize("family", PACKED)
def test_a_kernel_for_packed_sequences(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family, fresh=True)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    with attach(model.model, Spec(Raise("all")), Spec(Scale()), processor=model.processor) as one:
        want = run(model, inputs)
    use_flash(model.model, monkeypatch)
    model.model.get_decoder().config._attn_implementation_internal = "sdpa"
    eye(model).tower.config._attn_implementation_internal = FLASH
    plain = run(model, inputs)
    with capture(model.model, "all", tower="vision") as seen:
        assert torch.equal(run(model, inputs)[0], plain[0])
    with attach(model.model, Spec(Raise("all")), Spec(Scale()), processor=model.processor) as two:
        found = run(model, inputs)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    calls = [[x.calls for x in r.report().interventions[0].layers] for r in (one, two)]
    assert calls[0] == calls[1]
    assert len({(r.layer, r.picture) for r in seen.captured}) == 4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_threads_get_what_each_gets_alone(family: str) -> None:
    model = tiny(family)
    prompts = [ask(model, (SHORT, [0])), ask(model, (LONG, [1])), ask(model, (SHORT, [1]))]

    def say(inputs: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            out: Tensor = model.model(**inputs).logits
        return out

    with attach(model.model, Spec(Raise("all")), Spec(Scale()), PAI(0.5, layers=(0, 1))):
        want = [say(inputs) for inputs in prompts]
        found = together(*(lambda i=i: [say(i) for _ in range(5)] for i in prompts))
    for outs, one in zip(found, want, strict=True):
        assert all(torch.equal(out, one) for out in outs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("place", ["", "encoder.layers.0", "encoder.layers.1.self_attn"])
def test_an_interrupted_pass_leaves_nothing(place: str, error: type[BaseException]) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    plain, before, count = run(model, inputs), trace(model.model), len(SEATS)
    module = eye(model).tower.get_submodule(place)

    def fail(*_: Any) -> None:
        raise error

    with attach(model.model, Spec(Raise("all")), PAI(0.5, layers=(0, 1))):
        want = run(model, inputs)
        handle = module.register_forward_hook(fail)
        with pytest.raises(error):
            model.model(**inputs)
        handle.remove()
        assert torch.equal(run(model, inputs)[0], want[0])
        handle = module.register_forward_hook(fail)
        with pytest.raises(error):
            model.model(**inputs)
        handle.remove()
    assert trace(model.model) == before
    assert len(SEATS) == count
    assert all(torch.equal(a, b) for a, b in zip(run(model, inputs), plain, strict=True))


def test_a_copy_of_an_attached_model_is_the_plain_model() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    plain = run(model, inputs)[1]
    with attach(model.model, Spec(Raise("all"))) as attached, torch.no_grad():
        assert torch.equal(copy.deepcopy(model.model)(**inputs).logits, plain)
    assert attached.report().interventions[0].prompts == 0


def test_gradients_go_through_edits() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    change = literal("all", True)

    def gradient() -> Tensor:
        pixels: Tensor = inputs["pixel_values"].clone().requires_grad_()
        model.model(**{**inputs, "pixel_values": pixels}).logits.square().sum().backward()
        assert pixels.grad is not None
        return pixels.grad

    with explicitly(model, inputs, change):
        want = gradient()
    with attach(model.model, Spec(Raise("all"))):
        found = gradient()
    torch.testing.assert_close(found, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_dropped_weights_cannot_be_repeated() -> None:
    model = tiny("llava", fresh=True)
    eye(model).tower.encoder.layers[1].self_attn.dropout = 0.5
    model.model.train()
    with (
        attach(model.model, Spec(Raise("all"))),
        pytest.raises(NotImplementedError, match="drops attention weights at random"),
    ):
        run(model, ask(model, (SHORT, [0])))


class Deep(Raise):
    """Wants what a vision tower doesn't have."""

    def see_hidden(self, layer: int, hidden: Tensor, pass_: Pass) -> None:
        raise AssertionError


class Wordy(Raise):
    def begin(self, pass_: Pass) -> None:
        pass_.tokens.has_image.any()


class TextRaise(Raise):
    tower = "text"


@pytest.mark.parametrize(
    ("family", "edit", "words"),
    [
        ("gemma3", Raise("class"), "has no class token"),
        (
            "llava",
            Raise("all", [2]),
            "there is no layer 2 in the vision tower: it has layers 0 to 1",
        ),
        ("llava", Raise("last"), "'last' rows are of a text tower"),
        ("llava", Raise((-1,)), "there is no row -1"),
        ("llava", TextRaise("all"), "'all' rows are of a vision tower"),
        ("llava", TextRaise((1, 2)), "rows are of a vision tower"),
        ("llava", Deep("all"), "only edit_logits, see_rows and scale_heads act there"),
    ],
)
def test_what_cannot_act_raises_when_attached(family: str, edit: Edit, words: str) -> None:
    model = tiny(family)
    before = trace(model.model)
    with pytest.raises(ValueError, match=words):
        attach(model.model, Spec(PAI(0.5, layers=(0,)).bind(find_host(model.model))), Spec(edit))
    assert trace(model.model) == before


def test_a_row_that_a_picture_lacks_raises() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with (
        capture(model.model, [3, 10], tower="vision"),
        pytest.raises(ValueError, match=r"picture 0 has 10 rows .*no row 10"),
    ):
        run(model, inputs)


def test_a_method_that_wants_tokens_is_told() -> None:
    model = tiny("llava")
    with (
        attach(model.model, Spec(Wordy("all"))),
        pytest.raises(AttributeError, match="a pass of a vision tower has no prompt"),
    ):
        run(model, ask(model, (SHORT, [0])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": "last"}, 'rows of the vision tower must be "class", "all" or indices'),
        ({"rows": "all", "layers": [2]}, "there is no layer 2"),
        ({"rows": "all", "heads": [2]}, "there is no head 2"),
        ({"rows": "all", "heads": "max"}, 'heads must be indices or "mean"'),
    ],
)
def test_what_cannot_be_captured_raises(options: Any, words: str) -> None:
    look: Any = capture
    with pytest.raises(ValueError, match=words):
        look(tiny("llava").model, tower="vision", **options)
    with pytest.raises(ValueError, match='tower must be "text" or "vision"'):
        look(tiny("llava").model, tower="audio", **options)


@pytest.mark.parametrize("rows", ["all", "class", [1, 2]])
def test_the_text_tower_has_no_such_rows(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows of the text tower must be"):
        capture(tiny("llava").model, rows)


@pytest.mark.parametrize("family", ["gemma3n", "fast_vlm", "got_ocr2", "llama4"])
def test_an_unknown_vision_tower_raises(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError, match="vision tower of .*neither edited nor looked at"):
        capture(model.model, "all", tower="vision")
    with pytest.raises(ValueError, match="vision tower of .*neither edited nor looked at"):
        attach(model.model, Spec(Raise("all")))


def test_a_known_family_with_another_tower_raises() -> None:
    model = tiny("llava", fresh=True)

    class Other(type(model.model.model.vision_tower)):  # type: ignore[misc]
        pass

    model.model.model.vision_tower.__class__ = Other
    with pytest.raises(ValueError, match="is a Other, which regaze doesn't know"):
        capture(model.model, "all", tower="vision")
    del model.model.model.vision_tower
    with pytest.raises(ValueError, match=r"has no model\.vision_tower"):
        capture(model.model, "all", tower="vision")


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


def test_a_layer_that_attends_twice_raises() -> None:
    model = tiny("llava", fresh=True)
    attention: Any = eye(model).tower.encoder.layers[1].self_attn
    once = attention.forward
    attention.forward = lambda *args, **kwargs: once(*args, **kwargs) and once(*args, **kwargs)
    with (
        attach(model.model, Spec(Raise("all"))),
        pytest.raises(RuntimeError, match=r"layer 1 of the vision tower .*can't be edited exactly"),
    ):
        run(model, ask(model, (SHORT, [0])))


def test_a_layer_that_goes_round_the_interface_raises() -> None:
    model = tiny("llava", fresh=True)
    attention: Any = eye(model).tower.encoder.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with (
        attach(model.model, Spec(Raise("all"))),
        pytest.raises(RuntimeError, match=r"layers \[1\] of the vision tower didn't call"),
    ):
        run(model, ask(model, (SHORT, [0])))


def test_pictures_that_see_each_other_raise() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    given = {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
    whole = torch.tensor([0, len(inputs["pixel_values"])], dtype=torch.int32)
    with attach(model.model, Spec(Raise("all"))), torch.no_grad():
        eye(model).tower(**given)
        with pytest.raises(RuntimeError, match=r"layer 0 of the vision tower .*can't be edited"):
            eye(model).tower(**given, cu_seqlens=whole)


def test_a_mask_that_joins_pictures_raises() -> None:
    model = tiny("mistral3", fresh=True)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))

    def join(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs["attention_mask"] = torch.zeros_like(kwargs["attention_mask"])
        return args, kwargs

    with attach(model.model, Spec(Raise("all"))):
        run(model, inputs)
        eye(model).tower.transformer.register_forward_pre_hook(join, with_kwargs=True)
        with pytest.raises(RuntimeError, match=r"layer 0 of the vision tower .*can't be edited"):
            run(model, inputs)


def test_another_attention_implementation_raises() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, Spec(Raise("all"))):
        eye(model).tower.config._attn_implementation = "eager"
        with pytest.raises(RuntimeError, match="attention implementation was changed to 'eager'"):
            run(model, inputs)


def test_layers_that_run_again_in_the_backward_pass_raise() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.train()
    inputs["pixel_values"].requires_grad_()
    with attach(model.model, Spec(Raise("all"))):
        loss = model.model(**inputs).logits.sum()
        with pytest.raises(RuntimeError, match="outside of a forward pass of its vision tower"):
            loss.backward()
