"""Changes to a model in the middle of a pass, or to its parts while something is attached."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import ALL, MAIN
from tiny import tiny
from traces import trace

from regaze.hooks import attach
from regaze.interventions import PAI

NAMES = ("pai", "var", "vhr", "vcd", "adaptvis", "tidal")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in a hook", "in another thread"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pass_under_way_ends_as_it_began(name: str, elsewhere: bool) -> None:
    model, spec = tiny("llava", fresh=True), ALL[name].acts
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    plain = model.model(**inputs).logits
    before = trace(model.model)
    run = attach(model.model, spec)
    handle: Any = None

    def detach(*_: Any) -> None:
        handle.remove()
        if elsewhere:
            thread = threading.Thread(target=run.detach)
            thread.start()
            thread.join()
        else:
            run.detach()

    handle = model.tower.layers[1].register_forward_hook(detach)
    assert torch.equal(model.model(**inputs).logits, logits(tiny("llava"), inputs, spec))
    assert trace(model.model) == before
    assert torch.equal(model.model(**inputs).logits, plain)


@torch.no_grad()
def test_the_last_of_several_passes_takes_the_hooks_off() -> None:
    model, spec = tiny("llava", fresh=True), ALL["pai"].acts
    inputs = ask(model, (SHORT, [0]))
    want = logits(tiny("llava"), inputs, spec)
    plain = model.model(**inputs).logits
    before = trace(model.model)
    run = attach(model.model, spec)
    inside, go_on, got = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        if threading.current_thread() is slow:
            inside.set()
            go_on.wait()

    def say() -> None:
        with torch.no_grad():
            got.append(model.model(**inputs).logits)

    handle = model.tower.layers[1].register_forward_hook(hold)
    slow = threading.Thread(target=say)
    slow.start()
    inside.wait()
    run.detach()
    assert torch.equal(model.model(**inputs).logits, plain)
    with attach(model.model, ALL["vaf"].acts):
        between = model.model(**inputs).logits
    assert torch.equal(between, logits(tiny("llava"), inputs, ALL["vaf"].acts))
    go_on.set()
    slow.join()
    handle.remove()
    assert torch.equal(got[0], want)
    assert trace(model.model) == before


@torch.no_grad()
def test_attaching_in_the_middle_of_a_pass_raises() -> None:
    model = tiny("llava", fresh=True)
    inputs, spec = ask(model, (SHORT, [0])), ALL["pai"].acts
    plain, runs = model.model(**inputs).logits, []
    handle = model.tower.layers[0].register_forward_hook(
        lambda *_: runs.append(attach(model.model, spec))
    )
    with pytest.raises(RuntimeError, match="attach between passes"):
        model.model(**inputs)
    handle.remove()
    assert torch.equal(model.model(**inputs).logits, logits(tiny("llava"), inputs, spec))
    runs[0].detach()
    assert torch.equal(model.model(**inputs).logits, plain)


@pytest.mark.parametrize("part", ["language_model", "language_model.layers.1"])
@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_parts_put_in_the_place_of_others_are_found_out(name: str, part: str) -> None:
    model, other = tiny("llava", fresh=True), tiny("llava", fresh=True)
    inputs, spec = ask(model, (SHORT, [0])), ALL[name].acts
    plain = model.model(**inputs).logits
    with attach(model.model, spec):
        model.model.model.set_submodule(part, other.model.model.get_submodule(part))
        with pytest.raises(RuntimeError, match="attach (again|anew)"):
            model.model(**inputs)
    assert torch.equal(model.model(**inputs).logits, plain)
    assert torch.equal(logits(model, inputs, spec), logits(tiny("llava"), inputs, spec))


@pytest.mark.parametrize("name", ["pai", "vhr"])
@torch.no_grad()
def test_layers_taken_out_are_found_out(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs, tower = ask(model, (SHORT, [0])), model.tower
    with attach(model.model, ALL[name].acts):
        tower.layers = tower.layers[:2]
        tower.config.num_hidden_layers = 2
        with pytest.raises(RuntimeError, match=r"layers \[2\] never called"):
            model.model(**inputs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["pai", "vhr", "vcd"])
def test_recording_a_pass_raises(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    pixels = inputs["pixel_values"]

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.model

        def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(input_ids=ids, pixel_values=pixels).logits
            return found

    with attach(model.model, ALL[name].acts), torch.no_grad():
        with pytest.raises(NotImplementedError, match="detach first"):
            torch.jit.trace(Scores(), (inputs["input_ids"], pixels), check_trace=False)
        with pytest.raises(NotImplementedError, match="detach first"):
            torch.export.export(model.model, (), inputs, strict=False)


@torch.no_grad()
def test_new_embeddings_change_no_edit() -> None:
    model = tiny("llava", fresh=True)
    inputs, spec = ask(model, (SHORT, [0])), PAI(0.5, layers=(0, 1, 2))
    with attach(model.model, spec):
        model.model.resize_token_embeddings(300, mean_resizing=False)
        got = model.model(**inputs).logits
    want = logits(tiny("llava"), inputs, spec)
    assert torch.equal(got[..., : want.shape[-1]], want)


@pytest.mark.parametrize("name", ["pai", "var", "vhr", "pasta", "adaptvis"])
@torch.no_grad()
def test_a_model_cast_while_attached_is_edited(name: str) -> None:
    model, spec = tiny("llava", fresh=True), ALL[name].acts
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    want = logits(tiny("llava"), inputs, spec)
    double = copy.copy(inputs)
    double["pixel_values"] = inputs["pixel_values"].double()
    with attach(model.model, spec):
        model.model(**inputs)
        model.model.double()
        got = model.model(**double).logits
    torch.testing.assert_close(got.float(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["vcd", "icd"])
@torch.no_grad()
def test_a_contrast_says_which_masks_it_takes(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    size = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.zeros(1, 1, size, size)
    inputs["attention_mask"].masked_fill_(torch.ones(size, size).triu(1).bool(), -1e9)
    with pytest.raises(NotImplementedError, match="has 4 dimensions: give one of two"):
        logits(model, inputs, ALL[name].acts)
