"""Requests that are refused."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import NAME, data_url, pictures, post, serving, shows
from PIL import Image

from regaze.serving import urls
from regaze.serving.errors import ApiError
from regaze.serving.settings import Limits

TEXT = [{"role": "user", "content": "is there a red circle?"}]
PLAIN = data_url(Image.new("RGB", (63, 64)))


def said(answer: tuple[int, dict[str, Any]], status: int) -> str:
    """The message of an error of OpenAI's form."""
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and str(Path(__file__).parents[2]) not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regaze": "vrh"}, "unknown intervention 'vrh'; did you mean vhr"),
        ({"regaze": "vhr:alpa=2"}, "unknown field of vhr 'alpa'; did you mean alpha"),
        ({"regaze": "vhr:alpha=-1"}, "alpha must be"),
        ({"regaze": "pag"}, "acts on diffusers pipelines"),
        ({"regaze": "vicrop"}, "changes what is asked"),
        ({"regaze": "headscale"}, "headscale changes nothing as it is given: set factor"),
        ({"regaze": "none@blank"}, "is a control"),
        ({"regaze": "ad-hh:heads=@/etc/passwd"}, "would read a file of the server"),
        ({"regaze": "vhr:layers=[99]"}, "layers holds 99"),
        ({"regaze": {"with": "vhr", "reprot": True}}, "unknown field 'regaze"),
        ({"regaze": 5}, 'must be a text such as "vhr:alpha=2", or {"with": "vhr", '),
        ({"regaze": ["vhr"]}, "must be a text such as"),
        ({"regaze": {"with": 5}}, "regaze.with: Input should be a valid string, got 5"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"temperature": 3}, "less than or equal to 2"),
        ({"temperature": 1e-6}, "temperature must be"),
        ({"n": 2}, "send several requests"),
        ({"tools": [{"type": "function"}]}, "tools aren't offered"),
        ({"response_format": {"type": "json_object"}}, "aren't constrained"),
        ({"logprobs": True}, "aren't returned"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"max_tokens": 10_000}, "at most 512 (--max-tokens)"),
        ({"max_tokens": 400}, "the model holds 256"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "up to four"),
        ({"stop": ""}, "none of them empty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [*TEXT, {"role": "assistant", "content": "yes"}]}, "must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a <image> more"}]}, "stands for a picture"),
        ({"messages": [{"role": "user", "content": "yes " * 300}]}, "the prompt has"),
        ({"messages": shows("file:///etc/passwd")}, "opens no files of its own"),
        ({"messages": shows("/etc/passwd")}, "opens no files of its own"),
        ({"messages": shows("http://127.0.0.1/x.png")}, "fetches no pictures"),
        ({"messages": shows("data:image/png,abc")}, "must read data:image/png;base64"),
        ({"messages": shows("data:image/png;base64,?!")}, "base64 is damaged"),
        ({"messages": shows("data:image/png;base64,aGFsbG8=")}, "is no PNG"),
        ({"messages": shows(PLAIN[:-40])}, "can't be decoded"),
        ({"messages": shows(*[PLAIN] * 9)}, "9 pictures: 8 are allowed"),
        (
            {"messages": [{"role": "system", "content": shows(PLAIN)[0]["content"]}, *TEXT]},
            "holds a picture",
        ),
    ],
)
def test_a_mistake_is_a_400_that_says_what_to_do(
    port: int, fields: Mapping[str, Any], message: str
) -> None:
    for stream in (False, True):
        body = {"model": NAME, "messages": TEXT, "stream": stream, **fields}
        assert message in said(post(port, body), 400)


def test_fields_that_change_no_answer_or_ask_for_nothing_are_taken(port: int) -> None:
    more = {
        "n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "presence_penalty": 0.0,
        "response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "stop": None,
        "max_tokens": None, "regaze": None, "stream": False, "max_completion_tokens": 3,
    }  # fmt: skip
    status, answer = post(port, {"model": NAME, "messages": TEXT, **more})
    assert status == 200 and answer["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "no JSON"),
        (b"[" * 100_000, {}, 400, "no JSON"),
        (b"\xff", {}, 400, "no JSON"),
        (b"[]", {}, 400, "JSON object"),
        (b"{}", {}, 400, "model"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Host": "evil.example:80"}, 403, "not to 'evil.example'"),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', {}, 404, "sandbox"),
    ],
)
def test_what_is_no_request(
    port: int, body: bytes, headers: Mapping[str, str], status: int, message: str
) -> None:
    assert message in said(post(port, body, headers), status)


def test_other_addresses_answer_in_the_same_form(port: int) -> None:
    said(post(port, {}, path="/v1/embeddings"), 404)
    said(post(port, b"", method="GET"), 405)
    assert post(port, b"", method="GET", path="/health") == (200, {"status": "ok"})


def test_what_is_too_large_is_refused_before_it_is_decoded() -> None:
    (scene,) = pictures(1)
    bomb = Image.new("1", (20_000, 10_000))
    frames = {"save_all": True, "append_images": [scene.rotate(90)]}
    with serving(limits=Limits(body_bytes=100_000, pixels=64 * 64, pictures=1)) as (_, port):

        def ask(*shown: str, text: str = "is there a dog?") -> tuple[int, dict[str, Any]]:
            return post(port, {"model": NAME, "messages": shows(*shown, text=text)})

        assert ask(data_url(scene))[0] == 200
        assert "4096 are allowed" in said(ask(data_url(scene.resize((65, 64)))), 400)
        assert "too large" in said(ask(data_url(bomb)), 400)
        assert "animated" in said(ask(data_url(scene, "gif", **frames)), 400)
        assert "is no PNG" in said(ask(data_url(scene, "bmp")), 400)
        assert "1 are allowed" in said(ask(PLAIN, PLAIN), 400)
        assert "at most 100000 bytes" in said(ask(text="x" * 100_000), 413)


def test_a_key_lets_those_in_who_know_it() -> None:
    body = {"model": NAME, "messages": TEXT}
    with serving(key="secret", local=False) as (_, port):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert "API key" in said(post(port, body, headers), 401)
            assert said(post(port, b"", headers, method="GET", path="/v1/models"), 401)
        headers = {"Authorization": "Bearer secret", "Host": "anything.example"}
        assert post(port, body, headers)[0] == 200


ADDRESSES = [
    "127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "[::1]", "[fd00::1]",
    "[::ffff:127.0.0.1]", "[2002:7f00:1::]", "224.0.0.1", "localhost",
]  # fmt: skip


@pytest.mark.parametrize("host", ADDRESSES)
def test_no_picture_is_fetched_from_an_address_that_is_not_public(host: str) -> None:
    with pytest.raises(ApiError, match="isn't public"):
        urls.fetch(f"http://{host}:1/x.png", 1000)


class Web:
    """A web server of this machine, which the test calls public."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import Response

        status, headers, body = self.pages[scope["path"]]
        await Response(body, status, headers)(scope, receive, send)


def test_what_may_be_fetched_is_and_where_it_sends_on_to_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket
    import threading

    import uvicorn

    (scene,) = pictures(1)
    data = base64.b64decode(data_url(scene).partition(",")[2])
    web = Web()
    server = uvicorn.Server(uvicorn.Config(web, log_level="error", lifespan="off"))
    known = urls.public
    monkeypatch.setattr(
        urls,
        "public",
        lambda host, port: "127.0.0.1" if host == "cat.example" else known(host, port),
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        at = f"http://cat.example:{listening.getsockname()[1]}"
        web.pages = {
            "/cat.png": (200, {}, data),
            "/moved": (302, {"Location": "/cat.png"}, b""),
            "/inside": (302, {"Location": "http://169.254.169.254/latest"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/round": (302, {"Location": "/round"}, b""),
            "/none": (404, {}, b""),
        }
        try:
            assert urls.fetch(f"{at}/cat.png", len(data)) == data
            assert urls.fetch(f"{at}/moved", len(data)) == data
            for path, message in {
                "/inside": "isn't public",
                "/file": "must begin with http",
                "/round": "sends on more than",
                "/none": "status 404",
            }.items():
                with pytest.raises(ApiError, match=message):
                    urls.fetch(at + path, len(data))
            with pytest.raises(ApiError, match="more than"):
                urls.fetch(f"{at}/cat.png", len(data) - 1)
            with serving(limits=Limits(urls=True)) as (_, port):
                body = {"model": NAME, "messages": shows(f"{at}/cat.png")}
                inline = {"model": NAME, "messages": shows(data_url(scene))}
                answers = [post(port, one)[1]["choices"] for one in (body, inline)]
                assert answers[0] == answers[1]
                inside = {"model": NAME, "messages": shows(f"{at}/inside")}
                assert "isn't public" in said(post(port, inside), 400)
        finally:
            server.should_exit = True
            thread.join()
