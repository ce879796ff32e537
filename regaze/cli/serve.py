"""serve: a model with interventions behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from regaze.cli.options import Model, check_text, spread
from regaze.cli.terminal import note, say
from regaze.evals.hosts import is_loopback
from regaze.hooks.checks import shown

if TYPE_CHECKING:
    from regaze.serving.settings import Limits

_WAIT_FOR_ANSWERS = 5


@dataclass(frozen=True)
class Bounds:
    """Limits of what requests may take."""

    PANEL: ClassVar[str] = "Limits"

    max_batch: Annotated[
        int, typer.Option(min=1, help="Most requests that are answered together.")
    ] = 8
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Most requests that wait; others are sent away with 429.")
    ] = 64
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, and the default.")
    ] = 512
    max_request_mb: Annotated[
        int, typer.Option(min=1, max=10_000, help="Largest request, in millions of bytes.")
    ] = 20
    max_megapixels: Annotated[
        int, typer.Option(min=1, max=10_000, help="Largest picture, in millions of pixels.")
    ] = 20
    max_images: Annotated[int, typer.Option(min=0, help="Most pictures of a request.")] = 8
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls",
            help="Fetch pictures from public http(s) addresses. Default: data: URLs only.",
        ),
    ] = False

    @property
    def limits(self) -> Limits:
        """The same in bytes and pixels."""
        from regaze.serving.settings import Limits

        return Limits(
            batch=self.max_batch,
            waiting=self.max_waiting,
            new_tokens=self.max_tokens,
            body_bytes=self.max_request_mb * 1_000_000,
            pixels=self.max_megapixels * 1_000_000,
            pictures=self.max_images,
            urls=self.allow_urls,
        )


@spread
def serve(
    model: Model,
    bounds: Bounds,
    with_: Annotated[
        str,
        typer.Option(
            "--with", "-w", help="Interventions for requests that name none: vhr, var+pai, none."
        ),
    ] = "none",
    name: Annotated[
        str | None, typer.Option(help="Name of the model to clients. Default: that of --model.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="REGAZE_API_KEY",
            help="Key that clients must send. Set the variable: options show in process lists.",
        ),
    ] = None,
) -> None:
    """Serve a model to OpenAI's clients; each request names its interventions."""
    check_text("--host", host)  # Sockets take an empty one for all addresses.
    check_text("--name", name)
    try:
        import uvicorn

        from regaze.serving.app import Server
        from regaze.serving.conditions import read
        from regaze.serving.engine import Engine
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ImportError(
            "serving needs Starlette and uvicorn: pip install 'regaze[serve]'"
        ) from error
    from regaze.serving.errors import ApiError

    try:
        default = read(with_, "--with")
    except ApiError as error:
        raise ValueError(error.message) from error
    if api_key == "":
        raise ValueError("the API key is empty: unset REGAZE_API_KEY, or give one")
    local = is_loopback(host)
    listening = _listen(host, port)
    engine = Engine(model.load(), bounds.limits)
    engine.resolve(default)
    called = name or (
        Path(model.model).resolve().name if Path(model.model).is_dir() else model.model
    )
    server = Server(engine, called, default, key=api_key, local=local)
    if not local and api_key is None:
        note(f"whoever reaches {host} may ask: set REGAZE_API_KEY to ask for a key")
    where = f"[{host}]" if ":" in host else host
    say(
        f"Serving {called} with {default.label}: "
        f"http://{where}:{listening.getsockname()[1]}/v1 (stop: Ctrl-C)"
    )
    config = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=2 * (bounds.max_waiting + bounds.max_batch),
        timeout_graceful_shutdown=_WAIT_FOR_ANSWERS,
    )
    with suppress(KeyboardInterrupt):  # The way to end it, no error.
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket there, before a model is loaded for it.

    Raises:
        ValueError: The address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"can't listen on {shown(host)}, port {port} ({error}): give another --port or --host"
        ) from error
