"""Attached vision towers in use: with text towers, kernels, threads, interrupts and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from flash import NAME as FLASH
from flash import use_flash
from threads import together
from tiny import tiny
from tiny_vision import CLASS, PACKED, Scale, explicitly, eye, run
from torch import Tensor
from traces import trace
from vision_maps import Raise, Spec, literal

from regaze.hooks import Branch, Edit, attach, capture
from regaze.hooks.dispatch import SEATS
from regaze.interventions import PAI


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
