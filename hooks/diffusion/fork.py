"""The fork: a branch with the main run's inputs is the main one up to its first edited layer.

While the denoiser runs as usual, the outputs of the blocks before that layer are kept. The branch
then runs the denoiser on its own rows, and these blocks hand the kept outputs back instead of
running. What lies between the blocks (skip connections, residuals of a ControlNet, embeddings) is
computed anew by the denoiser's own code, so nothing needs to be known of it, and the result equals
that of a whole extra forward pass. What is kept is a copy, and what is handed back is one, too:
denoisers write to what blocks returned (FreeU).
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from regaze.hooks.calls import Calls
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.rows import take_rows
from regaze.hooks.diffusion.sites import blocks

Fork = tuple[frozenset[str], tuple[int, int]]
"""The blocks that a branch's edits are in, and the first and last of the rows that it runs on."""

Instead = Callable[[Callable[..., Any], Mapping[str, Any]], Any]
"""Code in a block's place: ``instead(run, arguments)``; ``run()`` runs the block itself, and
``run(name=value)`` with other arguments of these names."""


class _Here(threading.local):
    """The code that now runs in the place of this thread's blocks."""

    blocks: Mapping[int, Instead] | None = None


_HERE = _Here()


class Kept:
    """Outputs of a denoiser's blocks from one forward pass, for the branches that follow.

    Args:
        denoiser: The model.
        family: Facts known of the model.
        forks: One for each branch.
        batch: Rows of the pass.
    """

    def __init__(
        self, denoiser: nn.Module, family: Family, forks: Sequence[Fork], batch: int
    ) -> None:
        self._denoiser = denoiser
        self._blocks = {name: denoiser.get_submodule(name) for name in blocks(denoiser)}
        self._chain, self._batch = family.chain, batch
        self._next = {
            name: after
            for name, after in zip(self._blocks, [*self._blocks][1:], strict=False)
            if _list(name) == _list(after)
        }
        self._forks = list(dict.fromkeys(forks))
        self._left = Counter(rows for _, rows in forks)
        self._ran: list[str] = []
        self._before: dict[Fork, list[str]] = {}
        self._outputs: dict[tuple[str, tuple[int, int]], Any] = {}
        self.broken = ""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the outputs of the pass inside that branches may read."""

        def keep(name: str) -> Instead:
            return lambda run, arguments: self._record(name, run)

        with instead(self._denoiser, {name: keep(name) for name in self._blocks}):
            yield

    def _record(self, name: str, run: Callable[[], Any]) -> Any:
        for fork in self._forks:
            if name in fork[0] and fork not in self._before:
                self._before[fork] = list(self._ran)
                if self._ran and (self._ran[-1], fork[1]) not in self._outputs:
                    self.broken = "blocks run in another order than they are listed in"
        open_forks = [fork for fork in self._forks if fork not in self._before]
        output = run()
        if name in self._ran:
            self.broken = "blocks run more than once in a pass"
        self._ran.append(name)
        for rows in dict.fromkeys(rows for _, rows in open_forks):
            if not _runs_over(output, self._batch):
                self.broken = "blocks return something that doesn't run over the batch"
                return output
            if self._is_read(name, open_forks):
                self._outputs[name, rows] = _cut(output, slice(*rows), self._batch)
        return output

    def _is_read(self, name: str, forks: Sequence[Fork]) -> bool:
        """True if a branch may read what a block returned.

        In a chain a block reads the one before it alone: of those that a branch skips only the last
        one of a list counts, and the one before its first edited block.
        """
        after = self._next.get(name)
        return not self._chain or after is None or any(after in fork[0] for fork in forks)

    def skips(self, fork: Fork) -> frozenset[str]:
        """The blocks that a branch doesn't run."""
        return frozenset(self._before.get(fork, ()))

    @contextmanager
    def replaying(self, fork: Fork) -> Iterator[None]:
        """Hand kept outputs back in the pass inside, which is a branch's."""
        replays: dict[str, Any] = {}
        output: Any = None
        for name in reversed(self._before.get(fork, ())):
            output = self._outputs.get((name, fork[1]), output)
            replays[name] = output
        self._left[fork[1]] -= 1
        # The last branch may write to what was kept; in a chain blocks share it.
        shared = self._chain or self._left[fork[1]] > 0
        whole = slice(0, self._batch)

        def hand(name: str) -> Instead:
            def handed(run: Callable[[], Any], arguments: Mapping[str, Any]) -> Any:
                return _cut(replays[name], whole, self._batch) if shared else replays[name]

            return handed

        with instead(self._denoiser, {name: hand(name) for name in replays}):
            yield


@contextmanager
def instead(denoiser: nn.Module, found: Mapping[str, Instead]) -> Iterator[None]:
    """Run other code in the place of some modules in this thread's passes inside.

    Args:
        denoiser: The model, whose modules are watched (`watch`).
        found: Code to run, by the paths of the modules.
    """
    before = _HERE.blocks
    try:
        more = {id(denoiser.get_submodule(name)): one for name, one in found.items()}
        _HERE.blocks = {**(before or {}), **more}
        yield
    finally:
        _HERE.blocks = before


def skipping(returns: Sequence[str]) -> Instead:
    """Code that runs in the place of a block that is left out: its streams pass through.

    Args:
        returns: Arguments that the block returns, in order.
    """

    def skip(run: Callable[[], Any], arguments: Mapping[str, Any]) -> Any:
        streams = tuple(arguments[name] for name in returns)
        return streams[0] if len(streams) == 1 else streams

    return skip


@contextmanager
def cleared() -> Iterator[None]:
    """Let nothing that was entered inside outlive it, whatever ends it, and at whatever line."""
    before = _HERE.blocks
    try:
        try:
            yield
        finally:
            _HERE.blocks = before
    finally:  # Again, should an interrupt have come in the first one's way.
        _HERE.blocks = before


def _block(block: nn.Module, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a block, or what this thread does in its place."""
    found = None if _HERE.blocks is None else _HERE.blocks.get(id(block))
    if found is None:
        return call(*args, **kwargs)
    given = inspect.signature(type(block).forward).bind(block, *args, **kwargs)

    def run(**others: Any) -> Any:
        if not others:
            return call(*args, **kwargs)
        given.arguments.update(others)
        return call(*given.args[1:], **given.kwargs)

    return found(run, given.arguments)


def watch(calls: Calls, denoiser: nn.Module, more: Iterable[str] = ()) -> None:
    """Let passes of a denoiser keep and replay what its blocks, and more modules, return."""
    for name in (*blocks(denoiser), *more):
        block = denoiser.get_submodule(name)
        if not calls.covers(block):
            calls.around(block, _block)


def _cut(output: Any, rows: slice, batch: int) -> Any:
    """A copy of some rows of what a block returned; what was one tensor stays one."""
    made: dict[Any, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in made:
            made[key] = tensor.clone()
        return made[key]

    return take_rows(output, rows, batch, multiples=True, made=copied)


def _runs_over(output: Any, batch: int) -> bool:
    """True if all of a block's hidden states can be cut by rows."""
    if isinstance(output, Tensor):
        return output.ndim > 1 and output.shape[0] % batch == 0
    if isinstance(output, (list, tuple)):
        return all(_runs_over(x, batch) for x in output)
    return output is None


def _list(name: str) -> str:
    return name.rpartition(".")[0]


def why_not(denoiser: nn.Module, call: Mapping[str, Any], family: Family) -> str | None:
    """The reason why a call's branches need whole forward passes; None if they can fork.

    Args:
        denoiser: The model, maybe compiled.
        call: The call's arguments by name.
        family: Facts known of its class.
    """
    if is_compiled(denoiser):
        return "the denoiser is compiled"
    if family.proven:
        return "what its blocks read of each other isn't known"
    if family.uneven is not None and family.uneven(call):
        return "the batch holds prompts of several lengths, the longest of which sets the others'"
    if any(hasattr(block, "_diffusers_hook") for block in _parts_of_blocks(denoiser)):
        return "hooks of diffusers (group offloading, layerwise casting) count on every block"
    adapter = call.get("down_intrablock_additional_residuals") is not None
    legacy = call.get("down_block_additional_residuals") is not None
    if adapter or (legacy and call.get("mid_block_additional_residual") is None):
        return "a T2I adapter adds to what blocks returned, in place"
    return None


def _parts_of_blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    for name in blocks(denoiser):
        yield from denoiser.get_submodule(name).modules()


def is_compiled(module: nn.Module) -> bool:
    """True if a module was given to ``torch.compile`` or compiled in place."""
    # Looked up as they are stored, because every part of a denoiser is asked in every pass.
    held = vars(module)
    return held.get("_compiled_call_impl") is not None or "_orig_mod" in held.get("_modules", ())
