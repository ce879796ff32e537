"""Refusals of methods, each one clear line: settings, models, prompts they can't act on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from asking import SHORT, ask
from census_lvlm import bare_host
from matrix import ALL
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import CARVE, ICD, ILVAD, PASTA, VCD, ViCrop, parse


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("adhh:heads=[[1,-2]]", "it holds (1, -2)"),
        ("adhh:heads=@", "heads names no file"),
        ("devils:guides=0", "guides must be a number of heads, 1 or more"),
        ("dola:candidates=5", 'candidates must be "low", "high" or a list of layers'),
        ("dola:candidates=hgih", "did you mean high"),
        ("gift:saliency=[]", "saliency must name at least one layer"),
        ("gift:trim=[1]", "trim must be two numbers of tokens"),
        ("icd:prefix= ", "prefix must be a text that disturbs"),
        ("ilvad:tokens=1", "tokens must be a whole number from 2 to 1000"),
        ("ilvad:alpha=-1", "alpha must be"),
        ("ilvad:sense=codes", "did you mean code"),
        ("ilvad:patches=some", "patches"),
        ("pasta:spans=[[5,2]]", "spans must hold"),
        ("steer:heads=all,vectors=[[1],[1,2]]", "lists of numbers, of one length"),
        ("tidal:budget=0", "budget must be a number of columns, 1 or more"),
        ("vicrop:form=gradiant", "did you mean gradient"),
        ("vicrop:tiles=2", "tiles must be"),
    ],
)
def test_settings_out_of_their_domain(text: str, why: str) -> None:
    with pytest.raises(ValueError) as told:
        parse(text)
    assert why in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("family", "text", "why"),
    [
        ("llava", "adhh", "acts on listed heads, and none are given"),
        ("llava", "adhh:heads=[[0,99]]", "head lists belong to the model they were found for"),
        ("llava", "carve:layers=[]", "layers must hold at least one layer"),
        ("llava", "devils:guides=99", "has 4 heads per layer"),
        ("llava", "icd", "needs the tokenizer: attach(model, ICD(), processor=processor)"),
        ("llava", "ilvad:layers=[7]", "layers"),
        ("llava", "pasta:heads=all", "points at a part of the prompt, and none is given"),
        ("llava", "pasta:spans=[dog],heads=all", "pass processor= to attach"),
        ("llava", "highlight:spans=[dog]", "pass processor= to attach"),
        ("llava", "tidal:select=[]", "select needs at least one layer"),
        ("paligemma", "adaptvis", "runs the last token of a prompt again"),
        ("paligemma", "ilvad", "its prompts see all of themselves"),
    ],
)
def test_models_that_a_method_cannot_act_on(family: str, text: str, why: str) -> None:
    host = bare_host(family)
    with pytest.raises(ValueError) as told:
        parse(text).resolve(host)
    assert why in str(told.value) and "\n" not in str(told.value)


def test_parts_of_a_model() -> None:
    model: Any = tiny("llava").model
    with pytest.raises(ValueError, match="is a language model alone"):
        attach(model.model.language_model, parse("ilvad"))
    with pytest.raises(ValueError, match="dola needs the output layer"):
        attach(model.model, parse("dola"))


def test_a_look_without_a_model() -> None:
    rows = np.ones((1, 1, 2, 2))
    picture = tiny("llava").picture(0)
    for spec in (CARVE(), ViCrop()):
        with pytest.raises(ValueError, match="call resolve first"):
            spec.look(picture, rows, rows)


@torch.no_grad()
def test_features_in_the_place_of_pictures_and_embeddings_in_that_of_words() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    embeds = model.model.get_input_embeddings()(inputs["input_ids"])
    with (
        attach(model.model, VCD(), processor=model.processor),
        pytest.raises(ValueError, match="give it the picture, not its features"),
    ):
        model.model(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    words = {"attention_mask": inputs["attention_mask"], "pixel_values": inputs["pixel_values"]}
    columns = model.expected_image_columns(inputs)[0].nonzero().flatten().tolist()
    spans = {"image": [(columns[0], columns[-1] + 1)]}
    with (
        attach(model.model, ICD(), processor=model.processor, spans=spans),
        pytest.raises(ValueError, match="input_ids, and there are none"),
    ):
        model.model(inputs_embeds=embeds, **words)


def test_a_span_across_two_parts_of_a_prompt() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    length = inputs["input_ids"].shape[1]
    spec = PASTA(spans=((length - 4, length),), heads="all")
    head = {k: v[:, : length - 2] if v.ndim == 2 else v for k, v in inputs.items()}
    with torch.no_grad(), attach(model.model, spec, processor=model.processor) as run:
        with run.partial_prompt():
            cache = model.model(**head, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="lies across two parts of the prompt"):
            model.model(input_ids=inputs["input_ids"][:, -2:], past_key_values=cache)


@torch.no_grad()
def test_ilvad_takes_no_drafts_and_no_second_question() -> None:
    model, helper = tiny("llava"), tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, ILVAD(tokens=3, tau=0.1)):
        with pytest.raises(NotImplementedError, match="leave the assistant out"):
            model.model.generate(**inputs, max_new_tokens=6, assistant_model=helper.model)
        made = model.model.generate(
            **inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True
        )
        more = torch.full((1, 3), 5)
        with pytest.raises(NotImplementedError, match="begin anew with the whole conversation"):
            model.model(input_ids=more, past_key_values=made.past_key_values)


@pytest.mark.parametrize("name", ["adaptvis", "gift-late", "ilvad", "anchor"])
def test_a_mask_that_hides_by_a_bias_is_told_from_one_that_hides(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    length = inputs["input_ids"].shape[1]

    def edited(hidden: float) -> torch.Tensor:
        mask = torch.full((length, length), hidden).triu(1)[None, None]
        with attach(model.model, ALL[name].acts, processor=model.processor), torch.no_grad():
            logits: torch.Tensor = model.model(**{**inputs, "attention_mask": mask}).logits
        return logits

    torch.testing.assert_close(edited(-torch.inf), edited(torch.finfo(torch.float32).min))
    with pytest.raises(NotImplementedError, match=r"by -inf or torch\.finfo\(dtype\)\.min.* -1e9"):
        edited(-1e9)
