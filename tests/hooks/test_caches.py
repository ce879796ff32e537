"""The cache of a call, whatever a model calls it, and models that keep columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from asking import SHORT, answer, ask
from matrix import EDITS, MAIN
from tiny import Tiny, tiny
from torch import nn
from transformers import DynamicCache

from regaze.hooks import attach
from regaze.hooks.caches import NAMES, cache_name, find_cache, with_cache


@contextmanager
def taking(
    model: Tiny, before: Callable[[dict[str, Any]], Any], inside: Callable[[dict[str, Any]], Any]
) -> Iterator[None]:
    """A tower whose arguments are changed before what is attached sees them, and behind it."""
    tower = model.tower
    kind, stock = type(tower), type(tower).forward

    def forward(self: Any, **kwargs: Any) -> Any:
        inside(kwargs)
        return stock(self, **kwargs)

    def enter(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        before(kwargs)
        return args, kwargs

    handle = tower.register_forward_pre_hook(enter, with_kwargs=True)
    # Written in its class's module, as in another version of transformers.
    home = vars(sys.modules[kind.__module__])
    kind.forward = FunctionType(forward.__code__, home, closure=forward.__closure__)
    try:
        yield
    finally:
        kind.forward = stock
        handle.remove()


@pytest.mark.parametrize("name", [*NAMES, "memory"])
@pytest.mark.parametrize("method", ["pai", "vhr"])
def test_a_tower_may_call_its_cache_as_it_likes(method: str, name: str) -> None:
    model = tiny("llava", fresh=True)
    native = cache_name(model.tower)
    inputs = ask(model, (SHORT, [0]))
    want = answer(model, inputs, EDITS[method].acts)

    def rename(kwargs: dict[str, Any]) -> None:
        kwargs[name] = kwargs.pop(native)

    def restore(kwargs: dict[str, Any]) -> None:
        kwargs[native] = kwargs.pop(name)

    with taking(model, rename, restore):
        assert answer(model, inputs, EDITS[method].acts) == want


@pytest.mark.parametrize("method", MAIN)
def test_columns_kept_elsewhere_are_found_out(method: str) -> None:
    model = tiny("llava", fresh=True)
    held: list[Any] = []
    native = cache_name(model.tower)

    def hide(kwargs: dict[str, Any]) -> None:
        held.append(kwargs.pop(native))

    def find(kwargs: dict[str, Any]) -> None:
        kwargs[native] = held[-1]

    inputs = ask(model, (SHORT, [0]))
    with (
        taking(model, hide, find),
        pytest.raises(RuntimeError, match=r"layer \d .* attends over \d+ columns where"),
    ):
        answer(model, inputs, EDITS[method].acts)


def test_a_cache_is_known_by_what_it_can_do() -> None:
    one, other = DynamicCache(), SimpleNamespace(get_seq_length=lambda: 3)
    assert find_cache({"input_ids": torch.zeros(1, 2), "use_cache": True, "cache": None}) is None
    assert find_cache({"memory": other, "cache": None}) is other
    assert find_cache({"cache": one, "past_key_values": one}) is one
    with pytest.raises(ValueError, match="two caches, 'cache' and 'past_key_values'"):
        find_cache({"cache": one, "past_key_values": other})


def test_a_cache_takes_the_place_of_any_other() -> None:
    old, new, tower = DynamicCache(), DynamicCache(), tiny("llava").tower
    given = {"use_cache": None, "past_key_values": None, "cache": None}
    assert with_cache(given, new, tower) == {"use_cache": None, cache_name(tower): new}
    assert with_cache({**given, "memory": old}, new, tower) == {"use_cache": None, "memory": new}


def test_a_wrapper_takes_its_cache_as_the_model_inside_does() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inside(*args, **kwargs)

    model = tiny("llava")
    assert cache_name(Wrapper(model.model)) == cache_name(model.model) == cache_name(model.tower)
    with pytest.raises(ValueError, match="Linear takes no cache that is known"):
        cache_name(nn.Linear(1, 1))


@torch.no_grad()
def test_callers_may_use_either_name() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    steps = []
    for name in {cache_name(model.model), "past_key_values"}:
        with attach(model.model, EDITS["pai"].acts):
            cache = find_cache(model.model(**inputs, use_cache=True))
            step = model.model(input_ids=torch.tensor([[7]]), **{name: cache})
            steps.append(step.logits)
    assert torch.equal(steps[0], steps[-1])
