"""Output in the terminal: names as they are, one line for an error, one true line for Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import call, evaluate, one_line

from regaze.cli.terminal import in_one_line, plain
from regaze.evals import study


def test_control_characters_are_shown_by_their_numbers() -> None:
    assert plain("a\x1b[31mb\x07\x9bc\nd") == "a\\x1b[31mb\\x07\\x9bc\nd"


@pytest.mark.parametrize("name", ["pope[vhr]", "[/]", "[red]x", "a\x1b[31mb"])
def test_a_folder_is_named_as_it_is(name: str, model: str, tmp_path: Path) -> None:
    out = tmp_path / name
    result = evaluate(model, out, images=2)
    assert result.exit_code == 0, result.stderr
    assert f"Report: {plain(str(out))}" in result.stdout.replace("\n", "")
    assert "\x1b" not in result.output


def test_a_mistyped_name_does_not_colour_the_terminal() -> None:
    for args in (
        ("ev\x1b[31mal",),
        ("eval", "po\x1b[31mpe"),
        ("eval", "pope", "--w\x1b[3mth", "x"),
    ):
        result = call(*args)
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert "\\x1b" in result.stderr


def test_the_systems_errors_about_files_name_the_nearest_and_no_number(tmp_path: Path) -> None:
    (tmp_path / "answers.json").touch()

    def about(path: Path) -> str:
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        return in_one_line(caught.value)

    missing = tmp_path / "answer.json"
    assert about(missing) == f"there is no {missing}; did you mean {tmp_path / 'answers.json'}?"
    assert about(tmp_path / "q") == f"there is no {tmp_path / 'q'}"
    nowhere = tmp_path / "no" / "q"
    assert about(nowhere) == f"there is no {nowhere}, nor the folder that it should be in"
    assert about(tmp_path) == f"cannot use {tmp_path}: Is a directory"
    assert in_one_line(OSError("said by regaze")) == "said by regaze"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert in_one_line(full) == "cannot read or write: No space left on device"


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(""), "ValueError"),
        (AssertionError("no CUDA"), "AssertionError: no CUDA (--debug shows where)"),
        (KeyError("id"), "KeyError: 'id' (--debug shows where)"),
        (RecursionError(), "RecursionError (--debug shows where)"),
    ],
)
def test_any_error_is_one_line(error: Exception, line: str) -> None:
    assert in_one_line(error) == line


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_running_out_of_memory_is_told_with_what_helps(error: Exception) -> None:
    assert in_one_line(error).startswith("out of memory: give a smaller --batch-size")


def test_an_error_of_any_kind_ends_a_command_by_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise LookupError("[red]odd")

    monkeypatch.setattr(study, "study", fail)
    result = evaluate(model, tmp_path)
    assert result.exit_code == 2
    assert one_line(result).endswith("error: LookupError: [red]odd (--debug shows where)")


def test_what_an_encoding_lacks_is_printed_by_its_number(tmp_path: Path) -> None:
    code = (
        "from regaze.cli.terminal import allow_any_encoding, say\n"
        "allow_any_encoding(); say('better \\u25b2'); print('\\u25bc')"
    )
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [b"better", b"\\u25b2", b"\\u25bc"]


def test_an_interrupt_while_commands_load_is_one_line() -> None:
    code = (
        "import sys, regaze.cli\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'regaze.cli.commands': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "regaze.cli.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "error: stopped\n")


def test_an_interrupt_in_the_first_seconds_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "regaze", "demo", "--out", str(tmp_path / "demo")]
    for seconds in (2.5, 5, 10):  # Python itself has started, and torch hasn't loaded.
        run = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs are started with interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(seconds)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
        if run.returncode != -signal.SIGINT:  # On a busy machine Python may still be starting.
            break
    assert run.returncode == 130
    assert said.splitlines()[-1].startswith("error: stopped")
    assert "Traceback" not in said


def test_an_interrupted_run_says_where_it_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "study", interrupt)
    result = evaluate(model, tmp_path / "run")
    assert result.exit_code == 130
    assert f"kept in {tmp_path / 'run'}: the same command carries on" in one_line(result)
