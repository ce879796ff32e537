from __future__ import annotations

import pytest
import torch
from tiny import tiny

from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.meter import Meter
from regaze.evals.runs.cost import Cost, peak_process_bytes
from regaze.evals.runs.sessions import code_version
from regaze.hooks import attach
from regaze.interventions import VHR


def test_costs_add_up_and_peaks_are_the_highest() -> None:
    one = Cost(items=2, seconds=1.5, forwards=3, peak_bytes=10, rss_bytes=5)
    two = Cost(items=1, seconds=0.5, forwards=1, peak_bytes=7, rss_bytes=9)
    both = Cost.total([one, two])
    assert both == Cost(items=3, seconds=2.0, forwards=4, peak_bytes=10, rss_bytes=9)
    assert Cost.total([]) == Cost()
    assert Cost.from_dict(both.to_dict()) == both


def test_rates_keep_prefill_and_decoding_apart() -> None:
    cost = Cost(items=4, seconds=2, prefill_s=0.5, decode_s=0.25, prompt_tokens=100, new_tokens=14)
    assert (cost.items_per_s, cost.prefill_tokens_per_s, cost.decode_tokens_per_s) == (2, 200, 40)
    assert Cost().items_per_s is None
    assert Cost(items=4, new_tokens=4, decode_s=0.0).decode_tokens_per_s is None


def test_passes_and_columns_of_the_text_tower_are_counted() -> None:
    model = tiny("llava")
    answerer = Answerer(model.model, model.processor, 3)
    asked = (["is there a dog?"], [model.picture(0)])
    counted = []
    for specs in ((), (VHR(layers=(0,)),)):
        with attach(model.model, *specs), answerer.meter.running() as meter:
            meter.start()
            answer = answerer(*asked)[0]
            counted.append((meter.forwards, meter.columns))
    # One pass for the prompt, one for each new token but the last.
    assert counted[0] == (3, answer.n_prompt_tokens + 2)
    # VHR packs the text behind the image behind the prompt, in the same pass.
    system = 3
    text = answer.n_prompt_tokens - answer.n_image_tokens - system
    assert counted[1] == (3, counted[0][1] + text)


def test_nothing_is_left_on_the_model() -> None:
    model = tiny("llava").model
    with Meter(model, model.get_decoder()).running():
        assert model._forward_hooks
    assert not model._forward_hooks
    assert not any(part._forward_pre_hooks for part in model.get_decoder().modules())


def test_time_before_and_after_the_first_token() -> None:
    meter = Meter(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    with meter.answering():
        pass
    assert meter.prefill_s == 0
    assert meter.decode_s >= 0


def test_the_process_has_a_peak() -> None:
    assert peak_process_bytes() == 0 or peak_process_bytes() > 10**7


def test_the_code_is_named_by_its_commit_where_there_is_one() -> None:
    code = code_version()
    if code is None:
        pytest.skip("not a checkout")
    assert len(code["commit"]) == 40
    assert isinstance(code["dirty"], bool)
