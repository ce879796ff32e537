"""Structured Diffusion Guidance on a pipeline with a tokenizer and a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_work import attention_work
from tiny_painter import shared
from tiny_pipelines import FAMILIES, noise, state, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import regaze
from regaze.hooks.diffusion.literal import Manner
from regaze.interventions import StructuredDiffusion, from_dict, parse
from regaze.interventions.diffusion import nouns
from regaze.interventions.diffusion.phrase_contexts import other_spans

PROMPT = "a red circle and a blue square"
OTHER = "a green circle"
RED, BLUE, GREEN = "a red circle", "a blue square", "green circle"
KEYS = ("prompt", "phrases", "pairs")


def run(pipe: Any, prompts: Any = PROMPT, guided: bool = True, **more: Any) -> Tensor:
    rows = (1 if isinstance(prompts, str) else len(prompts)) * more.get("num_images_per_prompt", 1)
    dtype = pipe.unet.dtype
    latents: Tensor = pipe(
        prompts, latents=noise(rows, 4, 16, 16).to(dtype), num_inference_steps=2,
        guidance_scale=4.0 if guided else 1.0, output_type="latent", **more,
    )[0]  # fmt: skip
    return latents


@pytest.fixture
def pipe() -> Any:
    return shared().pipeline


def embedded(pipe: Any, text: str) -> Tensor:
    ids = pipe.tokenizer(
        text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        found: Tensor = pipe.text_encoder(ids)[0][0]
    return found


def put(pipe: Any, phrase: str, context: Tensor, prompt: str = PROMPT) -> Tensor:
    """A context with a phrase's embeddings in its place, by words: each is a token here."""
    words, part = prompt.split(), phrase.split()
    (at,) = [i for i in range(len(words)) if words[i : i + len(part)] == part]
    found = context.clone()
    found[1 + at : 1 + at + len(part)] = embedded(pipe, phrase)[1 : 1 + len(part)]
    return found


@contextmanager
def literally(
    pipe: Any, phrases: list[list[str]], prompts: list[str], keys: str, guided: bool
) -> Iterator[None]:
    """Each pair of contexts by explicit maps, in the conditional rows of every layer."""
    pairs: list[list[tuple[Tensor, Tensor]]] = []
    for prompt, mine in zip(prompts, phrases, strict=True):
        base = embedded(pipe, prompt)
        own = [base, *(put(pipe, phrase, base, prompt) for phrase in mine)]
        merged = base
        for phrase in mine:
            merged = put(pipe, phrase, merged, prompt)
        pairs.append(
            {
                "prompt": [(base, x) for x in own], "phrases": [(x, merged) for x in own],
                "pairs": [(x, x) for x in own],
            }[keys]
        )  # fmt: skip

    def heads(module: Any, x: Tensor) -> Tensor:
        found: Tensor = x.unflatten(-1, (module.heads, -1)).transpose(-3, -2)
        return found

    def patched(module: Any) -> Callable[..., Tensor]:
        def forward(hidden: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
            query = heads(module, module.to_q(hidden))
            rows = []
            for n, q in enumerate(query):
                sample = n - (len(query) // 2 if guided else 0)
                texts = [(encoder_hidden_states[n],) * 2] if sample < 0 else pairs[sample]
                outs = []
                for k, v in texts:
                    key, value = heads(module, module.to_k(k)), heads(module, module.to_v(v))
                    weights = F.softmax(q @ key.transpose(-1, -2) * module.scale, -1)
                    outs.append(weights @ value)
                rows.append(torch.stack(outs).mean(0))
            out: Tensor = module.to_out[0](torch.stack(rows).transpose(1, 2).flatten(2))
            return out

        return forward

    modules = [m for name, m in pipe.unet.named_modules() if name.endswith("attn2")]
    for module in modules:
        module.forward = patched(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("keys", KEYS)
def test_it_equals_explicit_maps_and_leaves_nothing(pipe: Any, keys: str, guided: bool) -> None:
    plain = run(pipe, [PROMPT, OTHER], guided)
    before = state(pipe.unet)
    spec = StructuredDiffusion(phrases=[[RED, BLUE], [GREEN]], keys=keys)
    with regaze.attach(pipe, spec) as found:
        got = run(pipe, [PROMPT, OTHER], guided)
    with literally(pipe, [[RED, BLUE], [GREEN]], [PROMPT, OTHER], keys, guided):
        want = run(pipe, [PROMPT, OTHER], guided)
    scale = plain.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - plain).abs().max() > 1e-4 * scale
    assert found.report().fired
    assert state(pipe.unet) == before
    assert torch.equal(run(pipe, [PROMPT, OTHER], guided), plain)


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
@pytest.mark.parametrize("spans", ["phrases", "random"])
@pytest.mark.parametrize("keys", KEYS)
def test_it_equals_the_literal_form_that_verify_runs(
    pipe: Any, keys: str, spans: str, guided: bool
) -> None:
    phrases = [[RED, BLUE], [GREEN, OTHER]] if spans == "phrases" else [[RED], [GREEN]]
    spec = StructuredDiffusion(phrases=phrases, keys=keys, layers=("mid",), spans=spans)
    with regaze.attach(pipe, spec) as found:
        got = run(pipe, [PROMPT, OTHER], guided)
    with found.specs[0].literal().within(pipe, Manner("unet", guided)):  # type: ignore[attr-defined]
        want = run(pipe, [PROMPT, OTHER], guided)
    scale = got.abs().max()
    assert (got - want).abs().max() < 1e-5 * scale
    assert (got - run(pipe, [PROMPT, OTHER], guided)).abs().max() > 1e-4 * scale
    with replace(spec, phrases=(RED, GREEN)).literal().within(pipe, Manner("unet", guided)):
        lacking = run(pipe, [PROMPT, OTHER], guided)
    assert not torch.equal(lacking, got)


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "alone"])
def test_the_control_reads_as_many_spans_that_are_no_phrases(pipe: Any, guided: bool) -> None:
    spec = StructuredDiffusion([[RED, BLUE], [GREEN]])
    (control,) = spec.controls().values()
    assert control == replace(spec, spans="random") and control.controls() == {}
    spans = [other_spans(PROMPT, [RED, BLUE]), other_spans(OTHER, [GREEN])]
    assert [len(each) for each in spans] == [2, 1] and spans[1] == ["a green"]
    for span in spans[0]:
        assert span in PROMPT and len(span.split()) == 3 and span not in (RED, BLUE)
    assert len(set(spans[0])) == 2
    with regaze.attach(pipe, control):
        got = run(pipe, [PROMPT, OTHER], guided)
        assert torch.equal(run(pipe, [PROMPT, OTHER], guided), got)
    with regaze.attach(pipe, StructuredDiffusion(spans)):
        assert torch.equal(run(pipe, [PROMPT, OTHER], guided), got)
    with regaze.attach(pipe, spec):
        assert not torch.equal(run(pipe, [PROMPT, OTHER], guided), got)


def test_spans_are_cut_from_the_prompt_as_it_is_written() -> None:
    prompt = "A red circle, a blue square and a white cross."
    phrases = ["a red circle", "A BLUE SQUARE", "a white cross"]
    found = other_spans(prompt, phrases)
    assert found == other_spans(prompt, phrases) and len(set(found)) == 3
    for span in found:
        assert span in prompt and len(span.replace(",", "").split()) == 3
        assert span.lower() not in map(str.lower, phrases)
    # Another prompt gets others, and what is left may be too little.
    assert found != other_spans(prompt + " And a red ring", phrases)
    assert other_spans("a red circle", ["a red circle"]) == []
    assert set(other_spans("a red circle", ["a red circle", "circle", "red"])) == {"a"}


def test_a_prompt_without_other_spans_is_noted_and_a_missing_phrase_raises(pipe: Any) -> None:
    with regaze.attach(pipe, StructuredDiffusion([OTHER], spans="random")) as found:
        got = run(pipe, OTHER)
    assert torch.equal(got, run(pipe, OTHER))
    assert "no span beside its phrases in 'a green circle'" in str(found.report())
    lacking = StructuredDiffusion(["a green square"], spans="random")
    with regaze.attach(pipe, lacking), pytest.raises(ValueError, match="isn't in the prompt"):
        run(pipe)


def test_phrases_that_a_prompt_lacks_may_be_skipped(pipe: Any) -> None:
    lists = [[RED, BLUE], [GREEN]]
    with regaze.attach(pipe, StructuredDiffusion(phrases=lists)):
        want = run(pipe, [PROMPT, OTHER])
    with regaze.attach(pipe, StructuredDiffusion([RED, BLUE, GREEN], absent="skip")):
        assert torch.equal(run(pipe, [PROMPT, OTHER]), want)


@pytest.mark.parametrize("keys", KEYS)
def test_a_batch_and_several_images_give_what_single_prompts_give(pipe: Any, keys: str) -> None:
    with regaze.attach(pipe, StructuredDiffusion(phrases=[[RED, BLUE], [GREEN]], keys=keys)):
        batch = run(pipe, [PROMPT, OTHER])
    with regaze.attach(pipe, StructuredDiffusion(phrases=[RED, BLUE], keys=keys)):
        single = run(pipe)
        images = run(pipe, num_images_per_prompt=2)
    scale = batch.abs().max()
    assert (batch[:1] - single).abs().max() < 1e-5 * scale
    assert (images[:1] - single).abs().max() < 1e-5 * scale


class Kernels(TorchDispatchMode):
    """Counts attention kernels."""

    count = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


def test_it_acts_beside_guidance_and_costs_no_extra_attention(pipe: Any) -> None:
    spec = StructuredDiffusion(phrases=[RED, BLUE])
    with Kernels() as plain:
        run(pipe, guided=False)
    assert plain.count > 0
    with regaze.attach(pipe, spec) as found, Kernels() as edited:
        alone = run(pipe, guided=False)
    # The phrases are encoded, and the effect is measured by the stock kernel at a few calls.
    encoded = pipe.text_encoder.config.num_hidden_layers
    measured = sum(layer.calls for layer in found.report().interventions[0].layers)
    assert plain.count <= edited.count <= plain.count + encoded + measured
    with regaze.attach(pipe, spec, regaze.PAG()):
        assert not torch.equal(run(pipe, guided=False), alone)


def test_phrases_are_found_by_a_parser_if_nobody_names_them(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with regaze.attach(pipe, StructuredDiffusion(phrases=[PROMPT, RED, BLUE])):
        want = run(pipe)
    monkeypatch.setattr(nouns, "_parser", lambda: _parsed)
    assert nouns.noun_phrases(PROMPT) == [PROMPT, RED, BLUE]
    with regaze.attach(pipe, StructuredDiffusion()):
        assert torch.equal(run(pipe), want)


class _Doc(list[Any]):
    def __getitem__(self, at: Any) -> Any:
        return " ".join(w.text for w in list(self)[at]) if isinstance(at, slice) else list(self)[at]


def _parsed(text: str) -> Any:
    """A parser's reading of the prompt: "circle" heads both phrases."""
    words = _Doc(SimpleNamespace(text=w, pos_="X", i=i) for i, w in enumerate(text.split()))
    for at, (left, right) in {2: (0, 6), 6: (4, 6)}.items():
        token = list(words)[at]
        token.pos_ = "NOUN"
        token.left_edge, token.right_edge = list(words)[left], list(words)[right]
    chunks = [SimpleNamespace(start=0, end=3), SimpleNamespace(start=4, end=7)]
    words.noun_chunks = chunks  # type: ignore[attr-defined]
    return words


def test_bad_inputs_raise(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="SD3Transformer2DModel isn't known to read its text"):
        regaze.attach(tiny("sd3"), StructuredDiffusion(phrases=[RED]))
    for phrases in ("red", [""], [3], [[RED], "blue"]):
        with pytest.raises(ValueError, match="structured_diffusion: phrases must be"):
            StructuredDiffusion(phrases=phrases)
    with regaze.attach(pipe, StructuredDiffusion(phrases=["a green square"])), pytest.raises(
        ValueError, match="'a green square' isn't in the prompt 'a red circle and a blue square'"
    ):  # fmt: skip
        run(pipe)
    with regaze.attach(pipe, StructuredDiffusion(phrases=[[RED], [BLUE]])), pytest.raises(
        ValueError, match="phrases are for 2 prompts, and 1 samples are made"
    ):  # fmt: skip
        run(pipe)
    sd, kind = tiny("sd"), FAMILIES["sd"]
    with regaze.attach(sd, StructuredDiffusion(phrases=[RED])), pytest.raises(
        ValueError, match="was given embeddings"
    ):  # fmt: skip
        kind.run(sd)

    def absent() -> Any:
        raise ImportError('phrases="auto" finds noun phrases with spaCy')

    monkeypatch.setattr(nouns, "_parser", absent)
    with regaze.attach(pipe, StructuredDiffusion()), pytest.raises(ImportError, match="spaCy"):
        run(pipe)


def test_specs_survive_json_and_their_own_labels() -> None:
    for spec in (
        StructuredDiffusion(),
        StructuredDiffusion(phrases=[RED], keys="pairs", layers=("mid",), stop=0.5),
        StructuredDiffusion(phrases=[[RED, BLUE], [GREEN]]),
    ):
        assert from_dict(spec.to_dict()) == spec == parse(spec.label)


@pytest.mark.parametrize("guided", [True, False])
def test_contexts_averaged_cost_no_attention(pipe: Any, guided: bool) -> None:
    """Beside the text encoder's, and in steps that aren't measured: the third."""

    def third(spec: StructuredDiffusion | None) -> int:
        each: list[int] = []

        def end(*_: Any) -> dict[str, Any]:
            each.append(counted.logits)
            return {}

        with attention_work() as counted, regaze.attach(pipe, *([] if spec is None else [spec])):
            pipe(
                PROMPT, latents=noise(1, 4, 16, 16), num_inference_steps=3, output_type="latent",
                guidance_scale=4.0 if guided else 1.0, callback_on_step_end=end,
            )  # fmt: skip
        return each[2] - each[1]

    assert third(StructuredDiffusion([RED, BLUE])) == third(None) > 0
