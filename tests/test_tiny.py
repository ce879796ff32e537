"""The tiny models behave as their big siblings do, so tests on them mean something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FAMILIES, Tiny, tiny
from torch import Tensor

CANNOT = {
    ("instructblip", "two images"): "its processor takes exactly one image per prompt",
    ("instructblip", "text only"): "its forward always runs the Q-Former on an image",
    ("instructblip", "padded forward"): (
        "padding stands between image and text, where a plain forward counts it as positions"
    ),
    ("paligemma", "text only"): "its processor refuses a prompt without image",
    (
        "mllama",
        "mixed batch",
    ): "a batch runs cross-attention layers that a text-only prompt skips",
}

Prompt = tuple[str, list[int]]  # the text and the seeds of its images
SHORT, LONG = "is there a dog?", "please describe this picture in detail, word for word."


def families(*abilities: str) -> list[object]:
    """All families; those that cannot do one of the named things are skipped, saying why."""

    def param(family: str) -> object:
        why = "; ".join(CANNOT[family, a] for a in abilities if (family, a) in CANNOT)
        return pytest.param(family, marks=pytest.mark.skipif(bool(why), reason=f"{family}: {why}"))

    return [param(family) for family in FAMILIES]


def inputs(model: Tiny, *prompts: Prompt) -> dict[str, Tensor]:
    """Inputs with images of several shapes."""
    images = [[model.picture(seed, (40 + 8 * seed, 28)) for seed in seeds] for _, seeds in prompts]
    return model.inputs([text for text, _ in prompts], images if any(images) else None)


@torch.no_grad()
def logits(model: Tiny, *prompts: Prompt) -> Tensor:
    output: Tensor = model.model(**inputs(model, *prompts)).logits
    return output


def answers(model: Tiny, *prompts: Prompt) -> list[list[int]]:
    generated = model.model.generate(**inputs(model, *prompts), max_new_tokens=5, do_sample=False)
    ids: list[list[int]] = generated[:, -5:].tolist()
    return ids


def assert_rows_as_alone(model: Tiny, *prompts: Prompt) -> None:
    for together, prompt in zip(logits(model, *prompts), prompts, strict=True):
        alone = logits(model, prompt)[0]
        torch.testing.assert_close(together[-len(alone) :], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", families())
def test_logits_are_finite_and_depend_on_image_and_text(family: str) -> None:
    model = tiny(family)
    here, other_image, other_text = (
        logits(model, prompt)[0, -1] for prompt in [(SHORT, [0]), (SHORT, [1]), (LONG, [0])]
    )
    assert here.isfinite().all()
    assert (here - other_image).abs().max() > 0.1
    assert (here - other_text).abs().max() > 0.1


@pytest.mark.parametrize("family", families("padded forward"))
def test_a_left_padded_batch_gives_each_row_what_it_gives_alone(family: str) -> None:
    assert_rows_as_alone(tiny(family), (SHORT, [0]), (LONG, [1]))


@pytest.mark.parametrize("family", families("text only", "mixed batch"))
def test_a_row_without_image_may_stand_in_a_batch(family: str) -> None:
    assert_rows_as_alone(tiny(family), (SHORT, []), (LONG, [0]))


@pytest.mark.parametrize("family", families())
def test_a_left_padded_batch_generates_what_each_row_generates_alone(family: str) -> None:
    model, prompts = tiny(family), [(SHORT, [0]), (LONG, [1])]
    assert answers(model, *prompts) == [answers(model, prompt)[0] for prompt in prompts]


@pytest.mark.parametrize("family", families())
def test_eager_attention_equals_sdpa(family: str) -> None:
    sdpa, eager = (
        logits(tiny(family, attn_implementation=name), (SHORT, [0]), (LONG, [1]))[:, -1]
        for name in ("sdpa", "eager")
    )
    torch.testing.assert_close(eager, sdpa, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", families("two images"))
def test_a_prompt_may_have_two_images(family: str) -> None:
    model = tiny(family)
    in_order, swapped = (logits(model, (SHORT, seeds))[0, -1] for seeds in ([0, 1], [1, 0]))
    assert (in_order - swapped).abs().max() > 1e-3
    assert len(answers(model, (SHORT, [0, 1]))[0]) == 5


@pytest.mark.parametrize("family", families("text only"))
def test_a_prompt_may_have_no_image(family: str) -> None:
    model = tiny(family)
    assert not model.expected_image_columns(inputs(model, (SHORT, []))).any()
    assert logits(model, (SHORT, [])).isfinite().all()
    assert len(answers(model, (SHORT, []))[0]) == 5


@torch.no_grad()
def image_embeddings(model: Tiny, picture: Image.Image) -> Tensor:
    """The text tower's input at the image columns, (columns, hidden)."""
    batch = model.inputs([SHORT], [[picture]])
    read: list[Tensor] = []
    hook = model.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model.model(**batch)
    hook.remove()
    return read[0][model.expected_image_columns(batch)]


@pytest.mark.parametrize(
    ("family", "rows", "cols"),
    [
        ("llava", 3, 3),
        ("internvl", 3, 3),
        ("gemma3", 3, 3),
        ("paligemma", 3, 3),
        ("qwen2_vl", 3, 4),
        ("qwen2_5_vl", 3, 4),
        ("qwen3_vl", 3, 4),
        ("mistral3", 3, 4),
    ],
)
def test_the_grid_tells_which_column_sees_which_patch(family: str, rows: int, cols: int) -> None:
    model = tiny(family)
    picture = model.picture(0, (8 * cols, 8 * rows))
    assert model.grid(model.inputs([SHORT], [[picture]])) == (rows, cols)
    before = image_embeddings(model, picture)
    for row, col in [(0, cols - 1), (rows - 1, 0)]:
        pixels = np.array(picture)
        pixels[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] ^= 255
        after = image_embeddings(model, Image.fromarray(pixels))
        assert (after - before).norm(dim=-1).argmax() == row * cols + col


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "smolvlm", "idefics3"])
def test_tiles_are_no_grid(family: str) -> None:
    model = tiny(family)
    batch = inputs(model, (SHORT, [0]))
    assert model.expected_image_columns(batch).sum() > 9
    assert model.grid(batch) is None


@torch.no_grad()
def attention(family: str, layer: int) -> Tensor:
    """Attention of one prompt in one layer, (heads, T, T)."""
    model = tiny(family, attn_implementation="eager")
    batch = inputs(model, (LONG, [0]))
    rows: Tensor = model.model(**batch, output_attentions=True).attentions[layer][0]
    return rows


def test_gemma3_layers_alternate_between_a_short_window_and_all_columns() -> None:
    sliding, full = attention("gemma3", 0)[:, -1], attention("gemma3", 1)[:, -1]
    assert torch.equal(sliding.any(dim=0), torch.arange(sliding.shape[-1]) >= sliding.shape[-1] - 8)
    assert full.all()


@pytest.mark.parametrize(("family", "layer"), [("gemma3", 1), ("paligemma", 0)])
def test_gemma_images_see_their_later_columns(family: str, layer: int) -> None:
    model = tiny(family)
    columns = model.expected_image_columns(inputs(model, (LONG, [0])))[0].nonzero()[:, 0]
    assert (attention(family, layer)[:, columns[0], columns[-1]] > 0).all()


@pytest.mark.parametrize("family", families())
def test_models_are_shared_unless_fresh_and_depend_on_the_seed_alone(family: str) -> None:
    model, fresh, other = tiny(family), tiny(family, fresh=True), tiny(family, seed=1)
    assert tiny(family) is model
    assert fresh.model is not model.model
    expected = logits(model, (SHORT, [0]))
    assert torch.equal(logits(fresh, (SHORT, [0])), expected)
    assert not torch.equal(logits(other, (SHORT, [0])), expected)


@pytest.mark.parametrize("family", families())
def test_half_precision_runs_on_the_same_weights(family: str) -> None:
    full, half = tiny(family), tiny(family, dtype=torch.bfloat16)
    assert logits(half, (SHORT, [0])).dtype == torch.bfloat16
    weights = dict(full.model.named_parameters())
    for name, weight in half.model.named_parameters():
        assert torch.equal(weight, weights[name].to(weight.dtype)), name


@pytest.mark.parametrize("family", families())
def test_words_out_of_the_vocabulary_are_spelled(family: str) -> None:
    tokenizer = tiny(family).processor.tokenizer
    ids = tokenizer("zebra quagga", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "zebra quagga"
