"""The row check: a kernel that does what isn't known here is found out before it is edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import EDITS, MAIN
from tiny import Tiny, tiny
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks import attach, capture
from regaze.hooks.precision import product_dtype
from regaze.interventions import PAI, VAF, VHR

NAME = "made_up"
Odd = Callable[[Tensor, int], Tensor]


def kernel(odd: Odd, head: int | None = None) -> Callable[..., tuple[Tensor, None]]:
    """Attention whose masked logits "B H Q K" go through ``odd`` before the softmax."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        logits = query @ key.transpose(-1, -2) * kwargs["scaling"] + mask[..., : key.shape[2]]
        weights = odd(logits, key.shape[2] - query.shape[2]).softmax(-1)[..., : key.shape[2]]
        return (weights @ value).transpose(1, 2), None

    return attention


def distance(logits: Tensor, past: int) -> Tensor:
    rows = torch.arange(logits.shape[2])[:, None] + past
    return rows - torch.arange(logits.shape[3])


def linear_bias(logits: Tensor, past: int) -> Tensor:
    return logits - 0.02 * distance(logits, past)


def sink(logits: Tensor, past: int) -> Tensor:
    return torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)


def cap(logits: Tensor, past: int) -> Tensor:
    return torch.where(logits < -1e30, logits, 5 * torch.tanh(logits / 5))


def scale(logits: Tensor, past: int) -> Tensor:
    return logits * 1.05


def window(logits: Tensor, past: int) -> Tensor:
    return logits.masked_fill(distance(logits, past) >= 16, -torch.inf)


def chunks(logits: Tensor, past: int) -> Tensor:
    rows = torch.arange(logits.shape[2])[:, None] + past
    other = rows // 12 != torch.arange(logits.shape[3]) // 12
    return logits.masked_fill(other, -torch.inf)


def strongest(logits: Tensor, past: int) -> Tensor:
    count = min(6, logits.shape[-1])
    return logits.masked_fill(logits < logits.topk(count, -1).values[..., -1:], -torch.inf)


def one_head(logits: Tensor, past: int) -> Tensor:
    changed = linear_bias(logits, past)
    return torch.cat([changed[:, :1], logits[:, 1:]], 1)


ODD = [linear_bias, sink, cap, scale, window, chunks, strongest, one_head]


@contextmanager
def running(model: Tiny, odd: Odd) -> Iterator[None]:
    """Let a model's text tower run a kernel of its own."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, kernel(odd))
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.model.get_decoder().config._attn_implementation_internal = NAME
    yield


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", MAIN)
def test_a_kernel_that_does_more_is_refused(name: str, odd: Odd) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (LONG, [1]), (SHORT, [0]))
    with running(model, odd):
        model.model(**inputs)
        spec = EDITS[name].acts
        with pytest.raises(RuntimeError, match=r"layer 0 \(LlamaAttention\).*tolerance 0.001"):
            logits(model, inputs, spec)


@pytest.mark.parametrize("name", MAIN)
def test_a_kernel_that_does_no_more_is_edited(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (LONG, [1]), (SHORT, [0]))
    with running(model, lambda logits, past: logits):
        got = logits(model, inputs, EDITS[name].acts)
    want = logits(tiny("llava"), inputs, EDITS[name].acts)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=0, atol=1e-4)


@pytest.fixture(params=["high", "medium"])
def lowered(request: pytest.FixtureRequest) -> Iterator[str]:
    """A precision of float32 products, as training scripts set it for speed."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def test_products_that_may_be_rounded_are_checked_as_what_they_are(lowered: str) -> None:
    on_cpu, on_gpu = torch.device("cpu"), torch.device("cuda")
    rounded = {"high": torch.float16, "medium": torch.bfloat16}[lowered]
    assert product_dtype(torch.float32, on_cpu) == rounded
    assert product_dtype(torch.float32, on_gpu) != torch.float32
    assert product_dtype(torch.float64, on_cpu) == torch.float64
    model = tiny("llava", fresh=True)
    inputs = ask(model, (LONG, [1]), (SHORT, [0]))
    edited, plain = logits(model, inputs, EDITS["vaf"].acts), logits(model, inputs)
    torch.set_float32_matmul_precision("highest")
    assert product_dtype(torch.float32, on_gpu) == torch.float32
    want = logits(model, inputs, EDITS["vaf"].acts)
    real = inputs["attention_mask"].bool()
    off, moved = (edited - want)[real].abs().mean(), (want - plain)[real].abs().mean()
    assert off < 0.1 * moved


@pytest.mark.parametrize("odd", [sink, window, strongest])
def test_a_kernel_that_does_more_is_refused_at_any_precision(lowered: str, odd: Odd) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (LONG, [1]), (SHORT, [0]))
    most, dtype = {"high": (0.02, "float16"), "medium": (0.1, "bfloat16")}[lowered]
    words = f"tolerance {most} in float32, whose products may be rounded to {dtype}"
    with running(model, odd), pytest.raises(RuntimeError, match=words):
        logits(model, inputs, EDITS["vaf"].acts)


@pytest.mark.parametrize("name", ["pai", "vaf"])
@torch.no_grad()
def test_decode_steps_are_checked_for_themselves(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))

    def only_decoding(logits: Tensor, past: int) -> Tensor:
        return logits if past == 0 else sink(logits, past)

    with running(model, only_decoding), attach(model.model, EDITS[name].acts):
        out = model.model(**inputs, use_cache=True)
        with pytest.raises(RuntimeError, match="layer 0"):
            model.model(input_ids=torch.tensor([[7]]), past_key_values=out.past_key_values)


def test_reading_is_checked_too() -> None:
    model = tiny("llava", fresh=True)
    with running(model, sink), capture(model.model), pytest.raises(RuntimeError, match="layer 0"):
        model.model(**ask(model, (SHORT, [0])))


def test_what_is_attached_later_is_checked_anew() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    odd: list[Odd] = [lambda logits, past: logits]
    with (
        running(model, lambda logits, past: odd[0](logits, past)),
        torch.no_grad(),
        attach(model.model, PAI(0.5, layers=(0,))),
    ):
        model.model(**inputs)
        odd[0] = scale
        model.model(**inputs)  # known already
        with attach(model.model, VAF(layers=(0,))), pytest.raises(RuntimeError, match="layer 0"):
            model.model(**inputs)


def test_layers_that_nothing_edits_may_do_as_they_like() -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, []))
    with running(model, sink):
        plain = model.model(**inputs).logits
        assert torch.equal(logits(model, inputs, PAI(0.5), VHR()), plain)  # no image


@pytest.mark.parametrize("name", MAIN)
def test_attention_dropout_is_refused_while_training(name: str) -> None:
    model = tiny("llava", fresh=True)
    for layer in model.model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.1
    inputs = ask(model, (SHORT, [0]))
    want = logits(tiny("llava"), inputs, EDITS[name].acts)
    assert torch.equal(logits(model, inputs, EDITS[name].acts), want)
    model.model.train()
    with pytest.raises(NotImplementedError, match=r"dropout=0.1.*eval"):
        logits(model, inputs, EDITS[name].acts)


def calls(model: Tiny, how: str) -> None:
    """Let a layer call its attention function in another way."""
    attention: Any = model.model.get_decoder().layers[1].self_attn
    stock = type(attention).forward

    def per_chunk(hidden_states: Tensor, **kwargs: Any) -> Any:
        first, weights = stock(attention, hidden_states, **kwargs)
        second, _ = stock(attention, hidden_states, **kwargs)
        return (first + second) / 2, weights

    def per_sample(hidden_states: Tensor, position_embeddings: Any, **kwargs: Any) -> Any:
        kwargs["attention_mask"] = None
        angles = tuple(angle[:1] for angle in position_embeddings)
        parts = [
            stock(attention, part, position_embeddings=angles, **kwargs)[0]
            for part in hidden_states.split(1)
        ]
        return torch.cat(parts), None

    def never(hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states, None

    attention.forward = {"per chunk": per_chunk, "per sample": per_sample, "never": never}[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [("per chunk", "more than once"), ("per sample", "rows"), ("never", r"\[1\] never called")],
)
@pytest.mark.parametrize("name", MAIN)
def test_a_layer_that_is_not_edited_in_whole_raises(name: str, how: str, message: str) -> None:
    model = tiny("llava", fresh=True)
    calls(model, how)
    if name == "vhr":  # Two prompts in its rows: replaced code is refused before it runs.
        message = "would be given both"
    inputs = ask(model, (SHORT, [0]), (SHORT, [1]))
    with pytest.raises(RuntimeError, match=message):
        logits(model, inputs, EDITS[name].acts, use_cache=False)
