from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from regaze.evals.asking.every import WORKING
from regaze.evals.tuning.spaces import (
    SPACES,
    Bands,
    Domain,
    OneOf,
    Range,
    layers_in,
    space_of,
)
from regaze.interventions import VHR, Intervention, get, names, parse
from regaze.interventions.lvlm.tool import Tool


def within(value: Any, domain: Domain) -> bool:
    if isinstance(domain, Range):
        return bool(domain.low <= value <= domain.high)
    return isinstance(domain, Bands) or value in domain.values


def test_every_method_for_vision_language_models_can_be_tuned_but_those_for_speed() -> None:
    methods = [n for n in names(Intervention.acts_on) if not issubclass(get(n), Tool)]
    assert sorted(SPACES) == [name for name in methods if name not in ("anchor", "tidal")]


@pytest.mark.parametrize("name", SPACES)
def test_a_space_names_fields_and_encloses_what_was_published(name: str) -> None:
    cls = get(name)
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    published = [fields, *({**fields, **preset.fields} for preset in cls.presets.values())]
    for field, domain in SPACES[name].items():
        assert field in fields
        assert (field == "layers") == isinstance(domain, Bands)
        for setting in published:
            value = setting[field]
            # Layers by number are for models of one depth.
            if value is not None and not isinstance(value, list | tuple):
                assert within(value, domain), (field, setting)
        ends = domain.values if isinstance(domain, OneOf) else ()
        if isinstance(domain, Range):
            ends = (domain.low, domain.high)
        for value in ends:
            # Each is in the method's own domain, which its check knows.
            cls(**{**WORKING.get(name, {}), field: value})


def test_what_is_set_is_not_searched() -> None:
    assert set(space_of(parse("vhr:alpha=3"))) == {"layers"}
    assert set(space_of(parse("highlight:spans=[<image>]"))) == {"weight", "scale"}
    with pytest.raises(ValueError, match=r"vhr:alpha=3,layers=\[1\] leaves nothing to search"):
        space_of(parse("vhr:alpha=3,layers=[1]"))
    with pytest.raises(ValueError, match="nothing is known to search in tidal; tunable are adapt"):
        space_of(parse("tidal"))


def test_a_method_of_ones_own_brings_its_domains() -> None:
    @dataclass(frozen=True)
    class Own(VHR):
        name: ClassVar[str] = "own"
        domains: ClassVar[dict[str, Domain]] = {"alpha": Range(1, 2)}

    assert space_of(Own()) == {"alpha": Range(1, 2)}


def test_bands_are_shares_of_the_depth() -> None:
    assert layers_in("usual", 8) is None
    assert layers_in("middle half", 8) == (2, 3, 4, 5)
    assert layers_in("last half", 3) == (2,)
    assert layers_in("all", 2) == (0, 1)
