"""Answers as OpenAI's JSON and events, and a client that hangs up while one is made."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from regaze.serving.errors import ApiError
from regaze.serving.jobs import Answer, Event, Job


class HungUpError(Exception):
    """Raised when the client is gone, so that there is nobody to answer."""


class Reply:
    """The frame of one response.

    Args:
        model: The model's name.
        fingerprint: Identity of its weights.
    """

    def __init__(self, model: str, fingerprint: str) -> None:
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """An answer in one piece."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        return {
            **self._frame,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(answer),
            "regaze": dict(answer.regaze),
        }

    def chunk(
        self, delta: Mapping[str, Any], finish: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """A piece of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return {**self._frame, "object": "chat.completion.chunk", "choices": [choice], **more}

    def spent(self, answer: Answer) -> dict[str, Any]:
        """The piece of a stream that tells what it took."""
        empty: list[Any] = []
        return {
            **self._frame,
            "object": "chat.completion.chunk",
            "choices": empty,
            "usage": usage(answer),
        }


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of the prompt and of the answer."""
    spent = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.new_tokens}
    return {**spent, "total_tokens": answer.prompt_tokens + answer.new_tokens}


def failure(error: ApiError) -> JSONResponse:
    """The response for a request that gets no answer."""
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


async def events(reply: Reply, job: Job, first: Event, tells_usage: bool) -> AsyncIterator[str]:
    """A stream's events: the role, pieces of text, how it ended, what it took, and the end mark."""
    yield _event(reply.chunk({"role": "assistant", "content": ""}))
    now = first
    while isinstance(now, str):
        yield _event(reply.chunk({"content": now}))
        now = await job.events.get()
    if isinstance(now, ApiError):
        yield _event(now.body())
        return
    yield _event(reply.chunk({}, now.finish, regaze=dict(now.regaze)))
    if tells_usage:
        yield _event(reply.spent(now))
    yield "data: [DONE]\n\n"


class Stream(Response):
    """Server-sent events, until the client hangs up.

    Args:
        pieces: The events.
        job: Job that the events are of; it is given up with the stream.
        hung_up: Ends when the client is gone.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[str], job: Job, hung_up: asyncio.Task[None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._pieces, self._job, self._hung_up = pieces, job, hung_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (piece := await unless(self._hung_up, anext(self._pieces, None))) is not None:
                body = piece.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except HungUpError:
            return
        finally:
            self._job.gone.set()
            self._hung_up.cancel()


def hanging_up(request: Request) -> asyncio.Task[None]:
    """A task that ends when the client of a request, read to its end, is gone."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return asyncio.create_task(wait())


async def unless(hung_up: asyncio.Task[None], awaited: Any) -> Any:
    """Wait for something, unless the client hangs up before.

    Raises:
        HungUpError: It does.
    """
    waits = asyncio.ensure_future(awaited)
    try:
        await asyncio.wait((waits, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if waits.done():
            return waits.result()
        raise HungUpError
    finally:
        waits.cancel()


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
