"""Captured rows are the model's own attention, and looking changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import EDITS
from tiny import FAMILIES, Tiny, tiny
from tiny_parts import SIDE
from torch import Tensor

from regaze.hooks import attach, capture

FEW = ("llava", "qwen2_vl", "gemma3", "paligemma", "mistral3")
WITH_COLUMNS = tuple(family for family in FAMILIES if family != "mllama")


def maps(family: str, inputs: dict[str, Any]) -> Tensor:
    """The model's attention "L B H Q K", from the eager implementation."""
    eager = tiny(family, attn_implementation="eager")
    with torch.no_grad():
        return torch.stack(eager.model(**inputs, output_attentions=True).attentions)


def look(model: Tiny, inputs: dict[str, Any], **options: Any) -> Any:
    with capture(model.model, processor=model.processor, **options) as seen, torch.no_grad():
        model.model(**inputs)
    return seen


@pytest.mark.parametrize("rows", ["last", "question", "text"])
@pytest.mark.parametrize("family", FEW)
def test_captured_rows_are_rows_of_the_eager_maps(family: str, rows: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    seen, want = look(model, inputs, rows=rows), maps(family, inputs)
    assert [one.layer for one in seen.captured] == list(range(len(want)))
    for one in seen.captured:
        for sample in range(2):
            picked = one.rows[sample][one.valid[sample]]
            expected = want[one.layer, sample][:, picked]
            found = one.weights[sample][:, one.valid[sample]]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert len(picked) == 1 if rows == "last" else len(picked) > 5
            assert int(picked[-1]) == inputs["input_ids"].shape[1] - 1


@pytest.mark.parametrize("family", FEW)
def test_looking_changes_no_bit(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    want = logits(model, inputs)
    with capture(model.model, rows="text"), torch.no_grad():
        assert torch.equal(model.model(**inputs).logits, want)
    assert torch.equal(logits(model, inputs), want)


@pytest.mark.parametrize("name", ["pai", "vaf", "var", "vhr"])
def test_what_is_seen_is_what_the_attached_edits_leave(name: str) -> None:
    model, eager = tiny("llava"), tiny("llava", attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]))
    with attach(eager.model, EDITS[name].acts), torch.no_grad():
        want = torch.stack(eager.model(**inputs, output_attentions=True).attentions)
    with attach(model.model, EDITS[name].acts), capture(model.model) as seen, torch.no_grad():
        got = model.model(**inputs).logits
    for one in seen.captured:
        (row,) = one.valid[0].nonzero().flatten().tolist()
        torch.testing.assert_close(
            one.weights[0, :, row], want[one.layer, 0, :, -1], rtol=0, atol=1e-5
        )
    assert torch.equal(got, logits(model, inputs, EDITS[name].acts))


@pytest.mark.parametrize("family", FEW)
def test_layers_and_heads_can_be_chosen(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    seen = look(model, inputs, layers=[1], heads=[2, 0])
    (one,) = seen.captured
    want = maps(family, inputs)[1, 0, :, -1]
    assert one.layer == 1
    torch.testing.assert_close(one.weights[0, :, 0], want[[0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in WITH_COLUMNS if f != "instructblip"])
def test_mass_is_a_distribution_over_columns(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    mass = look(model, inputs).mass()
    want = maps(family, inputs)[:, 0, :, -1].mean((0, 1))
    torch.testing.assert_close(mass, want, rtol=0, atol=1e-5)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-5)


def test_generated_rows_are_seen_too() -> None:
    model = tiny("gemma3")  # sliding layers keep fewer keys than there are columns
    inputs = ask(model, (SHORT, [0]))
    with capture(model.model, rows="last") as seen:
        model.model.generate(**inputs, max_new_tokens=4)
    length = inputs["input_ids"].shape[1]
    assert [int(one.rows[0, 0]) for one in seen.captured[::4]] == [
        length - 1 + step for step in range(4)
    ]
    mass = seen.mass()
    assert len(mass) == length + 3
    assert float(mass.sum()) == pytest.approx(1, abs=1e-5)
    assert mass[-1] > 0


@pytest.mark.parametrize(
    "family",
    [f for f in WITH_COLUMNS if f not in ("instructblip", "llava_next", "llava_onevision")],
)
def test_the_heat_of_an_image_is_its_columns_on_the_models_grid(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    seen = look(model, inputs)
    for sample in range(2):
        columns = model.expected_image_columns(inputs)[sample].nonzero().flatten()
        heat = seen.heat(sample)
        mass = seen.mass(sample)[columns].numpy()
        assert heat.ndim == 2
        # Models with tiles show the small picture that is added last.
        np.testing.assert_allclose(heat.flatten(), mass[-heat.size :])


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(40, 28), (28, 60), (48, 48), (70, 24)])
def test_the_heat_of_unpadded_tiles_leaves_out_row_ends(family: str, size: tuple[int, int]) -> None:
    model = tiny(family)
    inputs = model.inputs([SHORT], [[model.picture(0, size)]])
    seen = look(model, inputs)
    heat = seen.heat()
    columns = model.expected_image_columns(inputs)[0].nonzero().flatten()
    rows, cols = heat.shape
    assert len(columns) == SIDE**2 + rows * (cols + 1)
    tiles = seen.mass()[columns][SIDE**2 :].reshape(rows, cols + 1)
    np.testing.assert_allclose(heat, tiles[:, :-1].numpy())
    assert (rows < cols) == (size[1] < size[0])


def test_each_of_several_images_has_its_own_heat() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0, 2]), (LONG, [1]))
    seen = look(model, inputs)
    grids = [(int(h) // 2, int(w) // 2) for _, h, w in inputs["image_grid_thw"]]
    assert [seen.heat(*at).shape for at in ((0, 0), (0, 1), (1, 0))] == grids
    columns = model.expected_image_columns(inputs)[0].nonzero().flatten()
    both = np.concatenate([seen.heat(0, image).flatten() for image in (0, 1)])
    np.testing.assert_allclose(both, seen.mass(0)[columns].numpy())


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "mistral3"])
def test_the_grid_of_each_image_is_that_which_it_has_alone(family: str) -> None:
    model = tiny(family)
    rows = (SHORT, [0, 2, 1]), (LONG, [3, 0])
    seen = look(model, ask(model, *rows), rows="last")
    sizes = set()
    for sample, (_, pictures) in enumerate(rows):
        images = [seen.grid(sample, image) for image in range(len(pictures))]
        columns = torch.cat([grid.flatten() for grid in images]).tolist()
        assert columns == sorted(set(columns))  # one image after the other, no column in two
        for number, (grid, picture) in enumerate(zip(images, pictures, strict=True)):
            alone = look(model, ask(model, (SHORT, [picture])), rows="last")
            own, run = alone.grid(), alone.tokens.image_columns(0, 0)
            place = seen.tokens.image_columns(sample, number)
            assert torch.equal(grid - place[0], own - run[0])
            sizes.add(tuple(grid.shape))
    assert len(sizes) > 1


def test_a_new_prompt_replaces_the_one_before() -> None:
    model = tiny("llava")
    with capture(model.model) as seen, torch.no_grad():
        model.model(**ask(model, (LONG, [1])))
        model.model(**ask(model, (SHORT, [0])))
    assert torch.equal(seen.mass(), look(model, ask(model, (SHORT, [0]))).mass())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "first"}, "last.*question.*text"),
        ({"layers": [3]}, "layer 3.*0 to 2"),
        ({"layers": [-1]}, "layer -1"),
        ({"heads": [4]}, "head 4.*0 to 3"),
    ],
)
def test_what_does_not_exist_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture(tiny("llava").model, **options)


def test_a_model_whose_image_is_no_column_raises() -> None:
    with pytest.raises(ValueError, match="mllama"):
        capture(tiny("mllama").model)


def test_asking_for_what_was_not_captured_raises() -> None:
    model = tiny("llava")
    seen = look(model, ask(model, (SHORT, [0])))
    for sample, image in ((0, 1), (1, 0), (0, -1)):
        with pytest.raises(ValueError, match="there is no"):
            seen.heat(sample, image)
    with pytest.raises(ValueError, match="nothing was captured"):
        look(model, ask(model, (SHORT, []))).mass()
    with capture(model.model) as before, pytest.raises(ValueError, match="no forward pass"):
        before.mass()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])
def test_the_grid_after_generate_is_known_from_the_inputs_also_with_beams(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [2]))
    want = look(model, inputs, rows="last")
    with capture(model.model, "last", processor=model.processor) as seen:
        model.model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    for sample in (0, 1):
        for beam in (0, 1):
            grid = seen.grid(2 * sample + beam, 0, inputs)
            assert torch.equal(grid, want.grid(sample))


def test_the_mean_over_heads_is_that_of_all_heads() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]))
    every, mean = (look(model, inputs, rows="last", heads=heads) for heads in (None, "mean"))
    for one, other in zip(every.captured, mean.captured, strict=True):
        assert other.weights.shape[1] == 1
        torch.testing.assert_close(other.weights, one.weights.mean(1, keepdim=True))
