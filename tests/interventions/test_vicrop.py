"""ViCrop: a box about what a question looks at, shown beside the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import as_deep, tiny

import regaze
from regaze.hooks.host import find_host
from regaze.interventions import ViCrop, look_closer, parse
from regaze.interventions.lvlm.carve_reading import Looker
from regaze.interventions.lvlm.vicrop_maps import crop_box, fine_detail, relative_map, tile_boxes


def spot(rows: int, cols: int, y: int, x: int) -> np.ndarray:  # type: ignore[type-arg]
    found = np.full((rows, cols), 0.01)
    found[y, x] = 0.5
    return found


def test_the_box_is_where_the_question_looks_and_not_where_everything_does() -> None:
    spec = ViCrop(layers=(1,), base=20)
    query = spot(10, 10, 7, 2)
    query[0, 9] = 0.9  # what it always looks at
    general = spot(10, 10, 0, 9) * 1.8
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8))
    look = spec.look(image, query[None, None], general[None, None])
    left, top, right, bottom = look.box
    assert left <= 20 and right >= 30 and top <= 70 and bottom >= 80
    assert look.shown == (image, look.crop)
    assert look.crop.size == (right - left, bottom - top)
    assert look.mask.sum() == look.crop.width * look.crop.height
    for where in ("random", "centre", "general"):
        other = ViCrop(layers=(1,), base=20, where=where)  # type: ignore[arg-type]
        moved = other.look(image, query[None, None], general[None, None])
        assert moved.box != look.box
        if where != "general":
            assert moved.crop.size == look.crop.size
    cut = spec.look(image, query[None, None], general[None, None], (10, 0, 90, 100))
    assert cut.box[0] >= 10 and cut.box[2] <= 90


def test_a_grid_that_a_box_covers_is_the_whole_picture_and_too_large_patches_raise() -> None:
    assert crop_box(np.ones((4, 4)), (30, 20), 40) == (0, 0, 30, 20)
    with pytest.raises(ValueError, match="take a larger base="):
        crop_box(np.ones((4, 4)), (4000, 3000), 224)
    with pytest.raises(ValueError, match="choose another layer"):
        relative_map(np.ones((2, 2)), np.zeros((2, 2)))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_it_looks_closer_on_a_model(family: str) -> None:
    model = tiny(family)
    image, spec = model.picture(2, (56, 42)), ViCrop(base=20)
    closer = look_closer(model.model, model.processor, image, "where is the dog?", spec)
    left, top, right, bottom = closer.box
    assert 0 <= left < right <= 56 and 0 <= top < bottom <= 42
    assert closer.crop.size == (right - left, bottom - top)
    assert closer.answer(max_new_tokens=2) == closer.answer(max_new_tokens=2)
    with pytest.raises(ValueError, match="general question"):
        look_closer(model.model, model.processor, image, spec.general, spec)
    with pytest.raises(TypeError, match="takes one PIL image"):
        look_closer(model.model, model.processor, [image, image], "where?", spec)  # type: ignore[arg-type]


def test_settings_follow_the_model() -> None:
    host = find_host(tiny("llava").model)
    assert ViCrop().resolve(as_deep(host, 32)) == ViCrop.preset("llava-1.5-7b")
    qwen = find_host(tiny("qwen2_5_vl").model)
    assert ViCrop().resolve(as_deep(qwen, 36)) == ViCrop.preset("qwen2.5-vl-3b")
    with pytest.raises(ValueError, match="one layer"):
        ViCrop(layers=(0, 1)).resolve(host)
    with pytest.raises(ValueError, match=r"regaze\.look_closer\("):
        regaze.attach(tiny("llava").model, ViCrop())
    assert set(ViCrop().controls()) == {"random box", "centre box", "general box"}
    with pytest.raises(ValueError, match="base must be"):
        parse("vicrop:base=0")
    with pytest.raises(ValueError, match="did you mean random"):
        parse("vicrop:where=rand")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_gradient_form_is_attention_times_its_gradient_on_eager_maps(family: str) -> None:
    eager, model = tiny(family, attn_implementation="eager"), tiny(family)
    image, spec = model.picture(2, (56, 42)), ViCrop(layers=(1,), form="gradient")
    read = Looker(model.model, model.processor, spec).read(image, "where is the dog?", 1)
    inputs = eager.inputs(["where is the dog?"], [[image]])
    columns = eager.expected_image_columns(inputs)[0].nonzero().flatten()
    out = eager.model(**inputs, output_attentions=True)
    maps = out.attentions[1]
    (slope,) = torch.autograd.grad(out.logits[0, -1].log_softmax(-1).max(), maps)
    wanted = (maps * slope.relu())[0, :, -1, columns].mean(0).detach()
    found = read.attention[0, 0]
    assert found.max() > 0
    # By value: how patches lie over the picture is told elsewhere.
    np.testing.assert_allclose(np.sort(found.ravel()), wanted.sort().values.numpy(), atol=1e-7)


def test_the_pixel_form_is_the_norm_of_the_gradient_by_the_picture() -> None:
    model = tiny("llava")
    spec = ViCrop(layers=(1,), base=10, form="pixels")
    looker = Looker(model.model, model.processor, spec)
    image = model.picture(2, (28, 28))
    read = looker.read(image, "where is the dog?", 1).attention[0, 0]
    inputs = looker.inputs("where is the dog?", (image,))
    inputs["pixel_values"].requires_grad_()
    score = model.model(**inputs).logits[0, -1].log_softmax(-1).max()
    (slope,) = torch.autograd.grad(score, inputs["pixel_values"])
    rows, cols, count = read.shape
    side = int(count**0.5)
    norms = slope[0].norm(dim=0).view(rows, side, cols, side).transpose(1, 2).reshape(read.shape)
    np.testing.assert_allclose(read, norms.numpy(), rtol=1e-4)
    closer = looker(image, "where is the dog?")
    assert closer.crop.size == (closer.box[2] - closer.box[0], closer.box[3] - closer.box[1])
    with pytest.raises(ValueError, match=r"takes a picture that is one tensor"):
        qwen = tiny("qwen2_vl")
        look_closer(qwen.model, qwen.processor, qwen.picture(1), "where?", spec)
    with pytest.raises(ValueError, match="flat nearly everywhere"):
        looker(Image.new("RGB", (28, 28), "red"), "where is the dog?")


def test_fine_detail_is_where_the_picture_is_busy() -> None:
    pixels = np.full((40, 40, 3), 128, np.uint8)
    pixels[:, 20:] = np.random.default_rng(0).integers(0, 255, (40, 20, 3))
    detail = fine_detail(Image.fromarray(pixels), (40, 40))
    assert detail[:, 24:].mean() > 0.7 and not detail[:, :16].any()


def test_tiles_are_read_one_by_one_and_their_maps_joined() -> None:
    model = tiny("llava")
    image = model.picture(3, (30, 2060))
    assert [len(row) for row in tile_boxes(image.size)] == [1, 1, 1]
    spec = ViCrop(layers=(1,), tiles=True)
    looker = Looker(model.model, model.processor, spec)
    found = looker.read(image, "where is the dog?", 1).attention
    alone = [
        Looker(model.model, model.processor, ViCrop(layers=(1,)))
        .read(image.crop(box), "where is the dog?", 1)
        .attention
        for ((box,),) in ([row] for row in tile_boxes(image.size))
    ]
    np.testing.assert_array_equal(found, np.concatenate(alone, 2))
    small = model.picture(3, (40, 30))
    assert spec.parts(small) == [[small]]
