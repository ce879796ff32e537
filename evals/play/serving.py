"""Serve the playground; its pages ask no other host for anything."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        app: What answers.
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    shelf: Shelf, model: str, host: str, port: int, load: Sequence[Path] = ()
) -> tuple[gr.Blocks, str]:
    """Serve a playground, in threads of its own, until ``close`` of what is returned is called.

    Args:
        shelf: Its models.
        model: Which one is chosen first.
        host: Where it listens.
        port: 0 for any free one.
        load: Python files that registered methods.

    Returns:
        The page, and its address.

    Raises:
        OSError: The port is taken.
        ValueError: The first model may not be opened.
    """
    page = Page(shelf, model, load).draw()
    # A name that a foreign page had resolve to this machine isn't one of these.
    names = ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(host) else ["*"]
    layers = [Middleware(OnlyHere), Middleware(TrustedHostMiddleware, allowed_hosts=names)]
    options: dict[str, Any] = {"server_port": port or _free(host)}
    _, address, _ = page.queue().launch(
        server_name=host,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=_LARGEST,
        theme=theme(),
        css=CSS,
        head=HEAD,
        app_kwargs={"middleware": layers},
        **options,
    )
    return page, str(address)


def _free(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])
