from __future__ import annotations

import json

from command_line import on_tiny


def test_sites_name_the_layers_as_head_lists_do() -> None:
    result = on_tiny("sites", "--json")
    found = json.loads(result.stdout)
    assert [site["layer"] for site in found if site["kind"] == "self"] == [0, 1, 2, 3]
    assert {site["heads"] for site in found} == {2}
    assert "L3" in on_tiny("sites").stdout
