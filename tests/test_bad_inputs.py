"""A share of the bad inputs of `bad_inputs`, of most kinds: each gets one clear line."""

from __future__ import annotations

from bad_inputs.__main__ import all_cases
from bad_inputs.workspace import workspace

_EVERY = 131
"""Prime, so that the share holds something of every kind."""


def test_a_bad_input_gets_one_clear_line() -> None:
    every = list(all_cases())
    commands = [(case.kind, case.name) for case in every if not case.kind.startswith("api")]
    assert len(commands) == len(set(commands)) > 1000
    tried = every[7::_EVERY]
    with workspace():
        wrong = {f"{case.kind}: {case.name}": said for case in tried if (said := case.act())}
    assert wrong == {}
    assert len({case.kind for case in tried}) > 10
