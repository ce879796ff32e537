"""The pure tensor functions equal attention written out, for every kind of mask."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from regaze.hooks.attention import (
    gather_rows,
    mix_values,
    row_logits,
    scatter_rows,
    visible_columns,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_query_head_reads_the_keys_and_values_of_its_group(
    groups: int, dtype: torch.dtype
) -> None:
    query, key = random(2, 6, 3, 4, dtype=dtype), random(2, groups, 5, 4, seed=1, dtype=dtype)
    value = random(2, groups, 5, 4, seed=2, dtype=dtype)
    logits = row_logits(query, key, 0.3)
    assert logits.dtype == torch.float32
    out = mix_values(logits.softmax(-1), value)
    assert out.dtype == torch.float32
    for sample, head, row in itertools.product(range(2), range(6), range(3)):
        group = head // (6 // groups)
        z = query[sample, head, row].float() @ key[sample, group].float().T * 0.3
        torch.testing.assert_close(logits[sample, head, row], z)
        mixed = z.softmax(-1) @ value[sample, group].float()
        torch.testing.assert_close(out[sample, row, head], mixed)


def test_softcapped_logits_stay_within_their_bound() -> None:
    query, key = 50 * random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1)
    plain, capped = row_logits(query, key, 1.0), row_logits(query, key, 1.0, softcap=5.0)
    assert plain.abs().max() > 5
    assert capped.abs().max() <= 5
    torch.testing.assert_close(capped, 5 * torch.tanh(plain / 5))


def test_gathered_rows_are_those_asked_for() -> None:
    x = random(2, 3, 5, 4)
    rows = torch.tensor([[4, 0], [2, 2]])
    gathered = gather_rows(x, rows)
    for sample, place in itertools.product(range(2), range(2)):
        assert torch.equal(gathered[sample, :, place], x[sample, :, rows[sample, place]])


def test_scattered_rows_replace_only_valid_ones() -> None:
    out, new = random(2, 5, 3, 4, dtype=torch.float16), random(2, 2, 3, 4, seed=1)
    rows, valid = torch.tensor([[1, 4], [0, 3]]), torch.tensor([[True, True], [False, True]])
    want = out.clone()
    written = scatter_rows(out, rows, valid, new)
    assert written.dtype == torch.float16
    want[0, 1], want[0, 4], want[1, 3] = new[0, 0].half(), new[0, 1].half(), new[1, 1].half()
    assert torch.equal(written, want)


def test_rows_are_written_in_place_unless_a_backward_pass_may_need_what_was_there() -> None:
    rows, valid = torch.tensor([[1]]), torch.tensor([[True]])
    out, new = random(1, 3, 2, 4), random(1, 1, 2, 4, seed=1)
    assert scatter_rows(out, rows, valid, new).data_ptr() == out.data_ptr()
    source = random(1, 3, 2, 4).requires_grad_()
    needed = source.exp()  # Its backward pass reads its output.
    scatter_rows(needed, rows, valid, new).sum().backward()
    want = source.detach().exp()
    want[:, 1] = 0
    torch.testing.assert_close(source.grad, want)


CASES = list(itertools.product([0, 3], [None, 2, 4], [False, True], [True, False]))


@pytest.mark.parametrize(("past", "window", "padded", "causal"), CASES)
def test_masks_of_every_kind_show_the_same_columns(
    past: int, window: int | None, padded: bool, causal: bool
) -> None:
    """None, 2-D, bool, additive, per head, shared by the batch, and flex block masks."""
    length = 4
    keys = past + length
    real = torch.ones(2, keys, dtype=torch.bool)
    if padded:
        real[0, :2] = False
    full = torch.zeros(2, 1, length, keys, dtype=torch.bool)
    for sample, row, column in itertools.product(range(2), range(length), range(keys)):
        at = past + row
        seen = bool(real[sample, column])
        seen &= column <= at or not causal
        seen &= window is None or column > at - window
        full[sample, 0, row, column] = seen
    rows = torch.tensor([[3, 1, 2], [0, 3, 3]])
    want = torch.stack([full[sample, :, rows[sample]] for sample in range(2)])
    additive = torch.zeros(full.shape).masked_fill(~full, torch.finfo(torch.float32).min)

    def mask_mod(sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return full[sample, 0, row, column]

    block = create_block_mask(mask_mod, 2, None, length, keys, device="cpu")
    masks: dict[str, object] = {
        "2-D": real,
        "2-D numbers": real.long(),
        "bool": full,
        "longer than the keys": torch.nn.functional.pad(full, (0, 5), value=True),
        "additive": additive,
        "additive, -inf": additive.masked_fill(~full, -torch.inf),
        "additive, half": additive.to(torch.float16).masked_fill(~full, -65504.0),
        "per head": full.expand(-1, 3, -1, -1),
        "block": block,
    }
    if not padded:
        masks |= {"none": None, "one for the batch": full[:1]}
    for name, mask in masks.items():
        visible, bias = visible_columns(
            mask, rows, keys, query_offset=past, causal=causal, window=window
        )
        if visible is None:
            visible = torch.ones_like(want)
        visible = visible.expand(2, -1, 3, keys)
        assert torch.equal(visible, want.expand(visible.shape)), name
        assert (bias is not None) == name.startswith("additive"), name
        if bias is not None:
            assert not bias.any(), (
                name
            )  # Nor -inf where nothing is seen: a row of padding stays finite.


def test_an_additive_mask_keeps_its_biases() -> None:
    mask = random(1, 2, 3, 4)
    _, bias = visible_columns(
        mask, torch.tensor([[2, 0]]), 4, query_offset=0, causal=True, window=None
    )
    assert torch.equal(bias, mask[:, :, [2, 0]])  # type: ignore[arg-type]


def test_a_padding_mask_shorter_than_a_static_cache_hides_its_tail() -> None:
    padding = torch.tensor([[0, 1, 1]])
    visible, _ = visible_columns(
        padding, torch.tensor([[0]]), 6, query_offset=2, causal=False, window=None
    )
    assert visible is not None
    assert visible.flatten().tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("mask", ["causal", [1, 2], object()])
def test_a_mask_of_an_unknown_kind_raises(mask: object) -> None:
    with pytest.raises(TypeError, match=type(mask).__name__):
        visible_columns(mask, torch.tensor([[0]]), 3, query_offset=0, causal=True, window=None)
