"""The fused forms give what editing explicit attention maps gives, in prompts and in decoding."""

from __future__ import annotations

import pytest
import torch
from asking import LONG, SHORT, Row, answer, ask, assert_literal, decoded, literally
from matrix import ALL, EDITS, pairs
from methods import LAYERS, SINKS, Method
from tiny import FAMILIES, tiny

from regaze.hooks import attach
from regaze.interventions import PAI, VAF, VAR, VHR

FEW = ("llava", "qwen2_vl", "gemma3")  # MHA; GQA and M-RoPE; GQA, sliding and bidirectional
PAIRED = tuple(family for family in FAMILIES if family not in ("instructblip", "mllama"))


@pairs(*EDITS)
def test_fused_edits_equal_edited_maps(family: str, method: Method) -> None:
    model = tiny(family)
    assert_literal(model, ask(model, (SHORT, [0])), method.acts)


@pairs(families=("llava", "qwen2_vl"))
def test_a_picture_at_the_very_end_equals_edited_maps_or_raises(
    family: str, method: Method
) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    ids = inputs["input_ids"]
    end = int((ids[0] == model.image_token_id).nonzero().max()) + 1
    begun = {k: v[:, :end] if v.shape == ids.shape else v for k, v in inputs.items()}
    if method.decides == "prediction":
        # What entered the tower there isn't the token's embedding.
        with (
            attach(model.model, method.acts, processor=model.processor),
            pytest.raises(NotImplementedError, match="ends with its picture: put text behind it"),
        ):
            decoded(model, begun)
        return
    with attach(model.model, method.acts, processor=model.processor) as attached:
        edited = decoded(model, begun)
    with literally(model, begun, attached.specs):
        literal = decoded(model, begun)
    for got, want in zip(edited, literal, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(literal[0].std()))


@pairs("vaf", "var", families=PAIRED)
def test_several_images_equal_edited_maps(family: str, method: Method) -> None:
    model = tiny(family)
    assert_literal(model, ask(model, (SHORT, [0, 1])), method.acts)


@pairs(families=FEW)
def test_edits_over_eager_attention_equal_edited_maps(family: str, method: Method) -> None:
    model = tiny(family, attn_implementation="eager")
    assert_literal(model, ask(model, (SHORT, [1])), method.acts)


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("order", [("pai", "vaf"), ("vaf", "pai"), ("var", "pai"), ("pai", "var")])
def test_row_edits_act_on_logits_in_the_order_given(family: str, order: tuple[str, str]) -> None:
    model = tiny(family)
    assert_literal(model, ask(model, (SHORT, [0])), *(EDITS[name].acts for name in order))


@torch.no_grad()
def test_the_order_of_row_edits_matters() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    results = []
    for order in (("vaf", "var"), ("var", "vaf")):
        with attach(model.model, *(EDITS[name].acts for name in order)):
            results.append(model.model(**inputs).logits[0, -1])
    assert (results[0] - results[1]).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "paligemma"])
def test_head_scaling_and_row_edits_compose(family: str) -> None:
    model = tiny(family)
    specs = VHR(layers=LAYERS), VAR(rho=0.45, p=0.8, **SINKS), PAI(alpha=0.5, layers=(1, 2))
    assert_literal(model, ask(model, (LONG, [1])), *specs)


@pytest.mark.parametrize("method", ["vhr", "var"])
def test_head_scaling_within_the_sliding_window_equals_edited_maps(method: str) -> None:
    model = tiny("gemma3", fresh=True)
    model.model.config.text_config.sliding_window = 64  # the prompt has 27 columns
    for layer in model.model.get_decoder().layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 64
    assert_literal(model, ask(model, (SHORT, [0])), EDITS[method].acts)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_extremes_equal_edited_maps(size: float) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    assert_literal(model, inputs, VAF(enhance=2 * size, suppress=0, layers=LAYERS))
    assert_literal(model, inputs, PAI(alpha=-1 + 3 * size, layers=LAYERS))
    if size:
        assert_literal(model, inputs, VAR(rho=0.45, p=1, **SINKS))
        assert_literal(model, inputs, VHR(alpha=0, layers=LAYERS))


@pytest.mark.parametrize("name", ["headscale", "spin-text", "var", "gift"])
@pytest.mark.parametrize("bias", ["pasta", "highlight"])
def test_rows_that_others_compute_have_the_bias_of_all_rows(name: str, bias: str) -> None:
    model = tiny("llava")
    assert_literal(model, ask(model, (SHORT, [0])), ALL[bias].acts, ALL[name].acts)


@pytest.mark.parametrize(
    "names",
    [
        ("vaf", "ilvad"), ("ilvad", "vaf"), ("gift", "pai"), ("gift-late", "pai"),
        ("pai", "gift-late"), ("avar-probs", "pai"), ("ilvad", "vaf", "icd"),
        ("paint", "gift", "var"), ("vhr", "adaptvis"), ("gift-late", "vhr"), ("ilvad", "gift"),
        ("columnscale", "pai"), ("columnscale", "avar"), ("spin", "columnscale-hide"),
        ("pasta-code", "adaptvis"), ("gift-late", "pasta-code"), ("highlight-probability", "ilvad"),
        ("paint", "paint-heads"),
    ],
    ids="+".join,
)  # fmt: skip
def test_what_one_method_leaves_is_what_the_next_one_finds(names: tuple[str, ...]) -> None:
    model = tiny("llava")
    assert_literal(model, ask(model, (SHORT, [0])), *[ALL[name].acts for name in names])


@pytest.mark.parametrize("names", [("ilvad", "var"), ("var", "ilvad")], ids="+".join)
def test_a_row_that_runs_again_counts_as_a_sink_by_what_it_has_become(
    names: tuple[str, ...],
) -> None:
    model, specs = tiny("qwen2_vl"), [ALL[name].acts for name in names]
    rows: list[Row] = [(SHORT, [0]), (LONG, [1])]
    assert_literal(model, ask(model, rows[0]), *specs)
    batch = answer(model, ask(model, *rows), *specs)
    assert batch == [answer(model, ask(model, row), *specs)[0] for row in rows]
