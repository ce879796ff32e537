"""From words to columns, and the losses on their maps."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import nltk
import pytest
import tiny_painter
import torch
from transformers import AutoTokenizer

import regaze
from regaze.evals.sandbox.painting import painter_path
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Part, Prompt, read_prompt
from regaze.hooks.diffusion.works import Run
from regaze.interventions.diffusion.concept_maps import (
    Columns,
    binarised,
    concept_maps,
    otsu,
    overlap,
    resized,
    retention_loss,
    segregation_loss,
    unit_range,
)
from regaze.interventions.diffusion.concept_tokens import columns_of
from regaze.interventions.diffusion.concepts import default_layers

PROMPT = "a red circle, a blue square and a white circle"


def pieces(text: str, start: str = "<s>") -> Prompt:
    """A prompt whose words of more than four letters are two tokens."""
    spans = [(0, 0)]
    for word in re.finditer(r"\w+|[^\w\s]", text):
        a, b = word.span()
        spans += [(a, a + 4), (a + 4, b)] if b - a > 4 else [(a, b)]
    spans.append((0, 0))
    names = [start, *(text[a:b] for a, b in spans[1:-1]), "</s>"]
    return Prompt(text, tuple(names), tuple(spans))


def columns(tokens: Any, text: str = PROMPT, **more: Any) -> Columns:
    """A prompt's columns in a CLIP text stream of 20."""
    part = Part("clip", slice(0, 20), (pieces(text),))
    (found,) = columns_of(regaze.AStar(tokens=tokens, **more), Run(1, 10, (part,)))
    return found


def test_words_are_taken_whole_and_every_time() -> None:
    # <s> 1 a 2 red 3 circ 4 le 5 , 6 a 7 blue 8 squa 9 re 10 and 11 a 12 whit 13 e 14 circ 15 le
    found = columns(["circle", "red circle", "SQUARE", 7])
    named = [tuple(found.inner[i] for i in one) for one in found.concepts]
    assert named == [(3, 4), (14, 15), (2, 3, 4), (8, 9), (7,)]
    assert found.inner == tuple(range(1, 19))  # Without the start token and the last column.
    assert columns(["blue"], cut="eos").inner == tuple(range(1, 16))


@pytest.mark.parametrize("word", ["cat", "circ", "red blue", "quare"])
def test_a_word_that_is_not_there_raises_and_shows_what_is(word: str) -> None:
    with pytest.raises(ValueError, match=r"isn't in the prompt; its tokens are 0 <s>, 1 a, 2 red"):
        columns([word])
    assert columns([word, "blue"], absent="skip").concepts == ((6,),)


def test_the_text_stream_of_sd3_has_two_parts() -> None:
    clip = Part("clip", slice(0, 20), (pieces("a cat"),))
    t5 = Part("t5", slice(20, 50), (pieces("a cat"),))

    def found(encoder: str) -> Columns:
        spec = regaze.AStar(tokens=["cat"], encoder=encoder)
        return columns_of(spec, Run(1, 10, (clip, t5)))[0]

    assert (found("clip").inner, found("clip").concepts) == (tuple(range(1, 19)), ((1,),))
    # T5 has an end token but no start token; here the fake one stands for a word.
    assert found("t5").inner == (20, 21, 22)
    both = found("both")
    assert [both.inner[i] for i in both.concepts[0]] == [2, 22]


def test_stable_diffusion_2_is_cut_at_the_end_token() -> None:
    part = Part("clip", slice(0, 20), (pieces("a cat"),), pads_apart=True)
    spec = regaze.AStar(tokens=["cat"])
    assert columns_of(spec, Run(1, 10, (part,)))[0].inner == (1, 2)
    bare = Part("clip", slice(0, 20), None, pads_apart=True)
    with pytest.raises(ValueError, match='give cut="last"'):
        columns_of(regaze.AStar(tokens=[2]), Run(1, 10, (bare,)))


def test_nouns(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"circle": "NN", "square": "NN", "red": "JJ", "cats": "NNS", "Rome": "NNP"}
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(w, tags.get(w, "DT")) for w in words])
    assert columns("auto").concepts == columns(["circle", "square"]).concepts[:1] + (
        columns(["square"]).concepts[0], columns(["circle"]).concepts[1],
    )  # fmt: skip


def test_nouns_without_data_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LookupError, match="nltk.downloader averaged_perceptron_tagger_eng"):
        columns("auto")


@pytest.mark.parametrize(
    ("folder", "tokens"),
    [("tokenizer", ["red</w>", "circle</w>"]), ("tokenizer_3", ["▁red", "▁circle"])],
)
def test_real_tokenizers(folder: str, tokens: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(painter_path("painter-mmdit") / folder)
    prompt = read_prompt(tokenizer, "a red  circle and a blue square", 16)
    (found,) = prompt.find("red circle")
    assert [prompt.pieces[i] for i in found if prompt.pieces[i] != "▁"] == tokens
    assert prompt.pieces[prompt.end] in ("<|endoftext|>", "</s>")


def test_other_words_are_as_many_that_name_nothing() -> None:
    # <s> 1 a 2 red 3 circ 4 le 5 , 6 a 7 blue 8 squa 9 re 10 and 11 a 12 whit 13 e 14 circ 15 le
    def others(tokens: Any, text: str = PROMPT, **more: Any) -> list[int]:
        found = columns(tokens, text, maps="others", **more)
        assert found.inner == columns(tokens, text, **more).inner
        return [found.inner[i] for one in found.concepts for i in one]

    three = others(["circle", "square"])
    assert three == others(["circle", "square"]) == sorted(set(three)) and len(three) == 3
    assert set(three) < {1, 6, 10, 11}
    # Another prompt gets others.
    texts = [f"{PROMPT} {word}" for word in ("ring", "bell", "bird", "fish", "tree", "road")]
    assert len({tuple(others(["circle"], text)) for text in texts}) > 1
    # Words that a concept holds are no others.
    assert others(["square and a"], absent="skip") in ([1], [6])
    assert others([1], "A cat and a dog") in ([3], [4])
    assert columns(["cat"], "the cat", maps="others").concepts == ((0,),)


@pytest.mark.parametrize("text", ["red circle, blue square", "a circle, android square"])
def test_a_prompt_with_too_few_other_words_raises_and_shows_its_tokens(text: str) -> None:
    few = int(text.startswith("a "))
    with pytest.raises(ValueError, match=rf"needs 2 words .* the prompt has {few}; its tokens are"):
        columns(["circle", "square"], text, maps="others")
    found = columns(["circle", "square"], text, maps="others", absent="skip")
    assert found.concepts == ((0,),) * few


def test_other_words_of_two_encoders_are_the_same() -> None:
    text = "a cat and a dog on the road"
    clip, t5 = (
        Part("clip", slice(0, 20), (pieces(text),)),
        Part("t5", slice(20, 50), (pieces(text),)),
    )
    spec = regaze.AStar(tokens=["cat", "dog"], encoder="both", maps="others")
    (found,) = columns_of(spec, Run(1, 10, (clip, t5)))
    pairs = [tuple(found.inner[i] for i in one) for one in found.concepts]
    assert len(pairs) == 2 and all(b == a + 20 for a, b in pairs)


def test_other_words_need_a_prompt() -> None:
    bare = Part("clip", slice(0, 20), None)
    with pytest.raises(ValueError, match="which columns hold which words isn't known"):
        columns_of(regaze.AStar(tokens=[2], maps="others"), Run(1, 10, (bare,)))


@pytest.mark.parametrize("method", [regaze.AStar, regaze.AttendAndExcite])
def test_controls_lead_away_or_move_other_words(method: Any) -> None:
    spec = method(tokens=["circle", "square"], absent="skip", step_size=5.0)
    away, others = spec.controls()["away"], spec.controls()["other words"]
    assert away == replace(spec, step_size=-5.0) and others == replace(spec, maps="others")
    assert len(spec.controls()) == 2
    for none in (away, others, method(), replace(spec, step_size=0.0)):
        assert none.controls() == {}


@pytest.mark.parametrize("method", [regaze.AStar, regaze.AttendAndExcite])
def test_controls_move_what_they_say(method: Any) -> None:
    pipe = tiny_painter.fresh().pipeline
    pipe.set_progress_bar_config(disable=True)
    prompt = "a red circle and a blue square"

    def latents(spec: Any) -> torch.Tensor:
        with regaze.attach(pipe, spec):
            noise = torch.Generator().manual_seed(0)
            found: torch.Tensor = pipe(
                prompt, generator=noise, num_inference_steps=1, output_type="latent"
            )[0]
        return found

    spec = method(tokens=["circle", "square"])
    away, others = spec.controls().values()
    plain, moved = latents(spec.idle()), latents(spec)
    # After a single step the moves are opposite, to the first order.
    small = [replace(one, step_size=one.step_size / 400) for one in (spec, away)]
    up, down = (latents(one) - plain for one in small)
    assert torch.cosine_similarity(up.flatten(), down.flatten(), 0) < -0.9
    # The columns of the words that name nothing are 1 a, 4 and, 5 a.
    pairs = [latents(replace(spec, tokens=pair)) for pair in ([1, 4], [1, 5], [4, 5])]
    assert sum(torch.equal(latents(others), one) for one in pairs) == 1
    assert not torch.equal(latents(others), moved)


def test_prompts_of_a_pipeline() -> None:
    pipe = tiny_painter.fresh().pipeline
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red circle and a blue square", "a white cross"]

    def latents(spec: Any, prompts: list[str], seeds: list[int], **more: Any) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        with regaze.attach(pipe, spec):
            made = pipe(
                prompts, generator=noise, num_inference_steps=2, output_type="latent", **more
            )
        found: torch.Tensor = made[0]
        return found

    spec = regaze.AStar(tokens=[["circle", "blue square"], ["white", "cross"]])
    both = latents(spec, prompts, [0, 1, 2, 3], num_images_per_prompt=2)
    same = regaze.AStar(tokens=[[3, [6, 7]], [2, 3]])
    assert torch.equal(latents(same, prompts, [0, 1, 2, 3], num_images_per_prompt=2), both)
    last = latents(regaze.AStar(tokens=["white", "cross"]), prompts[1:], [3])
    assert (both[3:] - last).abs().max() < 1e-4 * both.abs().max()
    with pytest.raises(ValueError, match="'square' isn't in the prompt.*2 white</w>, 3 cross</w>"):
        latents(regaze.AStar(tokens=["square"]), prompts, [0, 1])


# -- layers ------------------------------------------------------------------------------------


def unet_of(size: int) -> Host:
    """Stable Diffusion's cross-attention."""
    blocks = [("down_blocks.0", 1), ("down_blocks.1", 2), ("down_blocks.2", 4), ("mid_block", 8),
              ("up_blocks.1", 4), ("up_blocks.2", 2), ("up_blocks.3", 1)]  # fmt: skip
    sites = tuple(Site(f"{b}.attn2", "cross", b, None, 8, "image") for b, _ in blocks)
    grids = {f"{b}.attn2": (size // n, size // n) for b, n in blocks}
    return Host("UNet2DConditionModel", sites, grids, (size, size))


def test_default_layers_of_stable_diffusion_are_the_papers() -> None:
    blocks = [site.block for site in default_layers("a_star", unet_of(64))]
    assert blocks == ["down_blocks.2", "up_blocks.1"]


def test_default_layers_of_transformers_are_the_second_half_of_their_blocks() -> None:
    sites = tuple(
        Site(f"{kind}.{i}.attn", "joint", f"{kind}.{i}", i, 24, "text-image")
        for kind, count in (("transformer_blocks", 19), ("single_transformer_blocks", 38))
        for i in range(count)
    )
    chosen = default_layers("a_star", Host("FluxTransformer2DModel", sites))
    assert [site.name for site in chosen] == [f"transformer_blocks.{i}.attn" for i in range(9, 19)]


# -- losses ------------------------------------------------------------------------------------


def test_losses_of_maps_that_are_apart_alike_or_empty() -> None:
    maps = torch.zeros(2, 1, 2, 2)
    maps[0, 0, 0], maps[1, 0, 1] = 1.0, 1.0
    assert segregation_loss(maps) == 0
    assert overlap(maps[0], maps[0]) == 0.5  # At most, since the intersection isn't taken off.
    assert segregation_loss(torch.stack([maps[0], maps[0], maps[0]])) == 1.5
    assert retention_loss(maps, maps) == 1.0  # At least 1/2 a concept.
    assert retention_loss(maps, maps.flip(0)) == 2.0
    assert segregation_loss(maps[:1]) == 0
    assert segregation_loss(torch.zeros(2, 1, 2, 2)).isfinite()


def test_masks() -> None:
    one = torch.tensor([[[[0.1, 0.2], [0.5, 0.9]]]])
    assert binarised(one, 0.5).flatten().tolist() == [0, 0, 1, 1]
    assert binarised(one, 0.6).flatten().tolist() == [0, 0, 0, 1]
    assert binarised(torch.tensor([[[[0.1, 0.2, 0.15, 0.8]]]]), "otsu").sum() == 1
    assert otsu(torch.tensor([0.0, 0.1, 0.9, 1.0])) == torch.tensor(0.9)
    assert unit_range(one).amin() == 0
    assert unit_range(one).amax() == 1
    half = [[[1, 1, 0, 0]] * 4]
    assert resized(half, 2, 2).flatten().tolist() == [1, 0, 1, 0]


def test_maps_without_softmax_and_blur_are_the_attention() -> None:
    maps = torch.rand(1, 3, 4, 6)
    found = concept_maps(maps, Columns((1, 2, 3, 4), ((0,), (1, 3))), 0.0, 0.0)
    torch.testing.assert_close(found[0], maps[..., 1])
    torch.testing.assert_close(found[1], (maps[..., 2] + maps[..., 4]) / 2)


def test_a_layout_pulls_concepts_to_its_places() -> None:
    pipe = tiny_painter.fresh().pipeline
    pipe.set_progress_bar_config(disable=True)
    left = [[1, 0]]
    right = [[0, 1]]
    made = []
    for layout in ([left, right], [right, left]):
        spec = regaze.AStar(tokens=["circle", "square"], layout=layout, step_size=50)
        with regaze.attach(pipe, spec) as run:
            made.append(
                pipe("a red circle and a blue square", num_inference_steps=2, output_type="latent",
                     generator=torch.Generator().manual_seed(0))[0]
            )  # fmt: skip
        assert run.report().fired
    assert not torch.equal(made[0], made[1])
