"""play: what it says before anything is served."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from command_line import call, one_line

from regaze.evals.hosts import is_loopback


def test_help_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from regaze.cli.commands import app\n"
        "told = CliRunner().invoke(app, ['play', '--help'])\n"
        "assert told.exit_code == 0 and '--port' in told.output, told.output\n"
        "print([name for name in ('torch', 'gradio', 'fastapi') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regaze.cli.play.find_spec", lambda name: None)
    told = call("play")
    assert told.exit_code == 2 and "pip install 'regaze[play]'" in one_line(told)


def test_a_port_that_is_taken_is_one_line() -> None:
    pytest.importorskip("gradio", reason="gradio isn't installed: pip install regaze[play]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = call("play", "--port", str(port))
    assert told.exit_code == 2
    assert f"can't listen on 127.0.0.1, port {port}" in one_line(told)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--host", ""), "--host is empty"),
        (("--model", "sandbx"), "did you mean sandbox"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--device", "gpu"), "there is no device 'gpu'"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(args: tuple[str, ...], said: str) -> None:
    pytest.importorskip("gradio", reason="gradio isn't installed: pip install regaze[play]")
    told = call("play", "--port", "0", *args)
    assert told.exit_code == 2 and said in one_line(told)


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_which_hosts_only_this_machine_reaches(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside
