"""The fork: a perturbed branch is the conditional one up to its first edited layer.

While the denoiser runs as usual, the outputs of the blocks before that layer are kept. The
perturbed branch then runs the denoiser on its own rows with stand-ins in those blocks' places that
hand the kept outputs back. What lies between the blocks (skip connections, residuals of a
ControlNet, embeddings) is computed anew by the denoiser's own code, so nothing needs to be known of
it, and the result equals that of a whole extra forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.rows import take_rows
from regaze.hooks.diffusion.sites import blocks


class Kept:
    """Outputs of a denoiser's blocks from one forward pass.

    Args:
        denoiser: The model.
        forks: Blocks at which perturbed branches leave the main one.
    """

    def __init__(self, denoiser: nn.Module, forks: Sequence[str]) -> None:
        self._denoiser = denoiser
        self._forks = frozenset(forks)
        self._chain = family_of(denoiser).chain
        self._outputs: dict[str, Any] = {}
        self._before: dict[str, list[str]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what the pass inside needs to keep."""
        with _in_places(self._denoiser, {n: _Recorder(self, n) for n in blocks(self._denoiser)}):
            yield

    def enter(self, name: str) -> bool:
        """A block begins; whether its output has to be kept."""
        if name in self._forks:
            self._before[name] = list(self._outputs)
        return len(self._before) < len(self._forks)

    def keep(self, name: str, output: Any) -> None:
        """A block has run."""
        last = next(reversed(self._outputs), None)
        needed = {names[-1] for names in self._before.values() if names}
        if (
            self._chain
            and last is not None
            and last not in needed
            and _list_of(last) == _list_of(name)
        ):
            self._outputs[last] = None
        self._outputs[name] = output

    def skipped(self, fork: str) -> list[str]:
        """The blocks that a branch that forks there doesn't run."""
        return self._before.get(fork, [])

    @contextmanager
    def replaying(self, fork: str, rows: slice, batch: int) -> Iterator[None]:
        """Passes of the denoiser inside begin at the fork, for some rows of the kept pass."""
        replays: dict[str, nn.Module] = {}
        output: Any = None
        for name in reversed(self._before.get(fork, ())):
            if self._outputs[name] is not None:
                output = take_rows(self._outputs[name], rows, batch, multiples=True)
            replays[name] = _Replay(self._denoiser.get_submodule(name), output)
        with _in_places(self._denoiser, replays):
            yield


class _StandIn(nn.Module):
    """A module in a block's place, of which denoisers read attributes too."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Not as a child: nothing may be moved or initialised through a stand-in.
        object.__setattr__(self, "stands_for", block)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "stands_for"), name)


class _Recorder(_StandIn):
    def __init__(self, kept: Kept, name: str) -> None:
        super().__init__(kept._denoiser.get_submodule(name))
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "place", name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        keeps = self.kept.enter(self.place)
        output = self.stands_for(*args, **kwargs)
        if keeps:
            self.kept.keep(self.place, output)
        return output


class _Replay(_StandIn):
    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__(block)
        object.__setattr__(self, "output", output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


@contextmanager
def _in_places(denoiser: nn.Module, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            parent, _, child = name.rpartition(".")
            children = denoiser.get_submodule(parent)._modules
            stack.callback(children.__setitem__, child, children[child])
            children[child] = stand_in
        yield


def _list_of(name: str) -> str:
    return name.rpartition(".")[0]


def why_not(denoiser: nn.Module, call: Mapping[str, Any]) -> str | None:
    """Why a call's branches can't fork and need whole forward passes; None if they can.

    Args:
        denoiser: The model, maybe compiled.
        call: The call's arguments by name.
    """
    if is_compiled(denoiser):
        return "the denoiser is compiled"
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
    """Whether a module was given to ``torch.compile`` or compiled in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
