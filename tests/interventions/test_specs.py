"""A spec is its value: it survives JSON, and what it can't be raises with a hint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matrix import pairs, usable
from methods import METHODS, Method
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import (
    PAG,
    PAI,
    VAF,
    VAR,
    VHR,
    Intervention,
    SoftPAG,
    from_dict,
    get,
    names,
    parse,
    register,
)

SPECS = [
    *(spec for method in METHODS.values() if not method.scenes for spec in method.specs),
    *(get(name)() for name in names()),  # type: ignore[abstract]
    VHR(heads="random", unbiased=False),
    PAI(alpha=-1, layers=(0,)),
    PAG(layers=("mid", "blocks.13", 2)),
]
ADHH_34B = (
    (45, 34), (43, 4), (43, 48), (44, 29), (35, 47), (40, 27), (54, 34), (37, 48), (43, 2),
    (41, 34),
)  # fmt: skip
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.label)


def through_json(spec: Intervention) -> Intervention:
    return from_dict(json.loads(json.dumps(spec.to_dict())))


@each_spec
def test_a_spec_survives_json(spec: Intervention) -> None:
    again = through_json(spec)
    assert again == spec
    assert type(again) is type(spec)
    assert hash(again) == hash(spec)


@each_spec
def test_a_label_can_be_parsed_again(spec: Intervention) -> None:
    assert parse(spec.label) == spec


@pairs(families=("llava", "gemma3"))
def test_a_resolved_spec_survives_json_and_resolves_to_itself(family: str, method: Method) -> None:
    model = tiny(family)
    with attach(
        model.model, method.acts, *([] if method.name == "var" else [usable(method.name)])
    ) as run:
        specs = run.specs
    assert all(value is not None for spec in specs for value in vars(spec).values())
    again = [through_json(spec) for spec in specs]  # type: ignore[arg-type]
    assert tuple(again) == specs
    with attach(model.model, *again) as run:
        assert run.specs == tuple(again)


def test_lists_ranges_and_array_numbers_are_taken_as_what_they_hold() -> None:
    want = PAI(alpha=0.5, layers=(1, 2))
    for layers in (
        [1, 2],
        range(1, 3),
        np.arange(1, 3),
        torch.tensor([1, 2]),
        list(np.arange(1, 3)),
    ):
        assert PAI(alpha=0.5, layers=layers) == want  # type: ignore[arg-type]
        assert through_json(PAI(alpha=0.5, layers=layers)) == want  # type: ignore[arg-type]
    for number in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5)):
        assert PAI(alpha=number, layers=(1, 2)) == want  # type: ignore[arg-type]


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAI().alpha = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pai", PAI()),
        (" pai ", PAI()),
        ("pai:", PAI()),
        ("vhr:alpha=3", VHR(alpha=3)),
        ("vaf:enhance=1.3,suppress=0.9", VAF(enhance=1.3, suppress=0.9)),
        ("var:layers=[1,2,3],rho=0.8", VAR(rho=0.8, layers=(1, 2, 3))),
        ("var: rho = 0.8 , sense = code", VAR(rho=0.8, sense="code")),
        ('var:sense="code"', VAR(sense="code")),
        ("var:tau=null,sink_dims=[5]", VAR(sink_dims=(5,))),
        ("vhr:outlier_filter=false,unbiased=False", VHR(outlier_filter=False, unbiased=False)),
        ("pai:alpha=-2e-1", PAI(alpha=-0.2)),
        ("pai@llava-1.5-7b", PAI(gamma=1.1)),
        (" pai @ llava-1.5-7b : layers=[3],alpha=0.3", PAI(alpha=0.3, layers=(3,), gamma=1.1)),
    ],
)
def test_command_line_forms_are_read(text: str, spec: Intervention) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("vra", "did you mean .*var"),
        ("PAI", r"did you mean pai\?"),
        ("zzzzz", "known: .*pag, pai, .*seg, .*softpag"),
        ("", "known: .*pag, pai"),
        ("vhr:alhpa=2", "did you mean alpha"),
        ("var:rhoo=1", "did you mean rho"),
        ("pai:zzz=1", "known: alpha, gamma, layers"),
        ("pai:alpha", "expected field=value"),
        ("pai:=2", "unknown field"),
        ("pai:alpha=1,alpha=2", "twice"),
        ("pai:alpha=1" + 400 * "0", "alpha must be a finite number"),
        ("pai:name=vhr", "unknown field of pai 'name'"),
        ("vhr:heads=tpo", "did you mean top"),
        ("vhr:null_image=drp", "did you mean drop"),
        ("var:sense=papper", "did you mean paper"),
        ("pai@llava-1.5", "unknown preset of pai .* did you mean llava-1.5-7b"),
        ("pai@", "unknown preset of pai ''; known: llava-1.5-7b"),
        ("scalingvis@llava-1.5-7b", "scalingvis has no presets"),
        ("pai@llava-1.5-7b:gama=1", "did you mean gamma"),
        ("pai@llava-1.5-7b:name=vhr", "unknown field of pai 'name'"),
    ],
)
def test_what_cannot_be_read_raises_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse(text)


@pytest.mark.parametrize(
    "spec",
    [{}, {"alpha": 1}, {"name": "nope"}, {"name": None}, {"name": 3}, {"name": "pai", "x": 1}],
)
def test_records_that_are_no_spec_raise(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="intervention|field"):
        from_dict(spec)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("pai", "alpha", [-1.01, 101, NAN, INF, -INF, "0.5", None, True, [1]]),
        ("vaf", "enhance", [-0.1, 101, NAN, INF, "1", None, True]),
        ("vaf", "suppress", [-0.1, 101, NAN, INF, "1", None, False]),
        ("vhr", "alpha", [-0.1, 101, NAN, INF, "2", None, True]),
        ("vhr", "outlier_filter", ["False", 0, 1, None, "no"]),
        ("vhr", "unbiased", ["False", 0, 1, None]),
        ("vhr", "heads", ["Top", "", None, 1, ["top"]]),
        ("vhr", "null_image", ["", None, True]),
        ("var", "rho", [-0.1, 1.1, NAN, INF, "0.5", None]),
        ("var", "p", [-0.1, 1.1, NAN, INF, "0.5", None]),
        ("var", "floor", [-0.1, 1.1, NAN, INF, "0.5", None]),
        ("var", "tau", [-0.1, 1.1, 20, NAN, INF, "0.3"]),
        ("var", "sense", ["", None, "Paper", 3]),
    ],
)
def test_values_out_of_their_domain_raise_and_name_the_field(
    name: str, field: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=field):
            get(name)(**{field: value})
        with pytest.raises(ValueError, match=field):
            from_dict({"name": name, field: value})


@pytest.mark.parametrize("name", ["pai", "vaf", "var", "vhr"])
@pytest.mark.parametrize(
    "layers", [(3,), (-1,), (0, 0), ("a",), "0", 1, 1.5, (1.0,), (True,), ((1,),), (None,), {}]
)
def test_layers_that_the_model_does_not_have_raise(name: str, layers: Any) -> None:
    fields = {"sink_dims": (3,)} if name == "var" else {}
    with pytest.raises(ValueError, match="layers"):
        attach(tiny("llava").model, from_dict({"name": name, "layers": layers, **fields}))


@pytest.mark.parametrize(
    "dims", [(64,), (-1,), (3, 3), ("a",), "3", 3, (1.5,), (True,), ((1,),), ()]
)
def test_sink_dimensions_that_the_model_does_not_have_raise(dims: Any) -> None:
    with pytest.raises(ValueError, match="sink"):
        attach(tiny("llava").model, from_dict({"name": "var", "sink_dims": dims}))


def test_contradicting_interventions_raise() -> None:
    drop, mask = VHR(layers=(1,)), VHR(layers=(2,), null_image="mask")
    with pytest.raises(ValueError, match="null_image"):
        attach(tiny("llava").model, drop, mask)
    with attach(tiny("llava").model, drop), pytest.raises(ValueError, match="null_image"):
        attach(tiny("llava").model, mask)


def test_published_settings_are_settings_and_say_whose_they_are() -> None:
    for name in names():
        cls = get(name)
        for preset, published in cls.presets.items():
            assert cls.preset(preset) == cls(**published.fields)
            assert cls.preset(preset) == parse(f"{name}@{preset}")
            assert published.source
            assert preset not in ("given", "wrong", "blank")  # What conditions may show.
    assert PAI.preset("llava-1.5-7b", alpha=0.5) == PAI(alpha=0.5, gamma=1.1)
    with pytest.raises(ValueError, match="alpha"):
        PAI.preset("llava-1.5-7b", alpha=1000)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("adhh@llava-1.6-34b", {"threshold": 0.4, "heads": (*ADHH_34B,)}),
        ("avar@qwen2.5-vl-7b", {"image": 0.15, "system": 0.4}),
        ("avisc@instructblip-pope", {"gamma": 0.5, "lam": 0.95, "alpha": 1.0, "beta": 0.1}),
        ("avisc@llava-1.5-7b", {"gamma": 0.5, "lam": 1.0, "alpha": 2.5, "beta": 0.1}),
        (
            "carve@code",
            {"sense": "v4", "layers": (20, 21, 22, 23, 24, 25), "top": 0.2, "lam": 1e-8},
        ),
        ("carve@paper", {"sense": "paper", "layers": (20, 21, 22, 23, 24, 25), "regions": 3}),
        ("devils@llava-1.5-7b", {"alpha": 0.5, "layers": tuple(range(5, 19))}),
        ("dola@llama-13b", {"candidates": (0, 2, 4, 6, 8, 10, 12, 14, 16, 18), "rho": 0.1}),
        ("dola@llama-65b-truthfulqa", {"candidates": (60, 62, 64, 66, 68, 70, 72, 74, 76, 78)}),
        ("gift@llava-1.5-13b", {"alpha": 5, "saliency": (10,), "layers": tuple(range(14, 21))}),
        ("gift@llava-1.5-7b", {"alpha": 5, "saliency": (11,), "layers": tuple(range(12, 23))}),
        ("gift@qwen2-vl-7b", {"alpha": 4, "saliency": (14,), "layers": tuple(range(5, 19))}),
        ("highlight@llava-1.5-13b-mme", {"weight": 2.0, "scale": 1.3, "space": "probability"}),
        ("ilvad@llava-1.5-7b-chair", {"alpha": 5, "beta": 0.3, "layers": tuple(range(5, 26))}),
        ("ilvad@llava-1.5-7b-pope", {"beta": 1, "layers": tuple(range(31)), "tokens": 10}),
        ("m3id@avisc", {"rate": 0.02, "beta": 0.1}),
        ("pai@llava-1.5-7b", {"alpha": 0.2, "gamma": 1.1, "plausibility": 0.1}),
        ("paint@llava-1.5-7b", {"alpha": 0.7, "beta": 0.4, "local": 0.25}),
        ("paint@llava-1.5-7b-code", {"alpha": 0.7, "beta": 0.3, "local": 0.25}),
        ("pasta@paper", {"alpha": 0.01, "mode": "exclude"}),
        ("spin@llava-1.5-7b-chair", {"keep": 0.95, "factor": 0.08}),
        ("spin@llava-1.5-7b-pope", {"keep": 0.8, "factor": 0.1}),
        ("spin@qwen-vl-chat", {"keep": 0.7, "factor": 0.08, "layers": tuple(range(20))}),
        ("vaf@llava-1.5-7b", {"enhance": 1.15, "suppress": 0.95, "layers": tuple(range(9, 15))}),
        ("var@llava-1.5-13b", {"sink_dims": (2100, 4743), "tau": 20 / 5120**0.5, "rho": 0.8}),
        ("var@llava-1.5-7b-code", {"sink_dims": (1415, 2533), "sense": "code", "keep": 0.6}),
        ("vcd@instructblip", {"step": 500, "alpha": 0.5, "beta": 0.1}),
        ("vcd@llava-1.5-7b-pope", {"step": 500, "alpha": 1.0, "beta": 0.2}),
        ("vhr@instructblip-7b", {"alpha": 2, "layers": tuple(range(14, 32))}),
        ("vhr@llava-1.5-7b", {"alpha": 2, "layers": (1, *range(18, 32))}),
        ("vicrop@llava-1.5-7b", {"layers": (14,), "base": 336}),
        ("vicrop@qwen2.5-vl-3b", {"layers": (22,), "base": 224}),
    ],
)
def test_published_settings_are_those_of_their_sources(text: str, fields: dict[str, Any]) -> None:
    spec = parse(text)
    assert {name: getattr(spec, name) for name in fields} == fields


def test_every_registered_method_has_a_summary_and_a_paper() -> None:
    for name in names():
        assert get(name).name == name
        assert get(name).summary
        assert get(name).paper.startswith(("arXiv ", "ICLR ", "none: "))


def test_text_that_is_none_and_values_of_the_wrong_type_are_refused() -> None:
    for given in (None, 5, ["vhr"], b"vhr"):
        with pytest.raises(ValueError, match="a spec is text such as"):
            parse(given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a spec is a mapping"):
            from_dict(given)  # type: ignore[arg-type]
    for layers in (5, "abc", {"a": 1}, float("nan")):
        with pytest.raises(ValueError, match="layers must be a list"):
            VHR(layers=layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unbiased must be true or false, got 2"):
        VHR(unbiased=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a_star: scaled must be true or false, got 'abc'"):
        parse("a_star:scaled=abc")
    for layers in ("{}", "5.5"):
        with pytest.raises(ValueError, match="pag: layers must be a list"):
            parse(f"pag:layers={layers}")


def test_fields_of_ones_own_method_are_of_their_type_though_nothing_checks_them() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(VHR):
        gain: float = 1.0
        count: int = 2
        loud: bool = False

    assert Own(gain=2, count=3, loud=True).label.endswith("gain=2,count=3,loud=true")
    for wrong in ({"gain": "three"}, {"count": None}, {"gain": True}, {"loud": 1}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be "):
            Own.from_fields(wrong)


@pytest.mark.parametrize("text", ["vhr,pai", "vhr=2", "vhr alpha=2"])
def test_a_form_that_no_condition_has_is_told_the_right_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean vhr\? \(fields follow a colon, as in"):
        parse(text)
    with pytest.raises(ValueError, match=r"did you mean [^(]*$"):
        parse("vrh")


def test_long_values_are_shown_by_their_beginning_and_deep_ones_refused() -> None:
    for text in ("9" * 401, "9" * 5000, "[" * 200):
        with pytest.raises(ValueError, match="alpha must be") as caught:
            parse(f"vhr:alpha={text}")
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="nested too deeply"):
        parse("vhr:layers=" + "[" * 3000 + "]" * 3000)


def test_a_value_of_several_lines_is_shown_on_one() -> None:
    module: Any = torch.nn.Sequential(torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"got Sequential\( \(0\): Flatten\(.*\) \)$"):
        PAI(alpha=module)


@pytest.mark.parametrize("given", [None, 3, "vhr", PAI(), Path("vhr"), int])
def test_only_an_intervention_can_be_registered(given: Any) -> None:
    before = names()
    with pytest.raises(TypeError, match="a subclass of Intervention, got"):
        register(given)
    assert names() == before


def test_an_intervention_without_a_name_is_refused() -> None:
    class Nameless(Intervention):
        pass

    with pytest.raises(TypeError, match="Nameless needs a name"):
        register(Nameless)


def test_a_number_is_no_flow_however_long_it_is() -> None:
    with pytest.raises(ValueError, match="flow_warp: .*too large"):
        parse(f"flow_warp:flow={'9' * 400}")


def test_a_mapping_can_be_written_as_messages_suggest_it() -> None:
    heads = {"L18": [11], "L0": [17, 3]}
    assert parse(f"softpag:heads={json.dumps(heads)}") == SoftPAG(heads=heads)
    assert parse('softpag:u=0.3,heads={"L18":{"11":0.5,"2":0.25}}') == SoftPAG(
        u=0.3, heads={"L18": {11: 0.5, 2: 0.25}}
    )
