"""Rows of a cache may change places, be repeated or left out: what is known of them goes along."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from matrix import EDITS, MAIN
from tiny import tiny
from torch import Tensor

from regaze.hooks import Edit, attach
from regaze.hooks.passes import Pass

ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
MOVES: dict[str, tuple[Callable[[Any], None], list[int]]] = {
    "exchanged": (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    "one left out": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    "by mask": (lambda cache: cache.batch_select_indices(torch.tensor([False, True])), [1]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    "twice": (lambda cache: _exchange_and_repeat(cache), [1, 1, 0, 0]),
}


def _exchange_and_repeat(cache: Any) -> None:
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)


def decode(model: Any, cache: Any, mask: Tensor, steps: int = 3) -> Tensor:
    logits = []
    for number in range(steps):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
        ids = torch.full((len(mask), 1), 30 + number)
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        logits.append(out.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("copied", [False, True], ids=["", "copied"])
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_rows_keep_what_is_known_of_them(name: str, move: str, copied: bool) -> None:
    model, (go, rows) = tiny("llava"), MOVES[move]
    inputs = ask(model, *ROWS)
    with attach(model.model, EDITS[name].acts):
        cache = model.model(**inputs, use_cache=True).past_key_values
        kept, mask = copy.deepcopy(cache), inputs["attention_mask"]
        want = decode(model.model, kept if not copied else cache, mask)
        moved = cache if not copied else kept
        go(moved)
        got = decode(model.model, moved, mask[rows])
    torch.testing.assert_close(got, want[:, rows], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_batch_that_changes_by_itself_raises() -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    with attach(model.model, EDITS["pai"].acts):
        cache = model.model(**inputs, use_cache=True).past_key_values
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:1], layer.values[:1]
        with pytest.raises(ValueError, match="from 2 to 1 rows"):
            decode(model.model, cache, inputs["attention_mask"][:1])


class Remembering(Edit):
    """Keeps something per row and doesn't say how it follows them."""

    rows = "last"

    def __init__(self) -> None:
        super().__init__([0])
        self.seen: dict[int, Tensor] = {}

    def begin(self, pass_: Pass) -> None:
        self.seen[0] = pass_.tokens.has_image


@torch.no_grad()
def test_state_that_cannot_follow_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llava")
    spec = EDITS["pai"].acts
    monkeypatch.setattr(type(spec), "bind", lambda self, host: Remembering())
    with attach(model.model, spec):
        cache = model.model(**ask(model, *ROWS), use_cache=True).past_key_values
        with pytest.raises(NotImplementedError, match="Remembering doesn't say how its seen"):
            cache.reorder_cache(torch.tensor([1, 0]))
