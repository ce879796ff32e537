from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

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
