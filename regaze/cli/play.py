"""play: a playground in the browser."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated

import typer

from regaze.cli.noise import hush
from regaze.cli.options import Device, check_text, on_one_thread
from regaze.cli.terminal import note, say
from regaze.evals import sandbox
from regaze.evals.sandbox.painting import PAINTERS


def play(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A folder or a Hub id to offer beside "
            f"{', '.join((*sandbox.MODELS, *PAINTERS))}; the first is opened at once. Repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision: float32, bfloat16 or float16. Default: the model's own."),
    ] = None,
    device: Device = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Anything but the loopback lets others in, who may open the "
            "models that are offered, and no other."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 7860,
) -> None:
    """Try methods out in a browser: answers and paintings side by side, attention head by head."""
    check_text("--host", host)  # Sockets take an empty one for all addresses.
    if find_spec("gradio") is None:
        raise ImportError("regaze play needs gradio: pip install 'regaze[play]'")
    # Read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from regaze.evals.hosts import is_loopback
    from regaze.evals.play.models import BUILT_IN, Shelf
    from regaze.evals.play.serving import address, application, listen, server

    hush("transformers")
    hush("diffusers")
    named = list(dict.fromkeys(model or ()))
    offered = [*named, *(name for name in BUILT_IN if name not in named)]
    alone = is_loopback(host)
    if all(name in BUILT_IN for name in offered):
        on_one_thread()
    shelf = Shelf(offered, any_model=alone, dtype=dtype, device=device)
    loaded = (ctx.find_root().params or {}).get("load") or ()
    app = application(shelf, offered[0], host, loaded)
    with listen(host, port) as at:
        if named:
            shelf.open(named[0])
        say(f"Playground: {address(at)}", "Ctrl-C ends it.")
        if not alone:
            note(f"everybody who reaches {host} may use it; there is no password")
        with suppress(KeyboardInterrupt):  # The way to end it, no error.
            server(app).run(sockets=[at])
