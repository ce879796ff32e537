"""Every method either works on a family or says why not; the table of models is made of this."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import SHORT, ask, logits
from census_lvlm import EVERY
from matrix import (
    ALL,
    CANNOT,
    CONTRASTS,
    EDITS,
    LIMITS,
    NEEDS_PROCESSOR,
    SHOWN,
    pairs,
    support_table,
    usable,
)
from methods import Method
from tiny import FAMILIES, tiny

from regaze.hooks import attach
from regaze.hooks.families import FAMILIES as KNOWN
from regaze.interventions import Intervention, get, names

NAMES = [name for name in names(Intervention.acts_on) if get(name).stage == "attention"]


def test_every_method_and_every_field_of_the_matrix_is_known() -> None:
    every = [*EDITS.values(), *CONTRASTS.values()]
    assert {method.name for method in every} == set(NAMES)
    assert all(method.acts.literal() is not None for method in every)
    assert [ALL[name].name for name in SHOWN] == sorted(NAMES)
    assert set(FAMILIES) <= set(KNOWN)
    assert {name for _, name in LIMITS} <= set(EDITS)


@pairs()
def test_what_the_table_says_works_acts(family: str, method: Method) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, method.acts, processor=model.processor) as run:
        edited = model.model(**inputs).logits
    report = run.report()
    assert report.fired
    resolved: Any = run.specs[0]
    assert [layer.layer for layer in report.interventions[0].layers] == list(resolved.layers)
    assert (edited - logits(model, inputs)).abs().max() > 0.02


@pytest.mark.parametrize(("family", "name"), CANNOT)
def test_what_the_table_says_cannot_work_raises_and_says_why(family: str, name: str) -> None:
    with pytest.raises(ValueError, match=CANNOT[family, name]) as error:
        attach(tiny(family).model, usable(name))
    assert family in str(error.value)
    if "these methods work on it" in str(error.value):
        for other in NAMES:
            if (family, other) not in CANNOT:
                assert other in str(error.value)


@pytest.mark.parametrize(("family", "method"), LIMITS)
def test_limits_raise_and_say_what_to_do(family: str, method: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    with pytest.raises((NotImplementedError, ValueError), match=LIMITS[family, method]):
        logits(model, inputs, EDITS[method].acts)
    if method == "vhr":
        assert logits(model, inputs, EDITS["vhr-mask"].acts).isfinite().all()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NEEDS_PROCESSOR])
def test_other_families_need_no_processor(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    for method in EDITS.values():
        if (family, method.name) in CANNOT or (family, method.id) in LIMITS:
            continue
        with attach(model.model, method.acts), torch.no_grad():
            alone = model.model(**inputs).logits
        assert (alone == logits(model, inputs, method.acts)).all()


def test_the_table_names_every_family_and_every_method() -> None:
    table, *refused = support_table().split("\nRefused when attaching")
    lines = table.splitlines()
    named = lines[0].removeprefix("| models | ").removesuffix(" |").replace(" | ", ", ").split(", ")
    assert sorted(named) == sorted(name.upper() for name in NAMES)
    best = next(line for line in lines if " LLaVA," in line)
    assert set(best.split(" | ")[1:]) <= {"yes", "yes |"}
    for family in EVERY:
        where = "".join(refused) if KNOWN[family].refuse else table
        assert KNOWN[family].title in where
