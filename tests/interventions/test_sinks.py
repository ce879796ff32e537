"""Sink dimensions are found where they are, and not found where there are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from asking import SHORT, ask, logits
from census_lvlm import tiny_model
from tiny import Tiny, tiny
from transformers import pipeline

from regaze.hooks import attach
from regaze.interventions import VAR, SinkProfile, discover_sinks
from regaze.interventions.lvlm.sinks import sink_values

PLANTED = (5, 41)


def planted(family: str, everywhere: bool = False) -> Tiny:
    """A model with massive activations at the first token, whichever it is, and in the image.

    Or in one dimension of every token.
    """
    model = tiny(family, fresh=True)
    tower: Any = model.model.get_decoder()

    def add(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            hidden = hidden.clone()
            if everywhere:
                hidden[..., PLANTED[0]] += 400
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
            hidden[:, ::4, PLANTED[0]] += 400  # every fourth token, the first and image tokens too
            hidden[:, ::4, PLANTED[1]] -= 300
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    tower.layers[0].register_forward_hook(add, with_kwargs=True)
    return model


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "internvl", "paligemma"])
@pytest.mark.parametrize("told", [True, False])
def test_planted_dimensions_are_found(family: str, told: bool) -> None:
    model = planted(family)
    profile = discover_sinks(model.model, model.processor if told else None)
    assert profile.sink_dims == PLANTED  # strongest first
    assert profile.source == "found"
    assert profile.strength[0] > profile.strength[1] > 1
    assert profile.tau == pytest.approx(20 / 4096**0.5)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_var_finds_them_itself_and_acts(family: str) -> None:
    model = planted(family)
    inputs = ask(model, (SHORT, [0]))
    plain = logits(model, inputs)
    with attach(model.model, VAR(rho=0, floor=0)) as run, torch.no_grad():
        edited = model.model(**inputs).logits
    (spec,) = run.specs
    assert isinstance(spec, VAR)
    assert spec.sink_dims == PLANTED
    assert run.report().fired
    assert not torch.equal(edited, plain)


def test_a_model_without_sinks_has_an_empty_profile_and_var_raises() -> None:
    model = tiny("llava")
    assert discover_sinks(model.model, model.processor).sink_dims == ()
    with pytest.raises(ValueError, match="sink_dims=, or a lower tau="):
        attach(model.model, VAR())


@pytest.mark.parametrize("target", [None, "llava", {}, tiny("llava").processor])
def test_sinks_are_looked_for_in_a_model(target: Any) -> None:
    with pytest.raises(TypeError, match="model"):
        discover_sinks(target)


def test_a_lower_threshold_finds_more() -> None:
    model = tiny("llava")
    counts = [len(discover_sinks(model.model, tau=tau).sink_dims) for tau in (0.3, 0.2, 0.1)]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    none = discover_sinks(model.model, tau=0.0)
    assert none.sink_dims == ()
    assert len(none.everywhere) == 64


def test_a_dimension_that_is_high_on_every_token_marks_none() -> None:
    model = planted("llava", everywhere=True)
    profile = discover_sinks(model.model, model.processor)
    assert profile.sink_dims == ()
    ((dim, first, others),) = profile.everywhere
    assert dim == PLANTED[0]
    assert 20 / 8 < others <= first
    told = (
        rf"dimension 5 stands out on its first token \(phi {first:.1f}\), but on the median token "
        rf"too \({others:.1f}\)"
    )
    with pytest.raises(ValueError, match=told):
        attach(model.model, VAR())


def test_var_says_that_all_image_tokens_are_sinks() -> None:
    model = planted("llava", everywhere=True)
    inputs = ask(model, (SHORT, [0]))
    plain = logits(model, inputs)
    with attach(model.model, VAR(sink_dims=PLANTED, rho=0, floor=0)) as run, torch.no_grad():
        torch.testing.assert_close(model.model(**inputs).logits, plain)
        with pytest.warns(UserWarning, match="VAR has nothing to move: all image tokens are sinks"):
            model.model(**inputs)
    (told,) = run.report().interventions
    assert not told.fired
    assert told.note == (
        "all image tokens are sinks in 1 of 1 layers (phi 8.0 to 8.0, threshold 2.5)"
    )


def test_var_says_that_no_image_token_is_a_sink() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    said = pytest.warns(UserWarning, match="no visual sinks: no image token reaches")
    with attach(model.model, VAR(sink_dims=(5,), tau=0.99)) as run, said:
        model.model.generate(**inputs, max_new_tokens=2)
    (told,) = run.report().interventions
    assert not told.fired
    assert told.note.endswith("threshold 7.9)")


def test_var_says_nothing_where_it_acts(recwarn: pytest.WarningsRecorder) -> None:
    model = planted("llava")
    with attach(model.model, VAR(sink_dims=PLANTED, rho=0, floor=0)) as run:
        model.model.generate(**ask(model, (SHORT, [0])), max_new_tokens=2)
    (told,) = run.report().interventions
    assert told.fired
    assert told.note == ""
    assert not [one for one in recwarn if "VAR" in str(one.message)]


def test_discovery_leaves_no_trace_and_gives_the_same_again() -> None:
    model = planted("llava")
    inputs = ask(model, (SHORT, [0]))
    plain = logits(model, inputs)
    state = torch.get_rng_state()
    tower: Any = model.model.get_decoder()
    hooks = [len(layer._forward_pre_hooks) for layer in tower.layers]
    first = discover_sinks(model.model)
    assert discover_sinks(model.model) == first
    assert [len(layer._forward_pre_hooks) for layer in tower.layers] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model, inputs), plain)


def test_discovery_in_the_middle_of_a_prompt_does_not_disturb_it() -> None:
    model = planted("llava")
    inputs = ask(model, (SHORT, [0]))
    results = []
    for disturbed in (False, True):
        with attach(model.model, VAR(rho=0, floor=0, sink_dims=PLANTED)), torch.no_grad():
            out = model.model(**inputs, use_cache=True)
            if disturbed:
                discover_sinks(model.model, tau=0.31)
            token = torch.tensor([[7]])
            step = model.model(input_ids=token, past_key_values=out.past_key_values)
        results.append(step.logits)
    assert torch.equal(*results)


def test_a_pipeline_can_be_searched() -> None:
    model = planted("qwen2_vl")
    pipe = pipeline("image-text-to-text", model=model.model, processor=model.processor)
    assert discover_sinks(pipe).sink_dims == PLANTED


def test_a_profile_is_a_record() -> None:
    profile = SinkProfile((5, 41), 0.3, (7.5, 5.0))
    assert json.loads(json.dumps(profile.to_dict())) == {
        "sink_dims": [5, 41],
        "tau": 0.3,
        "strength": [7.5, 5.0],
        "source": "found",
        "elsewhere": [],
        "everywhere": [],
    }


def test_streams_side_by_side_have_no_sinks() -> None:
    with pytest.raises(ValueError, match="several streams"):
        sink_values(torch.zeros(2, 1, 3, 8), [0])
    with pytest.raises(ValueError, match="several streams"):
        discover_sinks(tiny_model("gemma3n").model)


@pytest.mark.parametrize("tau", [float("nan"), -0.1, 1.1, 1e9, "x"])
def test_a_threshold_that_no_dimension_can_pass_is_refused(tau: Any) -> None:
    with pytest.raises(ValueError, match="sinks: tau must be a finite number in"):
        discover_sinks(tiny("llava").model, tau=tau)
