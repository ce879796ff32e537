"""Hooks of others that change masks or hidden states, under methods that compare runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, literally
from seconds import Seconds, Told, twice
from tiny import Tiny, tiny
from torch import Tensor, nn

from regaze.hooks import Branch, attach, scores
from regaze.hooks.host import find_host
from regaze.interventions import ICD, M3ID, PAI, VCD, VHR, AvisC

LAYERS = (0, 1, 2)
LEAST = torch.finfo(torch.float32).min
CONTRASTS = {
    "vcd": VCD(),
    "icd": ICD(),
    "avisc": AvisC(),
    "m3id": M3ID(),
    "pai": PAI(0.5, layers=LAYERS, gamma=1.5),
}
COMPARES = {
    "drop": VHR(alpha=3.0, layers=LAYERS),
    "mask": VHR(alpha=3.0, layers=LAYERS, null_image="mask"),
}
Hook = Callable[..., Any]


def _hidden(change: Callable[[Tensor], Tensor]) -> Hook:
    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _at(row: int) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        if row > 0 and hidden.shape[1] == 1:
            return hidden  # A decode step: that row came before.
        hidden = hidden.clone()
        hidden[:, row] *= -1.5
        return hidden

    return change


def _written(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    (args[0] if args else kwargs["hidden_states"])[:, -1] *= -1.5


def _hides(mask: Tensor) -> Tensor:
    """Columns 1 and 2 hidden from all rows but their own."""
    rows, columns = mask.shape[-2:]
    own = torch.eye(columns, dtype=torch.bool)[columns - rows :]
    mask = mask.clone()
    mask[..., 1:3] = mask[..., 1:3].masked_fill(~own[:, 1:3], LEAST)
    return mask


def _masks(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "attention_mask": _hides(kwargs["attention_mask"])}


def _masks_in_place(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    kwargs["attention_mask"].copy_(_hides(kwargs["attention_mask"]))


HOOKS: dict[str, Hook] = {
    "all rows": _hidden(lambda hidden: 1.3 * hidden + 0.2),
    "the last row": _hidden(_at(-1)),
    "the third row": _hidden(_at(2)),
    "the last row in place": _written,
    "a mask": _masks,
    "a mask in place": _masks_in_place,
}


def put(model: Tiny, hook: Hook, part: str) -> None:
    layer: Any = model.tower.layers[1]
    module = layer if part == "layer" else layer.self_attn
    module.register_forward_pre_hook(hook, with_kwargs=True)


@torch.no_grad()
def steps(model: Tiny, inputs: dict[str, Any], tokens: int = 2) -> Tensor:
    """Scores after a prompt and after each of some tokens behind it."""
    found = model.model(**inputs, use_cache=True)
    scores = [found.logits[:, -1]]
    mask = inputs["attention_mask"]
    for number in range(tokens):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        found = model.model(
            input_ids=torch.full_like(mask[:, :1], 30 + number),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=found.past_key_values,
        )
        scores.append(found.logits[:, -1])
    return torch.stack(scores).clamp(min=-100)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def attached(
    spec: Any, hook: Hook, part: str, late: bool, *rows: Any, family: str = "llava"
) -> Tensor:
    model = tiny(family, attn_implementation="eager", fresh=True)
    if not late:
        put(model, hook, part)
    with attach(model.model, spec, processor=model.processor):
        if late:
            put(model, hook, part)
        return steps(model, ask(model, *(rows or [(SHORT, [0])])))


def literal(spec: Any, hook: Hook, part: str, family: str = "llava") -> Tensor:
    model = tiny(family, attn_implementation="eager", fresh=True)
    host, inputs = find_host(model.model, model.processor), ask(model, (SHORT, [0]))
    put(model, hook, part)
    with literally(model, inputs, [spec.resolve(host)]):
        return steps(model, inputs)


@pytest.mark.parametrize("late", [False, True], ids=["before attaching", "behind it"])
@pytest.mark.parametrize("part", ["layer", "attention"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", COMPARES)
def test_a_prompt_without_its_image_is_a_run_of_the_hooked_model(
    name: str, hook: str, part: str, late: bool
) -> None:
    spec = COMPARES[name]
    close(attached(spec, HOOKS[hook], part, late), literal(spec, HOOKS[hook], part))


@pytest.mark.parametrize("hook", ["the last row", "a mask", "a mask in place"])
def test_masks_made_outside_of_the_tower_are_the_prompt_s(hook: str) -> None:
    spec, given = COMPARES["mask"], (HOOKS[hook], "layer")
    close(attached(spec, *given, True, family="gemma3"), literal(spec, *given, family="gemma3"))


@pytest.mark.parametrize("hook", ["all rows", "the third row", "a mask", "a mask in place"])
@pytest.mark.parametrize("name", CONTRASTS)
def test_a_contrast_is_one_of_the_hooked_model(name: str, hook: str) -> None:
    spec = CONTRASTS[name]
    close(attached(spec, HOOKS[hook], "layer", True), literal(spec, HOOKS[hook], "layer"))


@pytest.mark.parametrize("hook", ["the last row", "a mask", "a mask in place"])
@pytest.mark.parametrize("name", ["vcd", "icd"])
def test_runs_of_a_hooked_model_share_no_step(
    name: str, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (SHORT, [0]), (LONG, [1])
    got = attached(CONTRASTS[name], HOOKS[hook], "attention", True, *rows)
    monkeypatch.setattr(scores, "joinable", lambda *_: False)
    assert torch.equal(got, attached(CONTRASTS[name], HOOKS[hook], "attention", True, *rows))


@pytest.mark.parametrize("late", [False, True], ids=["before attaching", "behind it"])
@pytest.mark.parametrize("how", ["plain", "generate"])
def test_hooks_on_the_model_itself_are_called_for_second_runs(how: str, late: bool) -> None:
    """A prompt whose beginning is hidden, in both runs."""

    def hide(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = torch.ones_like(kwargs["input_ids"])  # Generate leaves out such masks.
        mask[:, 1:3] = 0
        return args, {**kwargs, "attention_mask": mask}

    spec = Told(Seconds(Branch(lambda given, _: {**given, "pixel_values": noise}, twice)))
    model = tiny("llava", fresh=True)
    inputs = ask(model, (LONG, [1]))
    noise = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    size = inputs["input_ids"].shape[1]
    positions = {"position_ids": torch.arange(size)[None]}
    hidden = hide(model.model, (), {**inputs, **positions})[1]
    with torch.no_grad():
        plain, other = (
            model.model(**one).logits[:, -1] for one in (hidden, {**hidden, "pixel_values": noise})
        )
    if not late:
        model.model.register_forward_pre_hook(hide, with_kwargs=True)
    with attach(model.model, spec):
        if late:
            model.model.register_forward_pre_hook(hide, with_kwargs=True)
        if how == "plain":
            with torch.no_grad():
                got = model.model(**inputs, **positions).logits[:, -1]
        else:
            told: Any = {"return_dict_in_generate": True, "output_logits": True}
            got = model.model.generate(**inputs, max_new_tokens=1, **told).logits[0]
    close(got, 2 * plain - other)


@pytest.mark.parametrize("late", [False, True], ids=["before attaching", "behind it"])
def test_who_only_looks_sees_the_prompt(late: bool) -> None:
    model = tiny("llava", fresh=True)
    inputs, seen = ask(model, (SHORT, [0])), list[Tensor]()
    layer = model.tower.layers[1]

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["inputs_embeds"])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    def watch() -> list[Any]:
        hooks = [part.register_forward_hook(leave) for part in (model.tower, layer, layer.mlp)]
        before = (model.tower, layer)
        return hooks + [p.register_forward_pre_hook(enter, with_kwargs=True) for p in before]

    hooks = [] if late else watch()
    with attach(model.model, COMPARES["drop"]):
        hooks = watch() if late else hooks
        steps(model, inputs, 0)
        assert [one.shape[1] for one in seen] == [inputs["input_ids"].shape[1]] * 5
    assert leave in layer.mlp._forward_hooks.values()
    for hook in hooks:
        hook.remove()
    assert not layer.mlp._forward_hooks


def test_what_two_prompts_share_must_stay_alike() -> None:
    def fifth_from_the_end(hidden: Tensor) -> Tensor:
        if hidden.shape[1] == 1:
            return hidden
        hidden = hidden.clone()
        hidden[:, : hidden.shape[1] - 20] *= 2
        return hidden

    with pytest.raises(NotImplementedError, match="text before the image otherwise"):
        attached(VHR(alpha=3.0, layers=LAYERS), _hidden(fifth_from_the_end), "layer", True)


def test_what_mixes_two_prompts_is_refused() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    hook = model.tower.rotary_emb.register_forward_pre_hook(
        lambda module, args: (args[0][:, :1].clone(), *args[1:])
    )
    with attach(model.model, COMPARES["drop"]):
        with pytest.raises(NotImplementedError, match="can't be told from"):
            steps(model, inputs, 0)
        hook.remove()
        steps(model, inputs, 0)


def test_a_tower_called_alone_is_hooked_before() -> None:
    model = tiny("llava", fresh=True)
    tower, ids = model.tower, torch.arange(5, 25)[None]
    with attach(model.model, COMPARES["drop"], spans={"image": [(2, 10)]}):
        want = tower(input_ids=ids).last_hidden_state
        hook = tower.register_forward_pre_hook(lambda *_: None)
        with pytest.raises(NotImplementedError, match="would be given both"):
            tower(input_ids=ids)
        assert torch.equal(tower(input_ids=ids).last_hidden_state, want)  # Ours is moved inside.
        hook.remove()


# -- code in the place of a forward ------------------------------------------------------------


def wrapped(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """A forward around a module's own, which is given other hidden states."""
    stock = module.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return stock(change(hidden_states), *args, **kwargs)

    module.forward = forward


def adding_the_last_call(module: Any) -> None:
    last = [torch.zeros(())]

    def change(hidden: Tensor) -> Tensor:
        before, last[0] = last[0], hidden.mean()
        return hidden + before

    wrapped(module, change)


@pytest.mark.parametrize("name", COMPARES)
def test_a_replaced_forward_that_would_see_two_prompts_is_refused(name: str) -> None:
    """The last row that it sees would be that of the prompt without its image."""
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    wrapped(model.tower.layers[1], _at(-1))
    with (
        attach(model.model, COMPARES[name]),
        pytest.raises(NotImplementedError, match=r"layers.1's own forward would be given both"),
    ):
        steps(model, inputs, 0)


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_contrast_is_one_of_the_model_with_a_replaced_forward(name: str) -> None:
    """If it keeps nothing that the second run would change; then it is refused."""
    spec = CONTRASTS[name]

    def built(replace: Callable[[Any], None]) -> tuple[Tiny, dict[str, Any]]:
        model = tiny("llava", fresh=True)
        replace(model.tower.layers[1].self_attn)
        return model, ask(model, (SHORT, [0]))

    model, inputs = built(lambda module: wrapped(module, _at(2)))
    with attach(model.model, spec, processor=model.processor) as run:
        got = steps(model, inputs)
    with literally(model, inputs, run.specs):
        close(got, steps(model, inputs))
    model, inputs = built(adding_the_last_call)
    with (
        attach(model.model, spec, processor=model.processor),
        pytest.raises(ValueError, match=r"layers.1.self_attn's own forward .*from call to call"),
    ):
        steps(model, inputs)


@pytest.mark.parametrize("name", ["vcd", "icd"])
def test_runs_of_a_model_with_a_replaced_forward_share_no_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward may go by columns, and a shorter prompt's would be moved."""
    rows = (SHORT, [0]), (LONG, [1])

    def run() -> Tensor:
        model = tiny("llava", attn_implementation="eager", fresh=True)
        layer = model.tower.layers[1]
        stock = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return stock(*args, **_masks(layer, args, kwargs)[1])

        layer.forward = forward
        with attach(model.model, CONTRASTS[name], processor=model.processor):
            return steps(model, ask(model, *rows))

    got = run()
    monkeypatch.setattr(scores, "joinable", lambda *_: False)
    assert torch.equal(got, run())
