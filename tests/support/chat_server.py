"""A server of the sandbox's model in this process, and what its tests ask and expect."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import torch
import uvicorn
from PIL import Image

from regaze.evals.asking.models import Loaded, load
from regaze.evals.sandbox.tasks import load_image
from regaze.hooks import attach
from regaze.interventions import parse
from regaze.interventions.lvlm.turns import Turns
from regaze.serving.app import Server
from regaze.serving.conditions import read
from regaze.serving.engine import Engine
from regaze.serving.settings import Limits

NAME = "sandbox"
QUESTION = "please describe this image in detail."


def pictures(number: int) -> list[Image.Image]:
    """Different scenes."""
    return [load_image(f"test/{index}") for index in range(number)]


def data_url(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """A picture as clients send it."""
    held = BytesIO()
    image.save(held, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def shows(*urls: str, text: str = QUESTION) -> list[Any]:
    """A conversation of one turn."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def expected(
    loaded: Loaded,
    image: Image.Image | None,
    specs: str = "none",
    text: str = QUESTION,
    **options: Any,
) -> str:
    """The answer of `generate`, called by itself."""
    turns = Turns(loaded.processor)
    inputs = turns.model_inputs(loaded.model, text, [] if image is None else [image])
    found = () if specs == "none" else tuple(parse(one) for one in specs.split("+"))
    options = {"do_sample": False, "max_new_tokens": 64, **options}
    with attach(loaded.model, *found, processor=loaded.processor), torch.inference_mode():
        ids = loaded.model.generate(**inputs, **options)  # type: ignore[operator]
    new = ids[0, inputs["input_ids"].shape[1] :]
    return str(turns.tokenizer.decode(new, skip_special_tokens=True))


@contextmanager
def serving(
    loaded: Loaded | None = None,
    limits: Limits | None = None,
    default: str = "none",
    **options: Any,
) -> Iterator[tuple[Engine, int]]:
    """A server, until the end of the block: its engine, and the port on this machine."""
    engine = Engine(loaded or load(NAME), limits or Limits())
    app = Server(engine, NAME, read(default), **options).app()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield engine, listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def post(
    port: int,
    body: Mapping[str, Any] | bytes,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
) -> tuple[int, dict[str, Any]]:
    """The status and JSON that a request gets."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(
            method, path, data, {"Content-Type": "application/json"} | dict(headers or {})
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def joined(chunks: Sequence[Any]) -> str:
    """The text of a stream."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
