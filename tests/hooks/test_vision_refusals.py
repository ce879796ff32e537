"""Rows, edits and passes of vision towers that raise instead of being wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask
from census_lvlm import tiny_model
from tiny import tiny
from tiny_vision import Scale, explicitly, eye, run
from torch import Tensor
from traces import trace
from vision_maps import Raise, Spec

from regaze.hooks import Edit, attach, capture
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass
from regaze.interventions import PAI


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
