"""Serve the playground; its pages ask no other host for anything."""

from __future__ import annotations

import logging
import socket
from asyncio import CancelledError
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regaze.evals.hosts import is_loopback
from regaze.evals.play.models import Shelf
from regaze.evals.play.page import CSS, HEAD, Page, theme

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'self'"
)
_LARGEST = "20mb"


class OnlyHere:
    """Forbids a page to load anything from elsewhere, or to be shown inside another one.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the policy in the answer's head."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, answer)


def application(shelf: Shelf, model: str, host: str, load: Sequence[Path] = ()) -> FastAPI:
    """The playground as a web application.

    Args:
        shelf: The models that it offers.
        model: Name of the model that is chosen at first.
        host: The host that will serve it.
        load: Python files that registered methods.

    Raises:
        ValueError: The first model may not be opened.
    """
    # A name that a foreign page had resolve to this machine isn't one of these.
    names = ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(host) else ["*"]
    layers = [Middleware(OnlyHere), Middleware(TrustedHostMiddleware, allowed_hosts=names)]
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(middleware=layers, openapi_url=None),
        Page(shelf, model, load).draw().queue(),
        path="",
        server_name=host,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=_LARGEST,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve at.

    Args:
        host: The host or address to listen on.
        port: 0 for any free one.

    Raises:
        OSError: The port is taken, or the host isn't this machine's.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise OSError(
            f"can't listen on {host}, port {port} ({error.strerror}): give another"
        ) from None


def address(at: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = at.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class _Leaving(logging.Filter):
    """Drops complaints about pages that are still open when the server ends."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record, unless it is about an answer cut off by the end."""
        cut = record.exc_info and isinstance(record.exc_info[1], CancelledError)
        return not cut and "timeout graceful shutdown" not in record.getMessage()


def server(app: FastAPI) -> uvicorn.Server:
    """A server for an application: ``run(sockets=[...])`` does so until ``should_exit`` is set."""
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2)
    logging.getLogger("uvicorn.error").addFilter(_Leaving())
    return uvicorn.Server(config)
