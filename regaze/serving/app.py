"""The HTTP side: who may ask, how much, and what comes back."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from regaze.evals.runs.conditions import Condition
from regaze.hooks.checks import unknown
from regaze.serving import asked, conditions, pictures
from regaze.serving.engine import Engine
from regaze.serving.errors import ApiError, bad
from regaze.serving.jobs import Job
from regaze.serving.replies import HungUpError, Reply, Stream, events, failure, hanging_up, unless

_SECONDS = 30.0
"""The longest that a request may take to arrive."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Server:
    """The routes of one model.

    Args:
        engine: Answers; it is started and stopped with the app.
        name: Name of the model.
        default: Interventions for a request that names none.
        key: The key that clients must send; None lets everybody in.
        local: Serves this machine alone: then a web page that calls itself by another
            name, and points that name here, is turned away.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        default: Condition,
        *,
        key: str | None = None,
        local: bool = True,
    ) -> None:
        self._engine, self._name, self._default = engine, name, default
        self._key, self._local = key, local
        self._since = int(time.time())
        self._fingerprint = f"fp_{engine.loaded.identity['weights_sha256'][:12]}"

    def app(self) -> Starlette:
        """The ASGI application."""

        @asynccontextmanager
        async def running(_: Starlette) -> AsyncIterator[None]:
            self._engine.start()
            yield
            await asyncio.to_thread(self._engine.stop)

        async def no_route(_: Request, error: Exception) -> Response:
            status = getattr(error, "status_code", 500)
            return failure(ApiError(status, f"{getattr(error, 'detail', 'the server failed')}"))

        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{name:path}", self._guarded(self._model)),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            ],
            exception_handlers={HTTPException: no_route, Exception: no_route},
            lifespan=running,
        )

    def _guarded(
        self, route: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            try:
                self._let_in(request)
                return await route(request)
            except ApiError as error:
                return failure(error)
            except (HungUpError, ClientDisconnect):
                return Response(status_code=499)

        return run

    def _let_in(self, request: Request) -> None:
        """Check who asks.

        Raises:
            ApiError: A foreign name of this machine, or a wrong key.
        """
        host = request.headers.get("host", "").rpartition(":")
        named = host[0] if host[2].isdecimal() else host[2] if not host[1] else "".join(host)
        if self._local and named not in _LOOPBACK:
            raise ApiError(
                403, f"this server answers to {', '.join(_LOOPBACK)}, not to {named!r} (--host)"
            )
        given = request.headers.get("authorization", "").encode()
        if self._key is not None and not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _health(self, _: Request) -> Response:
        alive = self._engine.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        about = {"id": self._name, "object": "model", "created": self._since, "owned_by": "regaze"}
        return {**about, "regaze": {"with": self._default.label}}

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                404, unknown("model", name, [self._name]), param="model", code="model_not_found"
            )

    async def _chat(self, request: Request) -> Response:
        chat = asked.read(await self._json(request))
        self._check_model(chat.model)
        job = await self._job(chat)
        reply = Reply(self._name, self._fingerprint)
        hung_up = hanging_up(request)
        streaming = False
        try:
            self._engine.submit(job)
            # So that a request that gets no answer gets its status, in a stream too.
            first = await unless(hung_up, job.events.get())
            if isinstance(first, ApiError):
                return failure(first)
            if not chat.stream:
                return JSONResponse(reply.whole(first))
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            streaming = True
            return Stream(events(reply, job, first, usage), job, hung_up)
        finally:
            if not streaming:
                job.gone.set()
                hung_up.cancel()

    async def _job(self, chat: asked.Chat) -> Job:
        limits = self._engine.limits
        wanted = chat.regaze or asked.Regaze()
        condition = self._default if wanted.with_ is None else conditions.read(wanted.with_)
        decoding, seed = asked.decoding(chat)
        places = [
            part.image_url.url
            for message in chat.messages
            for part in message.parts
            if isinstance(part, asked.ImagePart)
        ]
        if len(places) > limits.pictures:
            raise bad(f"{len(places)} pictures: {limits.pictures} are allowed", "messages")
        return Job(
            chat.messages,
            [await asyncio.to_thread(pictures.read, place, limits) for place in places],
            condition,
            decoding,
            seed,
            asked.new_tokens(chat, limits.new_tokens),
            asked.stops(chat),
            bool(chat.stream),
            wanted.report,
        )

    async def _json(self, request: Request) -> Any:
        """A request's JSON.

        Raises:
            ApiError: It is too large, takes too long to arrive, or is no JSON.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # A web page can send anything else across sites without being asked.
            raise ApiError(415, "a request's Content-Type is application/json")
        try:
            data = await asyncio.wait_for(self._body(request), _SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request took longer than {_SECONDS:g} s to arrive") from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise bad(f"the request is no JSON: {error}", code="invalid_json") from error

    async def _body(self, request: Request) -> bytes:
        most = self._engine.limits.body_bytes
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > most:
                raise ApiError(413, f"a request has at most {most} bytes", code="request_too_large")
        return bytes(data)
