"""The prompt without its images runs along, wherever the images stand, on every kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from asking import literally
from flash import use_flash
from flex import plain_flex
from methods import LAYERS
from tiny import Tiny, tiny
from torch import Tensor
from transformers import StaticCache

from regaze.hooks import attach
from regaze.hooks.host import find_host
from regaze.hooks.literal_runs import compare_prompts
from regaze.hooks.null_prompt import NullPrompt
from regaze.interventions import VHR
from regaze.interventions.lvlm import vhr

PLACES = {
    "first": "<image> is there a dog? ASSISTANT:",
    "in the middle": "<s>USER: look: <image> is there a dog? ASSISTANT:",
    "last": "<s>USER: is there a dog? <image>",
    "before one token": "<s>USER: is there a dog? <image>:",
    "twice": "<s>USER: one <image> and two <image> ASSISTANT:",
    "twice, then nothing": "<s>USER: one <image> and two <image>",
    "side by side": "<s>USER: <image><image> ASSISTANT:",
}
SPECS = {how: VHR(layers=LAYERS, null_image=how) for how in ("drop", "mask")}  # type: ignore[arg-type]
__all__ = ["plain_flex"]


def prompt(model: Tiny, *texts: str, side: str = "left") -> dict[str, Any]:
    """The inputs of prompts with pictures where the texts say."""
    token = model.processor.tokenizer.convert_ids_to_tokens(model.image_token_id)
    if model.family == "qwen2_vl":
        token = "<|vision_start|><|image_pad|><|vision_end|>"
    count, rows = 0, []
    for text in texts:
        number = text.count("<image>")
        rows.append([model.picture(count + n) for n in range(number)])
        count += number
    model.processor.tokenizer.padding_side = side
    made = model.processor(
        text=[text.replace("<image>", token) for text in texts],
        images=rows if any(rows) else None,
        padding=True,
        return_tensors="pt",
    )
    model.processor.tokenizer.padding_side = "left"
    return dict(made)


def logits(model: Tiny, inputs: dict[str, Any], *specs: Any, **options: Any) -> Tensor:
    with torch.no_grad(), attach(model.model, *specs, processor=model.processor):
        found: Tensor = model.model(**inputs, **options).logits
    return found


def literal_logits(model: Tiny, inputs: dict[str, Any], spec: VHR) -> Tensor:
    with torch.no_grad(), literally(model, inputs, [spec]):
        found: Tensor = model.model(**inputs).logits
    return found


@pytest.mark.parametrize("how", SPECS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_the_image_may_stand_anywhere(family: str, place: str, how: str) -> None:
    model = tiny(family)
    inputs = prompt(model, PLACES[place])
    got, want = logits(model, inputs, SPECS[how]), literal_logits(model, inputs, SPECS[how])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)
    assert (got - logits(model, inputs))[0, -1].abs().max() > 0.01


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", SPECS)
@pytest.mark.parametrize("base", ["sdpa", "eager", "flash", "flex_attention", "static cache"])
@pytest.mark.usefixtures("plain_flex")
def test_rows_of_a_batch_may_differ_in_all_of_this(
    base: str, how: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*PLACES.values(), "<s>USER: no picture. ASSISTANT:", "<image>"]
    own = base if base in ("eager", "flex_attention") else "sdpa"
    model = tiny("llava", attn_implementation=own, fresh=True)
    single = tiny("llava")
    if base == "flash":
        use_flash(model.model, monkeypatch)
    inputs, options = prompt(model, *texts, side=side), {}
    if base == "static cache":
        config = model.model.config.get_text_config()
        options = {"past_key_values": StaticCache(config, inputs["input_ids"].shape[1] + 3)}
    got = logits(model, inputs, SPECS[how], **options)
    for row, text in enumerate(texts):
        alone = prompt(single, text)
        if "<image>" in text:
            number = sum(t.count("<image>") for t in texts[:row])
            alone["pixel_values"] = inputs["pixel_values"][number : number + text.count("<image>")]
        real = inputs["attention_mask"][row].bool()
        want = logits(single, alone, SPECS[how])[0]
        torch.testing.assert_close(got[row, real], want, rtol=0, atol=1e-3)


def test_a_prompt_of_nothing_but_its_image_is_left_alone() -> None:
    model = tiny("llava")
    inputs = prompt(model, "<image>")
    for heads in ("top", "bottom", "random"):
        spec = VHR(layers=LAYERS, heads=heads)  # type: ignore[arg-type]
        assert torch.equal(logits(model, inputs, spec), logits(model, inputs))


@pytest.mark.parametrize("how", SPECS)
@pytest.mark.parametrize("text", ["look: <image> is there a dog?", "look at this: <image>"])
def test_where_text_before_the_image_sees_it_nothing_is_shared(how: str, text: str) -> None:
    """PaliGemma's prompts see all of themselves."""
    model = tiny("paligemma")
    inputs = prompt(tiny("llava"), "x")  # its own processor puts images first
    ids = model.processor.tokenizer(text.replace("<image>", "|"), add_special_tokens=False)
    image, bar = model.image_token_id, model.processor.tokenizer.convert_tokens_to_ids("|")
    first = prompt(model, "<image> x")
    patches = int((first["input_ids"] == image).sum())
    columns: list[int] = []
    for token in ids["input_ids"]:
        columns += [image] * patches if token == bar else [token]
    inputs = {"input_ids": torch.tensor([columns]), "pixel_values": first["pixel_values"]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    got, want = logits(model, inputs, SPECS[how]), literal_logits(model, inputs, SPECS[how])
    torch.testing.assert_close(got[:, -1], want[:, -1], rtol=0, atol=1e-3)


@pytest.fixture
def packed() -> Iterator[list[int]]:
    """Number of columns that each null prompt packs."""
    sizes: list[int] = []
    stock = NullPrompt.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, *args: Any, **kwargs: Any) -> NullPrompt:
        made: NullPrompt = stock(cls, *args, **kwargs)
        sizes.append(made.size)
        return made

    with mock.patch.object(NullPrompt, "of", classmethod(of)):
        yield sizes


def test_only_text_behind_the_first_image_is_run_again(packed: list[int]) -> None:
    model = tiny("llava")
    count = len(model.processor.tokenizer("one two", add_special_tokens=False)["input_ids"])
    for text, size in (
        ("<s> a very very very long system prompt <image>one two", count),
        ("<s> a very very very long system prompt <image>", 0),
        ("<image>one two", count),
        ("no image", None),
    ):
        logits(model, prompt(model, text), SPECS["drop"])
        assert packed == ([] if size is None else [size])
        packed.clear()


def test_heads_are_compared_with_those_of_the_shorter_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("qwen2_vl")
    noted: list[tuple[Tensor, Tensor]] = []

    def note(seen: Tensor, blind: Tensor, *options: Any) -> Tensor:
        noted.append((seen[0], blind[0]))
        return torch.zeros(seen.shape[:2], dtype=torch.bool)

    monkeypatch.setattr(vhr, "choose_heads", note)
    for text in PLACES.values():
        inputs = prompt(model, text)
        for spec in SPECS.values():
            noted.clear()
            logits(model, inputs, spec)
            host = find_host(model.model, model.processor)
            seen, blind = compare_prompts(host, inputs, spec.null_image)
            for layer, (one, other) in enumerate(noted):
                torch.testing.assert_close(one, seen[layer], rtol=0, atol=1e-4)
                torch.testing.assert_close(other, blind[layer], rtol=0, atol=1e-4)


def test_an_unknown_argument_per_column_is_refused() -> None:
    model = tiny("llava")
    inputs = prompt(model, PLACES["last"], PLACES["first"])
    shape = inputs["input_ids"].shape
    with pytest.raises(NotImplementedError, match="'extra' per column"):
        logits(model, inputs, SPECS["drop"], extra=torch.zeros(*shape, 3))
