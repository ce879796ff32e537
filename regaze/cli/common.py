"""What the commands share: options, output, and mistakes said in one line."""

from __future__ import annotations

import os
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from regaze.evals import sandbox
from regaze.evals.asking.models import Loaded, load

out, err = Console(), Console(stderr=True)

Model = Annotated[
    str, typer.Option("--model", "-m", help="sandbox, sandbox-plain, a folder or a Hub id.")
]
DType = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16, float16. Default: float32 on the CPU, else auto."),
]
Device = Annotated[str | None, typer.Option(help="Default: the first GPU, else cpu.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices, e.g. auto.")]
Attention = Annotated[
    str | None, typer.Option("--attn-implementation", help="sdpa, eager, flash_attention_2, ...")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table instead.")]


class Commands(TyperGroup):
    """Says in one line what a user can put right; ``--debug`` shows where it came up."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; ``eval images`` is one of its own beside ``eval BENCHMARK``."""
        pair = " ".join(args[:2])
        return super().resolve_command(ctx, [pair, *args[2:]] if pair in self.commands else args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors that a user can put right end it with exit code 2."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            fail("stopped; finished answers are kept: the same command carries on", 130)
        except torch.OutOfMemoryError:
            fail("out of memory: give a smaller --batch-size or auto, and another --out", 2)
        except (ValueError, OSError, TypeError, ImportError, NotImplementedError) as error:
            if ctx.params.get("debug"):
                raise
            fail(" ".join(str(error).split()) or type(error).__name__, 2)


def load_model(model: str, **options: str | None) -> Loaded:
    """Load a model; the embedded ones run on one thread unless the environment says otherwise."""
    if sandbox.is_sandbox(model) and "OMP_NUM_THREADS" not in os.environ:
        # So small a model only loses by threads that wait for each other, most of all on a busy
        # machine; one thread also fixes the order of sums.
        torch.set_num_threads(1)
    return load(model, **options)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong on standard error and end the command."""
    err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    raise typer.Exit(code)
