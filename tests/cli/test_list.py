from __future__ import annotations

import json

import pytest
from command_line import call

from regaze.cli import terminal
from regaze.evals import sandbox
from regaze.interventions import GIFT, get, names
from regaze.interventions.base import presets

ADDRESS = "github.com/TianyunYoung/Hallucination-Attribution"


def test_list_names_every_method_and_benchmark() -> None:
    result = call("list")
    assert result.exit_code == 0
    for name in (*names(), "pope", "chair", "arXiv 2305.10355", *sandbox.MODELS):
        assert name in result.stdout


def test_list_names_presets_and_json_says_what_they_set_and_where_from() -> None:
    assert "llava-1.5-7b-chair" in call("list").stdout
    said = json.loads(call("list", "--json").stdout)
    assert sorted(said["methods"]) == names() and "pope" in said["benchmarks"]
    found = said["methods"]["gift"]["presets"]["llava-1.5-7b"]
    assert found["source"] == GIFT.presets["llava-1.5-7b"].source
    assert found["fields"]["alpha"] == 5.0 and found["fields"]["layers"] == [*range(12, 23)]
    assert said["methods"]["var"]["paper"] == "arXiv 2503.03321"


def test_presets_are_known_without_an_import() -> None:
    for name in names():
        assert presets(name) == tuple(get(name).presets), name


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_breaks_no_word(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 300)
    known = {word.rstrip(":") for word in call("list").stdout.split()} | {"│"}
    monkeypatch.setattr(terminal.out, "_width", width)
    shown = call("list").stdout
    assert "…" not in shown and max(map(len, shown.splitlines()[:-2])) <= width
    found = {word.rstrip(":") for word in shown.split() if word[0] not in "┏┡└"}
    # The one address is longer than 40 columns.
    assert {word for word in found - known if word not in ADDRESS} == set()
