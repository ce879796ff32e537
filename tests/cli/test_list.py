from __future__ import annotations

import json

from command_line import call

from regaze.evals import sandbox
from regaze.interventions import GIFT, get, names
from regaze.interventions.base import presets


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
