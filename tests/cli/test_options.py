from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer
from rich.text import Text
from typer.testing import CliRunner

import regaze
from regaze.cli.commands import app
from regaze.cli.options import spread


@dataclass(frozen=True)
class Group:
    word: Annotated[str, typer.Option("--say")] = "nothing"
    often: int = 1


def test_a_group_of_options_is_spread_over_a_command() -> None:
    heard: list[tuple[Group, bool]] = []

    @spread
    def command(group: Group, loud: bool = False) -> None:
        heard.append((group, loud))

    alone = typer.Typer()
    alone.command()(command)
    result = CliRunner().invoke(alone, ["--say", "this", "--loud"])
    assert result.exit_code == 0, result.output
    assert heard == [(Group("this", 1), True)]


def test_help_shows_the_options_of_a_group_under_its_panel() -> None:
    @dataclass(frozen=True)
    class Shown(Group):
        PANEL: ClassVar[str] = "What is said"

    found = {}
    for group in (Shown, Group):

        def command(group: object) -> None: ...

        command.__annotations__["group"] = group
        alone = typer.Typer()
        alone.command()(spread(command))
        [said] = [p for p in typer.main.get_command(alone).params if p.name == "word"]
        found[group] = getattr(said, "rich_help_panel", None)
    assert found == {Shown: "What is said", Group: None}


def commands(one: Any) -> list[Any]:
    inner = getattr(one, "commands", None)
    return [one] if inner is None else [c for each in inner.values() for c in commands(each)]


def test_brackets_in_help_are_text_not_markup() -> None:
    for one in commands(typer.main.get_command(app)):
        for told in (one.help or "", *(getattr(option, "help", "") or "" for option in one.params)):
            shown = Text.from_markup(told).plain
            assert shown == told.replace("\\[", "["), one.name


def test_the_version_is_an_option() -> None:
    for option in ("--version", "-V"):
        assert CliRunner().invoke(app, [option]).stdout == f"regaze {regaze.__version__}\n"


def test_every_command_has_a_place_in_the_help() -> None:
    for name, one in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert isinstance(getattr(one, "rich_help_panel", None), str), name


def test_every_option_has_a_help_text_that_is_a_sentence() -> None:
    for one in commands(typer.main.get_command(app)):
        for option in one.params:
            if option.name not in ("help", "ctx"):
                told = getattr(option, "help", None) or ""
                assert told.endswith((".", "?")), f"{one.name} {option.name}: {told!r}"
                assert not told.startswith(("Of ", "Or ", "By ")), f"{one.name} {option.name}"
