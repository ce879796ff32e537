"""Code that others put in the place of a block's forward, which a second run calls once more."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxTransformerBlock
from scenes import differ
from tiny_pipelines import FAMILIES, quiet
from torch import Tensor

import regaze
from regaze.hooks.diffusion.literal import literally

PAG = regaze.PAG(scale=2.0, layers=(0,))
KEPT: dict[str, Any] = {}


def built(family: str) -> Any:
    return quiet(FAMILIES[family].build())


def every_second(block: Any) -> Callable[..., Any]:
    """Every second call gets what the one before gave."""
    stock, calls = block.forward, itertools.count()
    kept: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        if next(calls) % 2 and kept:
            return kept.pop()
        kept.append(stock(*args, **kwargs))
        return kept[0]

    return forward


def momentum(block: Any) -> Callable[..., Any]:
    """A tenth of what the call before gave is added."""
    stock, before = block.forward, None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal before
        out = stock(*args, **kwargs)
        mixed = out if before is None else mix(out, before)
        before = out
        return mixed

    return forward


def mix(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor):
        return one + 0.1 * other if one.shape == other.shape else one
    return tuple(map(mix, one, other))


def on_the_module(block: Any) -> Callable[..., Any]:
    """Hidden states that change little are taken to change as they did before (TeaCache)."""
    stock = block.forward

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        last, self.last = getattr(self, "last", None), hidden_states
        if last is None or last.shape != hidden_states.shape or differ(hidden_states, last) > 0.1:
            self.residual = [y - x for x, y in zip(streams(args, kwargs, hidden_states),
                                                   pair(stock(hidden_states, *args, **kwargs)),
                                                   strict=True)]  # fmt: skip
        made = zip(streams(args, kwargs, hidden_states), self.residual, strict=True)
        return tuple(x + r for x, r in made)

    return functools.partial(forward, block)


def streams(args: Any, kwargs: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The streams of a FLUX block in the order in which it returns them."""
    return (kwargs["encoder_hidden_states"] if kwargs else args[0], hidden)


def pair(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return output


def by_default(block: Any) -> Callable[..., Any]:
    stock = block.forward

    def forward(*args: Any, kept: list[Any] = [], **kwargs: Any) -> Any:  # noqa: B006
        kept[:] = [stock(*args, **kwargs)]
        return kept[0]

    return forward


def in_a_global(block: Any) -> Callable[..., Any]:
    stock = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        KEPT["out"] = stock(*args, **kwargs)
        return KEPT["out"]

    return forward


class Helper:
    """A replacement on a block by a helper class that keeps state on itself and in a list."""

    def __init__(self, block: Any) -> None:
        self.stock, self.bank = block.forward, {"mean": torch.zeros(())}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        out = self.stock(*args, **kwargs)
        self.bank["mean"] += out[0].mean()
        return out


class ByName(Helper):
    """The same, read by a name that stands nowhere in its code."""

    out, slot = None, "out"

    def run(self, *args: Any, **kwargs: Any) -> Any:
        before, made = getattr(self, self.slot), self.stock(*args, **kwargs)
        self.out = made
        return made if before is None else mix(made, before)


KEEPING: dict[str, Callable[[Any], Any]] = {
    "every second call": every_second,
    "momentum": momentum,
    "attributes of the module": on_the_module,
    "a default": by_default,
    "a global": in_a_global,
    "an object": lambda block: Helper(block).run,
    "an object by name": lambda block: ByName(block).run,
    "in a partial": lambda block: functools.partial(Helper(block).run),
}
REFUSED = r"transformer_blocks.1's own forward .*keeps something from call to call"


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("way", KEEPING)
def test_what_keeps_something_between_calls_raises(way: str, fork: bool) -> None:
    """A branch would mix it up: the prompt's prediction would use what the branch left."""
    pipe, kind = built("flux"), FAMILIES["flux"]
    block = pipe.transformer.transformer_blocks[1]
    block.forward = KEEPING[way](block)
    kind.run(pipe, guided=False)
    with regaze.attach(pipe, PAG, fork=fork), pytest.raises(ValueError, match=REFUSED):
        kind.run(pipe, guided=False)
    del block.forward


def test_what_keeps_something_may_stand_where_no_second_run_comes() -> None:
    """Before the fork, and beside methods that run nothing again."""
    pipe, kind = built("flux"), FAMILIES["flux"]
    block = pipe.transformer.transformer_blocks[0]
    late = regaze.PAG(scale=2.0, layers=(1,))
    with regaze.attach(pipe, late):
        want = kind.run(pipe, guided=False)
    counted = iter(range(99))
    stock = block.forward
    block.forward = lambda *args, **kwargs: (next(counted), stock(*args, **kwargs))[1]
    with regaze.attach(pipe, late):
        assert torch.equal(kind.run(pipe, guided=False), want)


def test_a_forward_that_counts_its_calls_counts_second_runs_too() -> None:
    pipe, kind = built("flux"), FAMILIES["flux"]
    block = pipe.transformer.transformer_blocks[0]
    with regaze.attach(pipe, PAG):
        want = kind.run(pipe, guided=False)
    stock, calls = block.forward, [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return stock(*args, **kwargs)

    block.forward = counting
    plain = kind.run(pipe, guided=False)
    passes, calls[0] = calls[0], 0
    with regaze.attach(pipe, PAG):
        assert torch.equal(kind.run(pipe, guided=False), want)
    assert calls[0] == 2 * passes and not torch.equal(plain, want)


def test_a_class_s_forward_in_another_s_place_is_looked_at_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, kind, stock = built("flux"), FAMILIES["flux"], FluxTransformerBlock.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.bank = stock(self, *args, **kwargs)
        return self.bank

    monkeypatch.setattr(FluxTransformerBlock, "forward", forward)
    with regaze.attach(pipe, PAG), pytest.raises(ValueError, match=r"transformer_blocks.*its \.?"):
        kind.run(pipe, guided=False)


class Counting(AttnProcessor2_0):  # type: ignore[misc]
    """Edits by the number of a layer, as Prompt-to-Prompt's controllers do."""

    def __init__(self, controller: dict[str, int]) -> None:
        super().__init__()
        self.controller = controller

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.controller["layer"] += 1
        return super().__call__(*args, **kwargs) * (1 + self.controller["layer"] % 3)


def test_attention_processors_that_count_raise() -> None:
    pipe, kind = built("sd"), FAMILIES["sd"]
    counting = Counting({"layer": 0})
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(counting)
    with (
        regaze.attach(pipe, regaze.PAG(layers=("mid",))),
        pytest.raises(ValueError, match=r"attn2's own forward .*controller\['layer'\]"),
    ):
        kind.run(pipe)


class Telling(AttnProcessor2_0):  # type: ignore[misc]
    """Keeps its output for whoever asks, as IP-Adapter's own processors do their maps."""

    last: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        self.last = out
        return out


class Mixing(Telling):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, out = self.last, super().__call__(*args, **kwargs)
        return out if before is None or before.shape != out.shape else out + 0.1 * before


@pytest.mark.parametrize("guided", [True, False])
def test_what_is_kept_for_others_alone_does_no_harm(guided: bool) -> None:
    pipe, kind = built("sd"), FAMILIES["sd"]
    spec = regaze.PAG(layers=("mid",))
    with regaze.attach(pipe, spec):
        want = kind.run(pipe, guided=guided)

    def put(processor: Any) -> None:
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2"):
                module.set_processor(processor)

    put(Telling())
    with regaze.attach(pipe, spec):
        assert torch.equal(kind.run(pipe, guided=guided), want)
        put(Mixing())
        with pytest.raises(ValueError, match=r"attn2's own forward .*its last"):
            kind.run(pipe, guided=guided)


# -- and what keeps nothing --------------------------------------------------------------------


def scaled(block: Any) -> Any:
    stock, factor = block.forward, {"is": torch.tensor(0.9)}

    @functools.wraps(stock)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return tuple(factor["is"] * x for x in stock(*args, **kwargs))

    return forward


def offloaded(block: Any) -> Any:
    add_hook_to_module(block, AlignDevicesHook(torch.device("cpu"), offload=False))
    return block.forward


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "a wrapper": scaled,
    "a wrapped one compiled": lambda block: torch.compile(scaled(block), backend="eager"),
    "its own compiled": lambda block: torch.compile(block.forward, backend="eager"),
    "its own": lambda block: block.forward,
    "accelerate's": offloaded,
}


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("way", HARMLESS)
def test_what_keeps_nothing_is_run_again_as_what_it_is(way: str, fork: bool) -> None:
    torch._dynamo.reset()
    pipe, kind = built("flux"), FAMILIES["flux"]
    block = pipe.transformer.transformer_blocks[1]
    block.forward = HARMLESS[way](block)
    with regaze.attach(pipe, PAG, fork=fork) as run:
        got = kind.run(pipe, guided=False)
    assert run.report().fired
    spec: Any = run.specs[0]
    with literally(pipe, kind.running(guided=False), [spec.literal()]):
        want = kind.run(pipe, guided=False)
    assert differ(got, want) < 1e-4
