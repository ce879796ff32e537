"""Structured Diffusion Guidance against numbers that its released cross-attention produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from vectors import cases, meta, vectors

from regaze.interventions.diffusion.phrase_contexts import Aligned, contexts


def keys_of(case: dict[str, Any]) -> str:
    """The form that reads as many contexts."""
    if case.get("n_keys", 1) == 1:
        return "prompt"
    return "pairs" if case["n_keys"] == case["n_values"] else "phrases"


def differing(own: Tensor, other: Tensor) -> Aligned:
    """A context as a phrase whose tokens are all columns."""
    return Aligned((tuple(range(len(own))),), other)


@pytest.mark.parametrize("case", cases("structured_diffusion"))
def test_cross_attention_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("structured_diffusion")
    size, name = meta("structured_diffusion")["module"], case["name"]
    make: Any = Attention
    module = make(
        query_dim=size["query_width"], cross_attention_dim=size["context_width"],
        heads=size["heads"], dim_head=size["head_dim"], processor=AttnProcessor2_0(),
    ).eval()  # fmt: skip
    module.load_state_dict(
        {k.removeprefix("module."): v for k, v in inputs.items() if k.startswith("module.")}
    )
    keys = inputs[f"{name}.k_contexts"]
    # Switched off, the method reads the first context alone.
    values = keys[:1] if name == "plain" else inputs[f"{name}.v_contexts"]
    more = keys[1:] if keys_of(case) == "phrases" else values[1:]
    phrases = [differing(keys[0], x) for x in more]
    if keys_of(case) == "prompt":
        # The mean of the values' contexts, of which the first is the prompt's own.
        made = contexts(values[:1], [phrases], "prompt")
        read = [(keys[:1], made[0][1], made[0][2])]
    else:
        read = contexts(keys[:1], [phrases], keys_of(case))  # type: ignore[assignment]
        # Here values are given apart: in the method they are the same contexts.
        given = values if len(values) == len(keys) else values.expand(len(keys), -1, -1)
        read = [(keys[i][None], given[i][None], read[i][2]) for i in range(len(keys))]

    def heads(x: Tensor) -> Tensor:
        found: Tensor = x.unflatten(2, (size["heads"], -1)).transpose(1, 2)
        return found

    hidden = inputs["hidden_states"]
    with torch.no_grad():
        uncond = module(hidden[:1], encoder_hidden_states=inputs["uncond_context"])
        query = heads(module.to_q(hidden[1:]))
        done = sum(
            share[:, None, None, None]
            * torch.nn.functional.scaled_dot_product_attention(
                query, heads(module.to_k(k)), heads(module.to_v(v))
            )
            for k, v, share in read
        )
        cond = module.to_out[0](torch.as_tensor(done).transpose(1, 2).flatten(2))
    got = torch.cat([uncond, cond])
    torch.testing.assert_close(got, expected[f"{name}.out"], atol=1e-5, rtol=0)
