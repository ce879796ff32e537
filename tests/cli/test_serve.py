"""The command serve: what it refuses before it loads a model, and that it listens and stops."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from regaze.cli.commands import app

pytest.importorskip("starlette", reason="serving needs the extra serve")
pytest.importorskip("uvicorn", reason="serving needs the extra serve")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--with", "vrh"), "did you mean vhr"),
        (("--with", "pag"), "acts on diffusers pipelines"),
        (("--with", "vicrop"), "changes what is asked"),
        (("--with", "vhr:layers=[99]"), "layers holds 99"),
        (("--model", "sandbx"), "did you mean sandbox"),
        (("--host", "203.0.113.1"), "can't listen on '203.0.113.1'"),
        (("--api-key", ""), "--api-key is empty"),
        (("--host", ""), "--host is empty"),
        (("--name", " "), "--name is empty"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(args: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *args])
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--port", port])
    assert result.exit_code == 2 and "give another --port" in result.stderr


def test_it_says_where_it_listens_and_stops_when_told_to() -> None:
    command = [sys.executable, "-m", "regaze", "serve", "--port", "0", "--with", "vhr"]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        # A background job of a shell script inherits that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("Serving sandbox with vhr: http://127.0.0.1:")
    port = int(line.split(":")[3].partition("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    server.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert server.wait(60) == 0
    assert time.monotonic() - begun < 30
    server.stdout.close()
