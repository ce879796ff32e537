"""The report counts what happened and measures it truly."""

from __future__ import annotations

import json

import pytest
import torch
from asking import LONG, SHORT, answer_and_report, ask, logits
from matrix import EDITS, MAIN
from methods import LAYERS
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import PAI, VAF, VAR, VHR


@pytest.mark.parametrize("name", [name for name in MAIN if EDITS[name].decides != "prediction"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_every_forward_pass_counts_once_per_layer(family: str, name: str) -> None:
    model = tiny(family)
    _, report = answer_and_report(model, ask(model, (SHORT, [0])), EDITS[name].acts, tokens=4)
    one = report.interventions[0]
    assert one.prompts == 1
    assert [(layer.layer, layer.calls) for layer in one.layers] == [
        (i, 4) for i in EDITS[name].layers
    ]
    assert one.fired
    assert report.fired


def test_prompts_are_counted_per_sample_and_over_passes() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]), (SHORT, []))
    with attach(model.model, PAI(0.5)) as run:
        for _ in range(2):
            model.model.generate(**inputs, max_new_tokens=2)
    assert run.report().interventions[0].prompts == 6


def test_prompts_that_share_a_beginning_count_each() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    ids = inputs["input_ids"]
    with attach(model.model, PAI(0.5)) as run, torch.no_grad():
        with run.partial_prompt():
            first = {**inputs, "input_ids": ids[:, :-2]}
            first["attention_mask"] = inputs["attention_mask"][:, :-2]
            cache = model.model(**first, use_cache=True).past_key_values
        cache.batch_repeat_interleave(3)
        for new in (ids[:, -2:], ids[:, -1:]):  # the ends of the prompts, and a decode step
            model.model(input_ids=new.repeat(3, 1), past_key_values=cache)
    assert run.report().interventions[0].prompts == 3


@pytest.mark.parametrize("rows", [[(SHORT, [0])], [(SHORT, [0]), (LONG, [1])]])
def test_the_effect_is_how_far_weights_moved(rows: list[tuple[str, list[int]]]) -> None:
    model = tiny("llava", attn_implementation="eager")
    inputs = ask(model, *rows)
    with torch.no_grad():
        plain = model.model(**inputs, output_attentions=True).attentions[0][:, :, -1]
        with attach(model.model, PAI(0.5, layers=(0,))) as run:
            edited = model.model(**inputs, output_attentions=True).attentions[0][:, :, -1]
    moved = 0.5 * (edited - plain).abs().sum(-1)
    (layer,) = run.report().interventions[0].layers
    assert layer.effect == pytest.approx(float(moved.mean()), abs=1e-5)
    assert layer.heads == 1


def test_rows_of_samples_without_image_do_not_dilute_the_effect() -> None:
    model = tiny("llava")
    effects = []
    for rows in ([(LONG, [1])], [(LONG, [1]), (SHORT, [])]):
        with attach(model.model, VAF(1.5, layers=(0,))) as run, torch.no_grad():
            model.model(**ask(model, *rows))
        effects.append(run.report().interventions[0].effect)
    assert effects[0] == pytest.approx(effects[1], abs=1e-5)


def test_head_scaling_reports_the_share_of_heads_and_the_distance_from_one() -> None:
    model = tiny("llava")
    with attach(model.model, VHR(alpha=3, layers=(1,))) as run, torch.no_grad():
        model.model(**ask(model, (SHORT, [0])))
    (layer,) = run.report().interventions[0].layers
    assert (layer.heads, layer.effect) == (0.5, 1.0)  # half the heads, by 2


def test_what_never_fired_is_not_called_fired() -> None:
    model = tiny("llava")
    never = VAR(sink_dims=(0,), tau=1.0, layers=LAYERS)  # phi is below its bound
    with attach(model.model, never, PAI(0.5)) as run:
        model.model.generate(**ask(model, (SHORT, [0])), max_new_tokens=3)
    report = run.report()
    assert [one.fired for one in report.interventions] == [False, True]
    assert not report.fired
    assert "NEVER FIRED" in str(report)
    assert not report.to_dict()["fired"]


def test_before_any_pass_nothing_has_fired() -> None:
    with attach(tiny("llava").model, PAI(0.5)) as run:
        assert not run.report().fired
        assert run.report().interventions[0].prompts == 0


def test_what_is_off_by_its_settings_raises_no_alarm() -> None:
    model = tiny("llava")
    with attach(model.model, PAI(0), VAF(1.5)) as run, torch.no_grad():
        model.model(**ask(model, (SHORT, [0])))
    assert run.report().fired
    assert "off by its settings" in str(run.report())


def test_a_report_is_a_record_that_lasts() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, *(EDITS[name].acts for name in MAIN)) as run, torch.no_grad():
        model.model(**inputs)
        early = run.report()
        model.model(**inputs)
    late = run.report()
    assert early.interventions[0].prompts == 1
    assert late.interventions[0].prompts == 2
    record = json.loads(json.dumps(late.to_dict()))
    assert record["fired"]
    assert record["interventions"][0]["layers"][0]["calls"] == 2
    assert [one["label"] for one in record["interventions"]] == [
        spec.label
        for spec in run.specs  # type: ignore[attr-defined]
    ]
    logits(model, inputs)
    assert run.report() == late


def test_effects_of_several_prompts_are_averaged() -> None:
    model = tiny("llava")
    prompts = [ask(model, (SHORT, [0])), ask(model, (LONG, [1]))]
    spec = PAI(0.5, layers=(0,))
    alone = []
    for inputs in prompts:
        with attach(model.model, spec) as run, torch.no_grad():
            model.model(**inputs)
        alone.append(run.report().interventions[0].effect)
    with attach(model.model, spec) as run, torch.no_grad():
        for inputs in prompts:
            model.model(**inputs)
    assert run.report().interventions[0].effect == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_discovering_sinks_is_none_of_another_attachments_business() -> None:
    model = tiny("llava", fresh=True)
    with attach(model.model, VHR()) as first, attach(model.model, VAR(tau=0.2)):
        assert first.report().interventions[0].prompts == 0
