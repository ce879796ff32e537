"""The seat: torch-function modes come and go with the edited modules."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pipelines import FAMILIES, tiny
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import regaze


class _Mine(TorchFunctionMode):
    """A mode of the user's, such as ``torch.device`` as a context."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("error")
def test_a_hook_that_raises_before_ours_leaves_other_modes_alone() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]

    calls = []

    def fails(*args: Any) -> None:
        calls.append(len(_get_current_function_mode_stack()))
        if len(calls) == 2:  # In the perturbed branch.
            raise KeyError("out of memory, say")

    spec = regaze.PAG(layers=kind.perturb)
    with regaze.attach(pipe, spec) as run:
        name = run.specs[0].layers[0]  # type: ignore[attr-defined]
    hook = pipe.unet.get_submodule(name).register_forward_pre_hook(fails)
    try:
        with _Mine() as mine, regaze.attach(pipe, spec):  # type: ignore[no-untyped-call]
            with pytest.raises(KeyError):
                kind.run(pipe)
            assert _get_current_function_mode_stack()[-1] is mine
    finally:
        hook.remove()
    assert calls == [1, 1]
