"""VCD, ICD, AvisC, M3ID and DoLa in models: formula, batches, prompts, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from asking import (
    LONG,
    SHORT,
    Row,
    answer,
    answer_and_report,
    ask,
    assert_literal,
    decoded,
    logits,
)
from matrix import ALL, CONTRASTS, pairs
from methods import LAYERS, Method
from threads import together
from tiny import Tiny, tiny
from torch import Tensor, nn
from traces import trace

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.tokens import Kind, TokenMap
from regaze.interventions import ICD, M3ID, PAI, VCD, AvisC, DoLa, Intervention, from_dict, parse
from regaze.interventions.lvlm.dola import _bucket
from regaze.interventions.lvlm.icd import Words
from regaze.interventions.lvlm.m3id import token_numbers
from regaze.interventions.lvlm.noise import factors, noised

# Plain, grids of patches, deep stacks, windows, prompts that see themselves, row ends, tiles.
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "mistral3", "idefics3")
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
IMAGE_METHODS = ("vcd", "icd", "avisc", "m3id")


def check(model: Tiny, inputs: dict[str, Any], *specs: Intervention) -> None:
    """Compare what is attached with its literal form, and with nothing."""
    steps = assert_literal(model, inputs, *specs, within=2e-5)
    assert not torch.equal(steps, decoded(model, inputs)[2])


@pairs(*CONTRASTS, families=FAMILIES)
def test_scores_are_the_formula_s(family: str, method: Method) -> None:
    model = tiny(family)
    check(model, ask(model, ROWS[0]), method.acts)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_contrasts_compose_with_edits_of_attention_and_with_each_other(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0, 1]))
    check(model, inputs, PAI(0.5, layers=LAYERS), VCD(), PAI(0.5, layers=(1,)))
    check(model, inputs, PAI(0.5, layers=LAYERS), AvisC(beta=0, scheme="ones"), M3ID(beta=0))
    check(model, inputs, VCD(beta=0), ICD(beta=0), DoLa(candidates=LAYERS, rho=0))
    check(model, inputs, VCD(beta=0.01), DoLa(candidates=LAYERS, divergence="jsd", rho=0.01))


@pairs(*CONTRASTS, families=("llava", "qwen2_5_vl"))
def test_a_batch_gives_what_single_samples_give(family: str, method: Method) -> None:
    model = tiny(family)
    batch = answer(model, ask(model, *ROWS), method.acts)
    assert batch == [answer(model, ask(model, row), method.acts)[0] for row in ROWS]


@pytest.mark.parametrize("name", CONTRASTS)
def test_the_first_token_of_beams_and_samples_is_contrasted_row_by_row(name: str) -> None:
    model, told = tiny("llava"), {"max_new_tokens": 2, "output_logits": True}
    with attach(model.model, CONTRASTS[name].acts, processor=model.processor):
        alone = [model.model(**ask(model, row)).logits[0, -1] for row in ROWS]
        found = model.model.generate(
            **ask(model, *ROWS), **told, do_sample=True, num_return_sequences=2,
            return_dict_in_generate=True,
        )  # fmt: skip
        beams = model.model.generate(**ask(model, ROWS[0]), max_new_tokens=5, num_beams=3)
    want = torch.stack([alone[0], alone[0], alone[1], alone[1]])
    torch.testing.assert_close(found.logits[0], want, rtol=0, atol=1e-4)
    assert beams.shape[0] == 1


@pytest.mark.parametrize("name", [n for n, one in CONTRASTS.items() if not one.excused("idle")])
def test_strength_zero_changes_nothing(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    assert torch.equal(logits(model, inputs, CONTRASTS[name].idle), logits(model, inputs))
    _, report = answer_and_report(model, inputs, CONTRASTS[name].idle)
    assert report.interventions[0].exempt and not report.interventions[0].fired


ONCE = pytest.mark.parametrize("name", [n for n, one in CONTRASTS.items() if not one.like])


@ONCE
def test_detaching_leaves_no_trace(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, *ROWS)
    plain, before = logits(model, inputs), trace(model.model)
    assert not torch.equal(logits(model, inputs, CONTRASTS[name].acts), plain)
    assert trace(model.model) == before
    assert torch.equal(logits(model, inputs), plain)


@ONCE
def test_autocast_stays_close_to_full_precision(name: str) -> None:
    model = tiny("llava")
    inputs, spec = ask(model, *ROWS), CONTRASTS[name].acts
    full = logits(model, inputs, spec)[:, -1]
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits(model, inputs, spec)[:, -1].float()
    kept = full.isfinite() & cast.isfinite()
    # Tokens at the threshold of likelihood may fall on the other side of it.
    assert (full.isfinite() == cast.isfinite()).float().mean() > 0.95
    assert kept.any(-1).all()
    assert (cast - full)[kept].abs().mean() < 0.1 * logits(model, inputs)[:, -1].std()


@ONCE
def test_threads_do_not_see_each_other(name: str) -> None:
    model = tiny("llava", fresh=True)
    asked = [ask(model, row) for row in ROWS]

    def job(inputs: dict[str, Any]) -> Callable[[], Tensor]:
        def say() -> Tensor:
            with torch.no_grad():  # It is each thread's own.
                out: Tensor = model.model(**inputs).logits
            return out

        return say

    with attach(model.model, CONTRASTS[name].acts, processor=model.processor):
        jobs = [job(one) for one in asked]
        want = [say() for say in jobs]
        for _ in range(3):
            got = together(*jobs)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_the_cut_alone_is_a_control(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    spec = CONTRASTS[name].acts
    control = from_dict({"name": name, "beta": 0.3}).controls()["cut only"]
    got, plain = logits(model, inputs, control)[:, -1], logits(model, inputs)[:, -1]
    cut = got == -torch.inf
    p = plain.softmax(-1)
    assert torch.equal(cut, p < 0.3 * p.amax(-1, keepdim=True)) and cut.any()
    assert torch.equal(got[~cut], plain[~cut])
    assert not control.controls() and control.shares_prefix and not spec.shares_prefix


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_nothing_to_contrast_with_raises_and_rows_without_an_image_keep_their_scores(
    name: str,
) -> None:
    model, spec = tiny("llava"), CONTRASTS[name].acts
    with pytest.raises(ValueError, match=rf"{name} contrasts the picture .* has no picture"):
        logits(model, ask(model, (SHORT, [])), spec)
    inputs = ask(model, (SHORT, [0]), (LONG, []))
    edited, plain = logits(model, inputs, spec), logits(model, inputs)
    torch.testing.assert_close(edited[1], plain[1], rtol=0, atol=1e-5)
    assert (edited[0, -1] - plain[0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("divergence", ["mixture", "jsd"])
def test_dola_contrasts_exits_that_leave_no_probability_to_most_tokens(
    divergence: Literal["mixture", "jsd"],
) -> None:
    """Streams of real models hold values in the thousands, and exits read them without a norm."""
    model = tiny("llava")
    weight = model.model.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(2000)
            exits = model.model.lm_head(weight[3:40]).softmax(-1)
        assert (exits == 0).float().mean() > 0.5
        check(model, ask(model, (SHORT, [])), DoLa(candidates=LAYERS, divergence=divergence))
    finally:
        weight.data.copy_(kept)


def test_dola_needs_no_picture() -> None:
    model = tiny("llava")
    check(model, ask(model, (SHORT, [])), DoLa(candidates=LAYERS))


class WholeNumbers(nn.Module):
    """An output layer whose weight is quantised; some packages make it a method."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), False)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight.to(hidden) * self.scale)


class Packed(nn.Module):
    """Another, as torch's own dynamic quantisation makes it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner = [WholeNumbers(linear)]

    def weight(self) -> Tensor:
        return self.inner[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.inner[0](hidden)
        return found


@pytest.mark.parametrize("kind", [WholeNumbers, Packed])
def test_dola_reads_exits_by_a_quantised_output_layer(kind: type[nn.Module]) -> None:
    model, spec = tiny("llava", fresh=True), DoLa(candidates=LAYERS)
    inputs, head = ask(model, ROWS[0]), WholeNumbers(model.model.lm_head)
    with torch.no_grad():
        model.model.lm_head.weight.copy_(head.weight * head.scale)
    want = logits(model, inputs, spec)
    model.model.lm_head = kind(model.model.lm_head)
    torch.testing.assert_close(logits(model, inputs, spec), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("names", [("dola", "adaptvis"), ("gift-late", "dola")], ids="+".join)
@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_dola_reads_the_exits_of_the_run_whose_scores_it_contrasts(
    family: str, names: tuple[str, ...]
) -> None:
    """Where the last row runs again, its exits are those of the second run."""
    model = tiny(family)
    assert_literal(model, ask(model, ROWS[0]), *[ALL[name].acts for name in names])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["vaf", "avar-probs", "spin", "adaptvis", "gift-late", "ilvad"])
def test_avisc_reads_what_the_methods_before_it_left(name: str, first: bool) -> None:
    model = tiny("llava")
    specs = [CONTRASTS["avisc"].acts, ALL[name].acts][:: 1 if first else -1]
    assert_literal(model, ask(model, ROWS[0]), *specs, within=2e-5)
    batch = answer(model, ask(model, *ROWS), *specs)
    assert batch == [answer(model, ask(model, row), *specs)[0] for row in ROWS]


# -- VCD's noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "mistral3"])
def test_a_picture_s_noise_is_its_own_whatever_batch_it_is_in(family: str) -> None:
    model = tiny(family)
    config = model.model.config
    batch, alone = ask(model, *ROWS), ask(model, ROWS[1])
    before = batch["pixel_values"].clone()
    together = noised(batch, config, 500, 0)["pixel_values"]
    assert torch.equal(batch["pixel_values"], before)
    single = noised(alone, config, 500, 0)["pixel_values"]
    if family == "mistral3":  # Pictures of a batch are filled up to the largest.
        height, width = alone["image_sizes"][0].tolist()
        together, single = together[..., :height, :width], single[..., :height, :width]
    assert torch.equal(together[-len(single) :], single)
    other = noised(alone, config, 500, 1)["pixel_values"]
    assert (other - noised(alone, config, 500, 0)["pixel_values"]).abs().max() > 0.1


def test_two_pictures_have_two_draws_at_the_level_of_the_step() -> None:
    model = tiny("llava")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for step in (0, 500, 999):
        of_picture, of_noise = factors(step)
        new = noised({"pixel_values": pixels}, model.model.config, step, 0)["pixel_values"]
        noise = (new - of_picture * pixels) / of_noise
        assert abs(float(noise.std()) - 1) < 0.05 and abs(float(noise.mean())) < 0.05
        assert abs(float((noise[0] * noise[1]).mean())) < 0.05
    half = noised({"pixel_values": pixels.bfloat16()}, model.model.config, 500, 0)
    assert half["pixel_values"].dtype == torch.bfloat16


def test_both_moments_of_a_still_picture_get_the_same_noise() -> None:
    model = tiny("qwen2_5_vl")
    config = model.model.config
    inputs = ask(model, *ROWS)
    vision = config.vision_config
    shape = (-1, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    x = inputs["pixel_values"].view(shape)
    assert vision.temporal_patch_size == 2 and torch.equal(x[:, :, 0], x[:, :, 1])
    new = noised(inputs, config, 500, 0)["pixel_values"].view(shape)
    assert torch.equal(new[:, :, 0], new[:, :, 1])
    clip = {
        "pixel_values_videos": inputs["pixel_values"],
        "video_grid_thw": inputs["image_grid_thw"],
    }
    frames = noised(clip, config, 500, 0)["pixel_values_videos"].view(shape)
    assert not torch.equal(frames[:, :, 0], frames[:, :, 1])


# -- ICD's words --------------------------------------------------------------------------------


def told(model: Tiny, inputs: dict[str, Any], **fields: Any) -> list[str]:
    """Prompts under the disturbance, as text."""
    host = find_host(model.model, model.processor)
    words = Words.of(ICD(prefix="be vague.", **fields), host)
    image = model.expected_image_columns(inputs).tolist()
    found = words.disturb(inputs, [row.index(True) if True in row else -1 for row in image])
    rows = zip(found["input_ids"], found["attention_mask"], strict=True)
    assert len({tuple(v.shape) for k, v in found.items() if k.endswith(("ids", "mask"))}) == 1
    tokenizer = model.processor.tokenizer
    return [" ".join(tokenizer.convert_ids_to_tokens(ids[mask.bool()])) for ids, mask in rows]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_disturbance_stands_before_the_picture_or_in_place_of_what_is_there(
    family: str,
) -> None:
    model = tiny(family)
    tokenizer = model.processor.tokenizer
    inputs = ask(model, *ROWS)
    words = " ".join(
        tokenizer.convert_ids_to_tokens(tokenizer("be vague.", add_special_tokens=False).input_ids)
    )
    plain = [
        " ".join(tokenizer.convert_ids_to_tokens(ids[mask.bool()]))
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    for text, before in zip(told(model, inputs), plain, strict=True):
        head, tail = text.split(words + " ")
        assert head + tail == before
        opening = tail.split()[0]
        special = {tokenizer.convert_ids_to_tokens(i) for i in tokenizer.all_special_ids}
        assert opening in special  # The picture, or what opens it.
    for text, before in zip(told(model, inputs, place="instead"), plain, strict=True):
        head, tail = text.split(words)
        assert before.endswith(tail[1:]) and len(head.split()) <= 1


# -- M3ID's and DoLa's numbers ------------------------------------------------------------------


def test_tokens_are_numbered_from_the_last_question_on() -> None:
    kinds = [
        [Kind.PAD, Kind.IMAGE, Kind.QUESTION, Kind.GENERATED, Kind.QUESTION, Kind.GENERATED],
        [Kind.IMAGE, Kind.QUESTION, Kind.QUESTION, Kind.QUESTION, Kind.QUESTION, Kind.QUESTION],
    ]
    read = torch.tensor(kinds, dtype=torch.int8)
    tokens = TokenMap(read, torch.full(read.shape, -1, dtype=torch.int16), generated=3)
    pass_ = Pass(tokens, 6, 3, 1, True, 3, torch.device("cpu"), PromptMasks(tokens))
    assert token_numbers(pass_, 3).tolist() == [[3, 4, 5], [2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "n_layers", "tied", "first", "last"),
    [
        ("low", 32, False, 0, 14), ("high", 32, False, 16, 30), ("low", 40, False, 0, 18),
        ("high", 40, False, 20, 38), ("low", 60, False, 0, 18), ("high", 60, False, 40, 58),
        ("low", 80, False, 0, 18), ("high", 80, False, 60, 78), ("low", 32, True, 2, 14),
        ("low", 3, False, 0, 0), ("low", 3, True, 2, 2),
    ],
)  # fmt: skip
def test_dola_s_buckets_are_its_code_s(
    name: str, n_layers: int, tied: bool, first: int, last: int
) -> None:
    assert list(_bucket(name, n_layers, tied)) == list(range(first, last + 1, 2))


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("vcd:step=1000", "step holds 1000, but the noise schedule has 1000"),
        ("vcd:step=0.5", "step must hold whole numbers"),
        ("vcd:beta=1.5", r"beta must be a finite number in \[0, 1\]"),
        ("vcd:alpha=-1", "alpha must be"),
        ("vcd:seed=-1", "seed must be a whole number"),
        ("icd:prefix=", "prefix must be a text"),
        ("icd:place=after", "unknown place"),
        ("icd:combine=man", "did you mean mean"),
        ("icd:noise=-1", "noise holds -1"),
        ("avisc:gamma=1.1", "gamma must be"),
        ("avisc:scheme=zero", "did you mean zeros"),
        ("m3id:rate=2", "rate must be"),
        ("dola:candidates=lo", "did you mean low"),
        ("dola:candidates=[]", "candidates must be"),
        ("dola:candidates=3", "candidates must be"),
        ("dola:divergence=js", "did you mean jsd"),
        ("dola:rho=2", "rho must be"),
    ],
)
def test_fields_out_of_their_domain_raise(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse(text)


def test_what_a_model_cannot_do_raises_at_attach() -> None:
    model = tiny("llava").model
    with pytest.raises(ValueError, match="candidates holds 3, but this llava has 3"):
        attach(model, DoLa(candidates=(0, 3)))
    with pytest.raises(ValueError, match="processor=processor"):
        attach(model, ICD())
    with pytest.raises(ValueError, match="attach to the whole model"):
        attach(model.model, DoLa())
    model.config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(ValueError, match="final_logit_softcapping"):
            attach(model, DoLa())
    finally:
        del model.config.final_logit_softcapping


def test_a_picture_s_features_are_no_pixels() -> None:
    with pytest.raises(ValueError, match="not its features"):
        noised({"input_ids": torch.ones(1, 3)}, None, 500, 0)
