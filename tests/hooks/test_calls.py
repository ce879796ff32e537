"""Code around the calls of one object: whatever ends them, whoever else changes the object."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regaze.hooks.calls import Calls


class Doubling(nn.Module):
    """A module that can be pickled."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def plus(number: int, log: list[int]) -> Callable[..., Any]:
    def around(thing: Any, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        log.append(number)
        return call(*args, **kwargs) + number

    return around


ONE = torch.ones(1)


def saved(module: nn.Module) -> Any:
    """A module that was written to a file and read again."""
    file = io.BytesIO()
    torch.save(module, file)  # noqa: TID251 (others save whole modules)
    file.seek(0)
    return torch.load(file, weights_only=False)  # noqa: TID251


def test_code_runs_around_calls_until_it_is_released() -> None:
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    before = set(vars(module))
    calls.around(module, plus(1, log))
    assert isinstance(module, Doubling)
    assert type(module).__name__ == "Doubling"
    assert module(ONE) == 3
    calls.release()
    calls.release()
    assert type(module) is Doubling
    assert set(vars(module)) == before
    assert module(ONE) == 2
    assert log == [1]


def test_owners_come_and_go_in_any_order_and_shared_code_runs_once() -> None:
    module, log = Doubling(), []  # type: ignore[var-annotated]
    first, second, shared = Calls(), Calls(), plus(1, log)
    first.around(module, shared)
    second.around(module, shared)
    second.around(module, plus(10, log))
    assert module(ONE) == 13
    first.release()
    assert module(ONE) == 13
    second.release()
    assert type(module) is Doubling


def test_copies_and_pickles_are_of_the_objects_own_class_and_run_nothing() -> None:
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    calls.around(module, plus(1, log))
    for other in (copy.deepcopy(module), copy.copy(module), saved(module)):
        assert type(other) is Doubling
        assert other(ONE) == 2
    assert not log
    calls.release()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_a_finally_around_a_call_runs_whatever_ends_it(error: type[BaseException]) -> None:
    module, calls, ended = Doubling(), Calls(), []  # type: ignore[var-annotated]

    def around(thing: Any, call: Callable[..., Any], /, *args: Any) -> Any:
        try:
            return call(*args)
        finally:
            ended.append(True)

    def fails(*_: Any) -> None:
        raise error

    calls.around(module, around)
    module.register_forward_pre_hook(fails)
    with pytest.raises(error):
        module(ONE)
    assert ended == [True]
    calls.release()


def test_inner_code_runs_inside_of_others_hooks_and_outer_code_outside() -> None:
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    calls.around(module, plus(1, log))
    calls.around(module, plus(2, log), inner=True)
    module.register_forward_pre_hook(lambda *_: log.append(0))
    assert module(ONE) == 5
    assert log == [1, 0, 2]
    calls.release()


def test_a_forward_that_others_replace_and_give_back_makes_no_difference() -> None:
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    stock = module.forward
    calls.around(module, plus(1, log), inner=True)
    module.forward = lambda x: stock(x) * 10  # type: ignore[method-assign]
    assert module(ONE) == 21
    del module.forward
    assert module(ONE) == 3
    calls.release()


def test_a_class_that_others_exchange_meanwhile_comes_back_too() -> None:
    module, log, calls = nn.Linear(1, 1), [], Calls()  # type: ignore[var-annotated]
    want = module(ONE)
    calls.around(module, plus(1, log))
    parametrize.register_parametrization(module, "weight", nn.Identity())
    calls.release()
    assert torch.equal(module(ONE), want)
    parametrize.remove_parametrizations(module, "weight")
    assert torch.equal(module(ONE), want)
    assert type(module) is nn.Linear
    assert not log


def test_compiled_code_takes_no_notice_or_breaks() -> None:
    torch._dynamo.reset()
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    calls.around(module, plus(1, log))

    def half(x: Tensor) -> Tensor:
        result: Tensor = module(x) / 2
        return result

    assert torch.compile(half, backend="eager", fullgraph=True)(ONE) == 1
    calls.release()
    calls.around(module, plus(1, log), opaque=True)
    assert torch.compile(half, backend="eager")(ONE) == 1.5
    calls.release()
    assert log == [1]


def test_what_others_made_of_it_meanwhile_runs_it_once_and_still_runs_afterwards() -> None:
    """Others keep methods of the class that the model had while something was registered."""
    torch._dynamo.reset()
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    calls.around(module, plus(1, log), inner=True)
    calls.around(module, plus(10, log), opaque=True)
    compiled = torch.compile(module, backend="eager")
    assert compiled(ONE) == 13
    stock = module.forward
    module.forward = lambda x: stock(x) + 100  # type: ignore[method-assign]
    log.clear()
    assert module(ONE) == 113
    assert sorted(log) == [1, 10]
    calls.release()
    assert module(ONE) == compiled(ONE) == 102


def test_a_module_compiled_in_place_keeps_its_class_and_isnt_compiled_anew() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    module.compile(backend=counter)
    compiled = module._compiled_call_impl
    assert module(ONE) == 2
    calls.around(module, plus(1, log))
    assert type(module) is Doubling
    assert module(ONE) == 3
    calls.release()
    assert module._compiled_call_impl is compiled
    assert counter.frame_count == 1


def test_what_is_gone_is_forgotten() -> None:
    module, log, calls = Doubling(), [], Calls()  # type: ignore[var-annotated]
    calls.around(module, plus(1, log))
    del module
    other = Doubling()
    assert not calls.covers(other)
    assert other(ONE) == 2
    calls.release()
