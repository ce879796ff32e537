from __future__ import annotations

from command_line import call

from regaze.evals import sandbox
from regaze.interventions import names


def test_list_names_every_method_and_benchmark() -> None:
    result = call("list")
    assert result.exit_code == 0
    for name in (*names(), "pope", "chair", "arXiv 2305.10355", *sandbox.MODELS):
        assert name in result.stdout
