"""CARVE's passes: what they read, what they share, and what they can't do."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Tiny, tiny

from regaze.hooks import attach, capture
from regaze.hooks.capture import Capture, Rowset
from regaze.hooks.grids import grid_size, patch_grid
from regaze.hooks.text_capture import _Seen
from regaze.hooks.tokens import TokenMap
from regaze.interventions import CARVE, VAF, VHR, look_closer
from regaze.interventions.lvlm.carve_reading import Looker, Reading, patch_attention

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
OTHERS = ("llava_onevision", "gemma3", "paligemma", "mistral3", "smolvlm", "idefics3")
QUESTION, TOKENS = "where is the dog?", 3
SPEC = CARVE(layers=(1, 2), max_new_tokens=TOKENS)


def looker(model: Tiny, spec: CARVE = SPEC) -> Looker:
    return Looker(model.model, model.processor, spec)


@torch.no_grad()
def literal(model: Tiny, image: Image.Image, question: str) -> np.ndarray[Any, Any]:
    """The paper's loop: no cache, eager maps of everything, the whole prompt at each token."""
    inputs = model.inputs([question], [[image]])
    columns = model.expected_image_columns(inputs)[0].nonzero().flatten()
    grid = patch_grid(model.model.config, len(columns), grid_size(inputs, 0))
    assert grid is not None
    steps = []
    for _ in range(TOKENS):
        out = model.model(**inputs, use_cache=False, output_attentions=True)
        rows = torch.stack([out.attentions[layer][0, :, -1].mean(0) for layer in (1, 2)])
        steps.append(rows[:, columns[grid]])
        new = out.logits[:, -1:].argmax(-1)
        added = {"input_ids": new, "attention_mask": new * 0 + 1, "mm_token_type_ids": new * 0}
        for name, value in added.items():
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], value.to(inputs[name])], 1)
    return torch.stack(steps).numpy()


@pytest.mark.parametrize("size", [(24, 24), (56, 28)])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_the_papers_loop(family: str, size: tuple[int, int]) -> None:
    eager = tiny(family, attn_implementation="eager")
    model = tiny(family)
    image = model.picture(1, size)
    read = looker(model).read(image, QUESTION, TOKENS)
    want = literal(eager, image, QUESTION)
    assert read.attention.shape == want.shape
    np.testing.assert_allclose(read.attention, want, atol=1e-5)


@pytest.mark.parametrize("family", (*FAMILIES, *OTHERS))
def test_it_looks_closer_on_every_family_at_a_picture_that_is_no_square(family: str) -> None:
    model = tiny(family)
    image = model.picture(2, (56, 28))
    layers = (1, 3) if family == "gemma3" else (1, 2)  # gemma3: full attention
    closer = look_closer(
        model.model, model.processor, image, QUESTION, CARVE(layers=layers, max_new_tokens=3)
    )
    assert closer.contrast.shape == closer.mask.shape == (28, 56)
    assert 0 < closer.mask.mean() <= 0.25
    left, top, right, bottom = closer.box
    assert 0 <= left < right <= 56 and 0 <= top < bottom <= 28
    assert closer.before
    assert closer.answer(max_new_tokens=2) == closer.answer(max_new_tokens=2)


def test_grids_follow_the_picture_and_not_a_square() -> None:
    model = tiny("qwen2_vl")
    rows, columns = looker(model).read(model.picture(0, (56, 28)), QUESTION, 1).attention.shape[2:]
    assert columns == 2 * rows + 1 or columns == 2 * rows
    tiles = tiny("llava_next")
    shape = looker(tiles).read(tiles.picture(0, (56, 28)), QUESTION, 1).attention.shape[2:]
    assert shape == (3, 6)  # of the tiles, not of the small whole picture


def test_the_answer_is_what_the_model_says_to_what_is_shown() -> None:
    model = tiny("internvl")
    image = model.picture(0, (40, 40))
    for shown, count in (("refined", 1), ("both", 2)):
        spec = CARVE(layers=(1, 2), max_new_tokens=2, shown=shown)  # type: ignore[arg-type]
        closer = looker(model, spec)(image, QUESTION)
        inputs = model.inputs([QUESTION], [list(closer.shown)])
        new = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:]
        assert len(closer.shown) == count
        assert closer.answer(max_new_tokens=4) == model.processor.decode(new).strip()


def test_the_general_question_is_read_once_per_picture_and_no_further_than_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llava")
    closer = looker(model)
    asked: list[tuple[str, int]] = []
    read = closer.read

    def note(image: Image.Image, question: str, tokens: int) -> Reading:
        asked.append((question, tokens))
        return read(image, question, tokens)

    monkeypatch.setattr(closer, "read", note)
    for picture in (1, 1, 2):
        closer(model.picture(picture), QUESTION)
    general = (SPEC.general, TOKENS)
    assert asked == [(QUESTION, 3), general, (QUESTION, 3), (QUESTION, 3), general]


def test_the_vision_tower_reads_a_picture_once_for_both_readings() -> None:
    model, seen = tiny("qwen2_5_vl", fresh=True), []
    handle = model.model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    keys = set(vars(model.model.model))
    closer = looker(model)(model.picture(0), QUESTION)
    assert len(seen) == 1
    assert set(vars(model.model.model)) == keys
    handle.remove()
    assert (
        closer.before
        == look_closer(model.model, model.processor, model.picture(0), QUESTION, SPEC).before
    )


def test_a_reading_knows_whether_its_answer_ended_by_itself() -> None:
    model = tiny("llava", fresh=True)
    image = model.picture(0)
    reads = looker(model)
    cut = reads.read(image, QUESTION, TOKENS)
    assert not cut.ended and cut.suffices(TOKENS) and not cut.suffices(TOKENS + 1)
    inputs = reads.inputs(QUESTION, (image,))
    made = model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    for ends in (int(made[0, -1]), [int(made[0, -1]), 1]):
        model.model.generation_config.eos_token_id = ends
        ended = reads.read(image, QUESTION, TOKENS)
        assert ended.ended and len(ended.attention) < TOKENS and ended.suffices(TOKENS + 1)


@pytest.mark.parametrize("offset", [0, 2])
def test_patches_are_found_where_a_window_has_moved_on(offset: int) -> None:
    # Columns: 3 of text, 4 patches, 1 of text; the first two have left the window, or none has.
    kinds = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 4]], dtype=torch.int8)
    images = torch.where(kinds == 2, 0, -1).to(torch.int16)
    seen = Capture(tiny("llava").model.config, "last", "mean")
    whole = torch.arange(8.0)
    rowset = Rowset(
        layer=0,
        rows=torch.tensor([[7]]),
        valid=torch.tensor([[True]]),
        weights=whole[None, None, None, offset:],
        offset=offset,
    )
    seen.begin(_Seen({}, 1, TokenMap(kinds, images), [rowset]))
    found = patch_attention(seen, 1, 0, {"input_ids": kinds})
    assert found.tolist() == [[[[3.0, 4.0], [5.0, 6.0]]]]
    np.testing.assert_array_equal(seen.heat(), found[0, 0])


def test_of_the_rows_that_another_method_edits_the_last_is_read() -> None:
    model = tiny("llava")
    reads = looker(model)
    inputs = reads.inputs(QUESTION, (model.picture(0),))
    with attach(model.model, VAF(layers=(0, 1))), capture(model.model, heads="mean") as seen:
        model.model(**inputs)
    found = patch_attention(seen, 1, 0, inputs)
    columns = seen.grid()
    for layer, one in enumerate(seen.captured):
        assert one.valid.sum() == 1
        last = one.weights[0, 0][one.valid[0]][0]
        np.testing.assert_array_equal(found[0, layer], last[columns].numpy())
    assert seen.captured[0].weights.shape[2] > 1


def test_reading_leaves_no_trace_and_sees_what_is_attached() -> None:
    model = tiny("llava", fresh=True)
    image, implementation = model.picture(0), model.model.config._attn_implementation
    plain = looker(model).read(image, QUESTION, TOKENS)
    with attach(model.model, VHR(alpha=3, layers=(0, 1, 2))) as run:
        edited = looker(model).read(image, QUESTION, TOKENS)
    assert run.report().fired
    assert np.abs(edited.attention - plain.attention).max() > 1e-3
    again = looker(model).read(image, QUESTION, TOKENS)
    assert (again.attention == plain.attention).all()
    assert model.model.config._attn_implementation == implementation


def test_no_map_is_kept_only_the_mean_row_of_chosen_layers() -> None:
    model = tiny("llava")
    with capture(model.model, "last", [1], heads="mean") as seen:
        model.model.generate(
            **model.inputs([QUESTION], [[model.picture(0)]]), max_new_tokens=3, do_sample=False
        )
    assert [tuple(one.weights.shape[:3]) for one in seen.captured] == [(1, 1, 1)] * 3
    with pytest.raises(ValueError, match='indices or "mean"'):
        capture(model.model, heads="median")  # type: ignore[arg-type]


def test_several_pictures_raise() -> None:
    model = tiny("llava")
    pictures: Any = [model.picture(0), model.picture(1)]
    with pytest.raises(TypeError, match="one PIL image, got list"):
        looker(model)(pictures, QUESTION)


def test_the_general_question_itself_raises() -> None:
    model = tiny("llava")
    with pytest.raises(ValueError, match="is CARVE's general question"):
        looker(model)(model.picture(0), SPEC.general)


def test_a_prompt_that_brings_its_own_picture_raises() -> None:
    model = tiny("llava")
    inputs = model.inputs([QUESTION], [[model.picture(0), model.picture(1)]])
    with capture(model.model, "last", [1], heads="mean") as seen, torch.no_grad():
        model.model(**inputs)
    with pytest.raises(ValueError, match="one image, and this prompt has 2"):
        patch_attention(seen, 1, 0, inputs)


def test_a_grid_that_cannot_be_known_raises() -> None:
    model = tiny("qwen2_vl")
    inputs = model.inputs([QUESTION], [[model.picture(0)]])
    with capture(model.model, "last", [1], heads="mean") as seen, torch.no_grad():
        model.model.generate(**inputs, max_new_tokens=1)
    with pytest.raises(ValueError, match="can't be known"):
        patch_attention(seen, 1, 0, {"input_ids": inputs["input_ids"]})


def test_models_without_patches_and_processors_without_template_raise() -> None:
    blip = tiny("instructblip")
    with pytest.raises(ValueError, match="resampler"):
        looker(blip)
    llava = tiny("llava")
    silent = copy.copy(llava.processor)
    silent.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Looker(llava.model, silent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = tiny("qwen2_vl", dtype=dtype)
    read = looker(model).read(model.picture(0), QUESTION, TOKENS)
    assert read.attention.dtype == np.float32
    assert np.isfinite(read.attention).all()
