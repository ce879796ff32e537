"""TidalDecode: batches, beams, caches and masks; when it is the unmodified model; what can't be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, TOKENS, answer, answer_and_report, ask, logits
from methods import LAYERS
from tiny import as_deep, tiny
from transformers import StaticCache

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.interventions import PAI, TidalDecode, from_dict

SPEC = TidalDecode(budget=6, select=(0,))


def steps(model: Any, inputs: dict[str, Any], *specs: Any, **options: Any) -> torch.Tensor:
    """Logits of five greedily decoded tokens, "B 5 V"."""
    with attach(model.model, *specs, processor=model.processor), torch.no_grad():
        made = model.model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(made.logits, 1)


def test_as_many_columns_as_there_are_change_no_bit() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    length = inputs["input_ids"].shape[1]
    plain = steps(model, inputs)
    assert torch.equal(steps(model, inputs, TidalDecode(budget=length + 4, select=(0,))), plain)
    # The last step has a column more.
    nearly = steps(model, inputs, TidalDecode(budget=length + 3, select=(0,)))
    assert torch.equal(nearly[:, :4], plain[:, :4])
    sparse = steps(model, inputs, SPEC)
    assert torch.equal(sparse[:, 0], plain[:, 0])  # Prompts are read as always.
    assert not torch.equal(sparse[:, 1], plain[:, 1])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "paligemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_left_padded_batch_decodes_as_single_samples_do(family: str, attention: str) -> None:
    model = tiny(family, attn_implementation=attention)
    spec = TidalDecode(budget=6, select=(1,) if family == "gemma3" else (0,))
    rows = (SHORT, [0]), (LONG, [1])
    batch = steps(model, ask(model, *rows), spec)
    for sample, row in enumerate(rows):
        alone = steps(model, ask(model, row), spec)[0]
        torch.testing.assert_close(batch[sample], alone, rtol=0, atol=2e-4)


def test_beams_static_caches_and_text_alone_work() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    beams = answer(model, inputs, SPEC, num_beams=3)
    assert len(beams[0]) == TOKENS
    dynamic = steps(model, inputs, SPEC)
    cache = StaticCache(config=model.model.config.text_config, max_cache_len=80)
    static = steps(model, inputs, SPEC, past_key_values=cache)
    torch.testing.assert_close(static, dynamic, rtol=0, atol=1e-4)
    text = ask(model, (LONG, []))
    _, report = answer_and_report(model, text, SPEC)
    assert report.fired
    assert [one.layer for one in report.interventions[0].layers] == [1, 2]


def test_returned_maps_are_of_the_chosen_columns() -> None:
    model = tiny("qwen2_vl", attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, SPEC), torch.no_grad():
        cache = model.model(**inputs, use_cache=True).past_key_values
        maps = model.model(
            input_ids=torch.tensor([[5]]), past_key_values=cache, output_attentions=True
        ).attentions
    for layer, one in enumerate(maps):
        assert ((one > 0).sum(-1) <= (6 if layer else one.shape[-1])).all()
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]), rtol=0, atol=1e-5)


def test_selection_layers_are_at_the_papers_depth_and_see_all_columns() -> None:
    host = as_deep(find_host(tiny("llava").model), 32)
    resolved = TidalDecode().resolve(host)
    assert resolved.select == (2, 13) and resolved.layers == tuple(range(32))
    assert TidalDecode().resolve(as_deep(host, 40)).select == (2, 16)
    sliding = TidalDecode().resolve(find_host(tiny("gemma3").model))
    assert sliding.select == (1,) and sliding.layers == (1, 3)


def test_the_control_takes_the_most_recent_columns() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    control = SPEC.controls()["recent columns"]
    assert isinstance(control, TidalDecode) and control.controls() == {}
    assert not torch.equal(steps(model, inputs, control)[:, 1], steps(model, inputs, SPEC)[:, 1])


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llava", {"budget": 0}, "budget"),
        ("llava", {"budget": 1.5}, "budget"),
        ("llava", {"select": []}, "at least one"),
        ("llava", {"select": [3]}, "select"),
        ("gemma3", {"select": [0]}, "layer 0 attends within a window"),
        ("gemma3", {"select": [1], "layers": [2]}, "layer 2 attends within a window already"),
    ],
)
def test_what_cannot_be_says_why(family: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(tiny(family).model, from_dict({"name": "tidal", **fields}))


def test_other_edits_go_to_other_layers() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with pytest.raises(NotImplementedError, match="layer . is edited.*TidalDecode"):
        answer(model, inputs, SPEC, PAI(layers=LAYERS))
    assert torch.isfinite(logits(model, inputs, SPEC, PAI(layers=LAYERS))).all()
    both = answer(model, inputs, TidalDecode(budget=6, select=(1,)), PAI(alpha=2, layers=(0,)))
    assert len(both[0]) == TOKENS
