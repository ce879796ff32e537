"""Every row that should be edited is: modules that call their kernel in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from tiny_pipelines import noise
from torch import Tensor, nn

from regaze.hooks.diffusion import Call, Layout, Site
from regaze.hooks.diffusion.kernel import editing
from regaze.hooks.diffusion.perturb import as_query_heads

SITE = Site("attn", "self", "blocks.0", 0, 2, "image")
LAYOUT = Layout((3, 4), 0, False)
HIDDEN = noise(4, 12, 8)


class Parts:
    """A processor that computes attention by calls on parts of the rows.

    Args:
        rows: Samples that each call holds.
        columns: Tokens that each call holds; its keys are its own.
        adapter: True if a second call adds something of other keys.
        again: True if the first call comes twice.
    """

    def __init__(
        self, rows: Any = (slice(None),), columns: Any = (slice(None),), adapter: int = 0,
        again: bool = False,
    ) -> None:  # fmt: skip
        self.rows, self.columns, self.adapter, self.again = rows, columns, adapter, again

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query, key, value = (
            f(hidden_states).unflatten(2, (2, 4)).transpose(1, 2)
            for f in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = torch.zeros_like(query)
        for rows in self.rows:
            for some in self.columns:
                parts = [x[rows][:, :, some] for x in (query, key, value)]
                done = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
                if self.adapter:
                    more = noise(len(parts[0]), 2, self.adapter, 4, seed=9)
                    done = done + F.scaled_dot_product_attention(parts[0], more, more)
                if self.again:
                    again = parts[0] + 0
                    done = done + F.scaled_dot_product_attention(again, parts[1], parts[2])
                out[rows, :, some] = done
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


def module(**parts: Any) -> Any:
    torch.manual_seed(0)
    make: Any = Attention
    return make(query_dim=8, dim_head=4, heads=2, processor=Parts(**parts)).eval()


def value_of(call: Call) -> Tensor:
    return as_query_heads(call.value, 2)


@torch.no_grad()
def edited(attn: Any, edit: Any = value_of, site: Site = SITE) -> Tensor:
    with editing(nn.ModuleDict({"attn": attn}), [site], LAYOUT, edit):
        out: Tensor = attn(HIDDEN)
    return out


SAMPLES = [slice(i, i + 1) for i in range(4)]
PAIRS = [slice(0, 3), slice(3, 4)]


@pytest.mark.parametrize("rows", [SAMPLES, PAIRS], ids=["each", "unequal"])
def test_calls_on_some_samples_are_all_edited(rows: list[slice]) -> None:
    assert torch.equal(edited(module(rows=rows)), edited(module()))
    assert not torch.equal(edited(module()), module()(HIDDEN))


def test_calls_on_windows_are_all_edited_but_have_no_places() -> None:
    windows = [slice(0, 6), slice(6, 12)]
    torch.testing.assert_close(edited(module(columns=windows)), edited(module()))

    def placed(call: Call) -> Tensor:
        call.image()
        return call.output

    with pytest.raises(RuntimeError, match="on 6 of the 12 rows that entered it"):
        edited(module(columns=windows), placed)


@pytest.mark.parametrize("keys", [3, 12], ids=["few", "as many as rows"])
def test_other_keys_of_the_same_queries_are_left_alone(keys: int) -> None:
    class Counted:
        calls = 0

        def __call__(self, call: Call) -> Tensor:
            self.calls += 1
            return value_of(call)

    counted = Counted()
    edited(module(adapter=keys), counted)
    assert counted.calls == 1


@pytest.mark.parametrize(
    "parts",
    [
        {"rows": [slice(0, 3)]}, {"rows": [slice(0, 3), slice(2, 4)]}, {"again": True},
        {"columns": [slice(0, 6)]}, {"rows": []},
    ],
    ids=["too few", "too many", "twice", "half of the tokens", "none"],
)  # fmt: skip
def test_rows_that_do_not_add_up_raise(parts: dict[str, Any]) -> None:
    attn = module(**parts)
    with pytest.raises(
        RuntimeError, match=r"attn \(Attention\) was to be edited, but .*(4 x 12 ro|no call)"
    ):
        edited(attn)
    assert type(attn) is Attention


def test_a_module_that_runs_several_times_in_a_pass_is_edited_each_time() -> None:
    attn = module()
    with torch.no_grad(), editing(nn.ModuleDict({"attn": attn}), [SITE], LAYOUT, value_of):
        chunks = torch.cat([attn(HIDDEN[:1]), attn(HIDDEN[1:])])
    torch.testing.assert_close(chunks, edited(attn))


def test_what_is_returned_must_be_what_the_module_uses() -> None:
    with pytest.raises(RuntimeError, match="and the module uses"):
        edited(module(), lambda call: call.value[:, :, :1])
    with pytest.raises(RuntimeError, match="3 heads"):
        edited(module(), site=Site("attn", "self", "blocks.0", 0, 3, "image"))


def test_edits_of_one_call_act_one_after_the_other() -> None:
    from regaze.hooks.calls import Calls
    from regaze.hooks.diffusion.kernel import Edits

    attn, calls = module(), Calls()
    chain = [lambda call: call.output + 1, lambda call: call.output * 2]
    with torch.no_grad():
        edits = Edits(nn.ModuleDict({"attn": attn}), {SITE: chain}, LAYOUT, calls)
        with edits.applied():
            got = attn(HIDDEN)
        calls.release()
        want = edited(attn, lambda call: (call.output + 1) * 2)
    assert torch.equal(got, want)
