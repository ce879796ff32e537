"""Attachments come and go without a trace, in any order, and never reach another model."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, answer, ask, logits
from matrix import EDITS, pairs
from methods import Method
from tiny import Tiny, tiny
from torch import Tensor, nn
from traces import trace
from transformers import LlamaForCausalLM

from regaze.hooks import attach
from regaze.interventions import PAI, VAF, VAR, VHR, Intervention

ALL = [EDITS[name].acts for name in ("pai", "vaf", "var", "vhr")]


def run(model: Tiny, *rows: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.model(**ask(model, *(rows or [(SHORT, [0])]))).logits
    return out


@pairs()
def test_detaching_leaves_no_trace(family: str, method: Method) -> None:
    model = tiny(family, fresh=True)
    plain = run(model)
    before = trace(model.model)
    with attach(model.model, method.acts, processor=model.processor):
        edited = run(model)
    assert not torch.equal(edited, plain)
    assert torch.equal(run(model), plain)
    assert trace(model.model) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_attachments_come_off_in_any_order(order: tuple[int, ...]) -> None:
    model = tiny("qwen2_vl", fresh=True)
    plain = run(model)
    before = trace(model.model)
    specs = ALL[1:]
    attached = [attach(model.model, spec) for spec in specs]
    here = list(range(3))
    for number in order:
        attached[number].detach()
        here.remove(number)
        left = run(model)
        assert torch.equal(left, logits(tiny("qwen2_vl"), ask(model, (SHORT, [0])), *(
            specs[i] for i in here
        )))  # fmt: skip
    assert torch.equal(left, plain)
    assert trace(model.model) == before


def test_detaching_twice_takes_off_nothing_else() -> None:
    model = tiny("llava", fresh=True)
    first, second = attach(model.model, ALL[0]), attach(model.model, ALL[1])
    first.detach()
    first.detach()
    assert torch.equal(run(model), logits(tiny("llava"), ask(model, (SHORT, [0])), ALL[1]))
    second.detach()


def test_an_exception_in_the_block_detaches() -> None:
    model = tiny("llava", fresh=True)
    plain = run(model)
    before = trace(model.model)
    with pytest.raises(KeyError), attach(model.model, *ALL):
        run(model)
        raise KeyError
    assert trace(model.model) == before
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("at", ["embed_tokens", "layers.1", "layers.1.self_attn.o_proj", "norm"])
def test_an_exception_in_a_forward_pass_leaves_the_next_one_right(at: str) -> None:
    model = tiny("llava", fresh=True)
    with attach(model.model, *ALL):
        want = run(model)
    before = trace(model.model)

    def fail(*_: Any) -> None:
        raise MemoryError

    with attach(model.model, *ALL):
        handle = model.model.get_decoder().get_submodule(at).register_forward_hook(fail)
        with pytest.raises(MemoryError):
            run(model, (LONG, [1]), (SHORT, [0]))
        handle.remove()
        assert torch.equal(run(model), want)
    assert trace(model.model) == before


def test_other_peoples_hooks_stay_and_keep_firing() -> None:
    model = tiny("llava", fresh=True)
    tower: Any = model.model.get_decoder()
    fired: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: fired.append(name)

    watched = [
        model.model, tower, tower.embed_tokens, tower.layers[0], tower.layers[1].self_attn
    ]  # fmt: skip
    for number, module in enumerate(watched):
        module.register_forward_pre_hook(note(f"before {number}"))
        module.register_forward_hook(note(f"before {number}"))
    run(model)
    alone = sorted(fired)
    assert len(alone) == 10
    attached = attach(model.model, *ALL)
    for number, module in enumerate(watched):
        module.register_forward_pre_hook(note(f"after {number}"))
        module.register_forward_hook(note(f"after {number}"))
    for _ in range(2):
        fired.clear()
        run(model)
        assert sorted(fired) == sorted(alone + [n.replace("before", "after") for n in alone])
        attached.detach()


def test_a_hook_that_changes_hidden_states_still_does() -> None:
    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    results = []
    for hook_first in (True, False):
        model = tiny("llava", fresh=True)
        projection = model.model.get_decoder().layers[0].self_attn.o_proj
        if hook_first:
            projection.register_forward_hook(double)
        with attach(model.model, *ALL):
            if not hook_first:
                projection.register_forward_hook(double)
            results.append(run(model))
    assert torch.equal(*results)
    assert not torch.equal(results[0], logits(tiny("llava"), ask(model, (SHORT, [0])), *ALL))


@pytest.mark.parametrize(
    "bad", [PAI(layers=(7,)), VAR(sink_dims=(64,)), VAF(layers=(-1,)), VHR(layers=(3,))], ids=str
)
def test_a_spec_that_does_not_fit_leaves_nothing(bad: Intervention) -> None:
    model = tiny("llava", fresh=True)
    before = trace(model.model)
    with pytest.raises(ValueError, match=r"64|7|-1|3"):
        attach(model.model, *ALL, bad)
    assert trace(model.model) == before


def test_an_attention_module_unlike_the_others_leaves_nothing() -> None:
    model = tiny("llava", fresh=True)
    last: Any = model.model.get_decoder().layers[-1].self_attn
    del last.config
    before = trace(model.model)
    with pytest.raises((AttributeError, TypeError), match="config"):
        attach(model.model, *ALL)
    assert trace(model.model) == before


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_two_models_do_not_see_each_other(family: str) -> None:
    edited, other = tiny(family, fresh=True), tiny(family, fresh=True)
    row = (SHORT, [0])
    plain, want = run(other), logits(tiny(family), ask(edited, row), ALL[0], ALL[2])
    with attach(edited.model, ALL[0], ALL[2]):
        assert torch.equal(run(other), plain)
        assert torch.equal(run(edited), want)
        with attach(other.model, ALL[1]):
            both = [run(edited), run(other)]
        assert torch.equal(both[0], want)
        assert torch.equal(both[1], logits(tiny(family), ask(other, row), ALL[1]))
        assert torch.equal(run(other), plain)


@pytest.mark.parametrize("first_off", [0, 1])
def test_two_models_of_one_config_do_not_see_each_other(first_off: int) -> None:
    one = tiny("llava", fresh=True)
    twin = type(one.model)(one.model.config).eval()
    twin.load_state_dict(one.model.state_dict())
    models = [one, Tiny("llava", twin, one.processor, one.image_token_id)]
    spec = EDITS["vhr"].acts
    plain = run(one)
    want = logits(tiny("llava"), ask(one, (SHORT, [0])), spec)
    attached = [attach(model.model, spec) for model in models]
    assert all(torch.equal(run(model), want) for model in models)
    attached[first_off].detach()
    assert torch.equal(run(models[first_off]), plain)
    assert torch.equal(run(models[1 - first_off]), want)
    attached[1 - first_off].detach()
    assert all(torch.equal(run(model), plain) for model in models)
    assert one.model.config.text_config._attn_implementation == "sdpa"


def test_a_deep_copy_of_an_attached_model_is_the_plain_model() -> None:
    model = tiny("llava", fresh=True)
    row = (SHORT, [0])
    plain = run(model)
    attached = attach(model.model, *ALL)
    want = run(model)
    copied = Tiny("llava", copy.deepcopy(model.model), model.processor, model.image_token_id)
    assert torch.equal(run(copied), plain)
    assert torch.equal(run(model), want)
    with attach(copied.model, *ALL) as second:
        assert torch.equal(run(copied), want)
        layers = second.report().interventions[3].layers
        assert [layer.calls for layer in layers] == [1, 1, 1]
    assert torch.equal(run(copied), plain)
    attached.detach()
    assert torch.equal(run(copied), plain)
    assert answer(copied, ask(copied, row)) == answer(tiny("llava"), ask(model, row))
    assert torch.equal(run(model), plain)


def test_a_deep_copy_outlives_the_model_it_was_made_of() -> None:
    model = tiny("llava", fresh=True)
    plain = run(model)
    attached = attach(model.model, *ALL)
    copied = Tiny("llava", copy.deepcopy(model.model), model.processor, model.image_token_id)
    gone = weakref.ref(model.model)
    del model, attached
    gc.collect()
    assert gone() is None
    assert torch.equal(run(copied), plain)


def test_what_was_detached_does_not_keep_the_model_alive() -> None:
    model = tiny("llava", fresh=True)
    with attach(model.model, *ALL) as attached:
        run(model)
    gone = weakref.ref(model.model)
    del model
    gc.collect()
    assert gone() is None
    assert attached.report().fired


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_changing_the_attention_implementation_while_attached_raises(name: str) -> None:
    model = tiny("llava", fresh=True)
    plain = run(model)
    with attach(model.model, PAI(0.5)):
        model.model.set_attn_implementation(name)
        with pytest.raises(RuntimeError, match="detach first"):
            run(model)
    torch.testing.assert_close(run(model), plain, rtol=0, atol=1e-4)


def test_different_spans_while_attached_raise_and_the_first_ones_stay() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS["pai"].acts):
        want = run(model)
        with pytest.raises(ValueError, match="spans"):
            attach(model.model, EDITS["vaf"].acts, spans={"image": [(0, 2)]})
        assert torch.equal(run(model), want)
    assert torch.equal(want, logits(model, inputs, EDITS["pai"].acts))


@pytest.mark.parametrize("target", [None, "a/hub-id", object(), nn.Linear(2, 2), nn.ModuleList()])
def test_only_models_can_be_attached_to(target: Any) -> None:
    with pytest.raises(TypeError, match="attach|transformers model"):
        attach(target, PAI())


@pytest.mark.parametrize("method", ["pai", "vaf", "var", "vhr"])
def test_a_text_model_raises_and_says_why(method: str) -> None:
    config = copy.deepcopy(tiny("llava").model.config.text_config)
    text = LlamaForCausalLM._from_config(config)
    before = trace(text)
    with pytest.raises(ValueError, match="image"):
        attach(text, EDITS[method].acts)
    assert trace(text) == before


def test_the_inner_model_can_be_attached_to() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model.model, *ALL):
        inner = run(model)
    assert torch.equal(inner, logits(tiny("llava"), inputs, *ALL))


def test_attaching_nothing_changes_nothing() -> None:
    model = tiny("llava", fresh=True)
    plain = run(model)
    before = trace(model.model)
    with attach(model.model):
        assert trace(model.model) == before
        assert torch.equal(run(model), plain)


def test_resolved_specs_hold_every_setting() -> None:
    with attach(tiny("llava").model, PAI(), VHR(), VAR(sink_dims=(3,))) as attached:
        assert attached.specs == (
            PAI(layers=(2,)),
            VHR(layers=(1, 2)),
            VAR(sink_dims=(3,), layers=(1,), tau=0.3125),
        )


@pytest.mark.parametrize("family", ["llava", "mllama"])
@torch.no_grad()
def test_nothing_can_be_attached_to_any_model(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    plain = model.model(**inputs).logits
    with attach(model.model) as run, run.partial_prompt():
        assert torch.equal(model.model(**inputs).logits, plain)
    assert run.report().interventions == () and run.specs == ()


@pytest.mark.parametrize("given", ["vhr", None, 5, ["vhr"], {"name": "vhr"}, VHR, Path("vhr")])
def test_what_is_no_spec_is_refused_with_how_to_make_one(given: Any) -> None:
    with pytest.raises(TypeError, match="attach takes specs such as"):
        attach(tiny("llava").model, given)


def test_a_list_of_specs_and_a_spec_in_the_models_place_are_told_the_order() -> None:
    with pytest.raises(TypeError, match=r"several come one by one: attach\(model, \*specs\)"):
        attach(tiny("llava").model, [VHR()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got VHR; the model comes first: attach\(model, spec\)"):
        attach(VHR(), tiny("llava").model)


@pytest.mark.parametrize("processor", [5, "llava", object(), nn.Linear(1, 1)])
def test_what_is_no_processor_is_refused_at_once(processor: Any) -> None:
    with pytest.raises(TypeError, match="processor must be what turns text and pictures into"):
        attach(tiny("llava").model, VHR(), processor=processor)


def test_a_tokenizer_alone_is_processor_enough() -> None:
    model = tiny("llava")
    with attach(model.model, VHR(), processor=model.processor.tokenizer):
        pass


@pytest.mark.parametrize(
    "spans",
    ["x", 5, [], [5], [None], [{"image": 5}], [{"image": [5]}], [{"image": [(1,)]}],
     [{"image": [("a", "b")]}], {"image": [(0.5, 2)]}, {"image": "ab"}],
)  # fmt: skip
def test_spans_of_another_form_are_refused(spans: Any) -> None:
    with pytest.raises(TypeError, match="spans must look like"):
        attach(tiny("llava").model, PAI(), spans=spans)
    with pytest.raises(TypeError, match="cond_rows must be a slice"):
        attach(tiny("llava").model, PAI(), cond_rows=spans)
