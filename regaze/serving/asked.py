"""A request's JSON as what is asked: every field is known, and does something or says why not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from regaze.evals.asking.decoding import Decoding
from regaze.hooks.checks import shown, unknown
from regaze.serving.errors import ApiError, bad

_SILENT = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
"""Fields that change no answer."""

_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer is made for a request: send several requests, they are batched"),
    "tools": (([],), "tools aren't offered to the model"),
    "tool_choice": (("none", "auto"), "tools aren't offered to the model"),
    "parallel_tool_calls": ((True, False), "tools aren't offered to the model"),
    "functions": (([],), "functions aren't offered to the model"),
    "function_call": (("none", "auto"), "functions aren't offered to the model"),
    "response_format": (({"type": "text"},), "answers aren't constrained to a format"),
    "modalities": ((["text"],), "answers are text"),
    "logprobs": ((False,), "log probabilities aren't returned"),
    "top_logprobs": ((0,), "log probabilities aren't returned"),
    "logit_bias": (({},), "scores of single tokens aren't changed"),
    "presence_penalty": ((0,), "repetition isn't penalised"),
    "frequency_penalty": ((0,), "repetition isn't penalised"),
}
"""Fields of OpenAI's that nothing is done about: the values that ask for nothing, and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Address(_Strict):
    """A picture's address."""

    url: str
    detail: Literal["auto"] | None = None


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: Address


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    parts: Annotated[list[Part], BeforeValidator(_as_parts)] = Field(alias="content")


class StreamOptions(_Strict):
    """Options of a stream beside the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Regaze(_Strict):
    """Interventions, and whether a report of what they did is wanted."""

    with_: str | None = Field(default=None, alias="with")
    report: bool = False


def _as_regaze(given: object) -> object:
    if given is not None and not isinstance(given, (str, dict)):
        raise PydanticCustomError(
            "regaze", 'must be a text such as "vhr:alpha=2", or {"with": "vhr", "report": true}'
        )
    return {"with": given} if isinstance(given, str) else given


class Chat(_Strict):
    """A request for an answer."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=1e-3, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    regaze: Annotated[Regaze, BeforeValidator(_as_regaze)] | None = None


def read(body: object) -> Chat:
    """Check a request's JSON.

    Raises:
        ApiError: A field that isn't known (the message names the nearest) or can't be had.
    """
    if not isinstance(body, dict):
        raise bad(f"a request is a JSON object, got {shown(body)}")
    left = {name: value for name, value in body.items() if name not in _SILENT}
    for name, (neutral, why) in _NEUTRAL.items():
        value = left.pop(name, None)
        if value is not None and value not in neutral:
            raise bad(f"{name} = {shown(value)} can't be had: {why}", name, "unsupported_value")
    try:
        chat = Chat.model_validate(left)
    except ValidationError as error:
        raise _said(error) from error
    if chat.messages[-1].role != "user":
        raise bad("the last message must be the user's: it is what is answered", "messages")
    for message in chat.messages:
        if message.role != "user" and any(isinstance(part, ImagePart) for part in message.parts):
            raise bad(
                f"a message of the {message.role} holds a picture: only the user's may", "messages"
            )
    return chat


def decoding(chat: Chat) -> tuple[Decoding, int | None]:
    """The decoding and the seed; greedy unless a temperature or a share is given.

    Raises:
        ApiError: A temperature too small to divide by.
    """
    if chat.temperature == 0 or (chat.temperature is None and chat.top_p is None):
        return Decoding(), None
    try:
        return Decoding(temperature=chat.temperature, top_p=chat.top_p), chat.seed
    except ValueError as error:
        raise bad(str(error), "temperature") from error


def stops(chat: Chat) -> tuple[str, ...]:
    """The texts that end an answer.

    Raises:
        ApiError: More than four, or an empty one.
    """
    found = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
    if len(found) > 4 or not all(found):
        raise bad("stop must be one text or up to four, none of them empty", "stop")
    return found


def new_tokens(chat: Chat, most: int) -> int | None:
    """The number of tokens that a request asks for; None if it doesn't say.

    Raises:
        ApiError: More than the server gives.
    """
    named = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    found: int | None = getattr(chat, named)
    if found is not None and found > most:
        raise bad(f"{named} = {found}: this server gives at most {most} (--max-tokens)", named)
    return found


def _said(error: ValidationError) -> ApiError:
    """The first mistake in one line."""
    first = error.errors(include_url=False)[0]
    *outer, last = first["loc"] or ("",)
    where = ".".join(map(str, first["loc"])) or None
    if first["type"] == "extra_forbidden":
        known = [*Chat.model_fields, *_NEUTRAL, *_SILENT] if not outer else ()
        said = unknown("field", str(last), known) if known else f"unknown field {where!r}"
        return bad(said, where, "unknown_parameter")
    if first["type"] == "missing":
        return bad(f"{where} is missing", where)
    return bad(f"{where}: {first['msg']}, got {shown(first['input'])}", where)
