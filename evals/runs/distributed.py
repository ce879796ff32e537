"""Several processes that answer one run: each takes its share of the batches.

They are started by ``accelerate launch`` (or ``torchrun``) and meet only at the beginning and the
end; answers are gathered through files. The launcher stops all when one fails.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

# What launchers call the number of processes.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# At the end, those that are done wait for the slowest; that is no error.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """The processes of a run, and which one this is.

    Attributes:
        rank: 0 is the one that also puts everything together.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True if this process puts everything together."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on once all processes have come this far."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def join() -> World:
    """Meet the other processes, if a launcher started several; call it before loading a model.

    Each process then has its own GPU as the current one.

    Raises:
        ValueError: The environment names a number of processes that is none.
    """
    for name in _SIZES:
        if not os.environ.get(name, "1").isdecimal():
            raise ValueError(
                f"the environment's {name} is {os.environ[name]!r}, not a number of processes: "
                "unset it, or start the command by torchrun or accelerate launch"
            )
    if all(os.environ.get(name, "1") == "1" for name in _SIZES):
        return World()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return World(state.process_index, state.num_processes)
