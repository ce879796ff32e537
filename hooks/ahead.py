"""A look at what the model would say after a prompt, on a copy of the prompt's cache."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.caches import cache_name
from regaze.hooks.lanes import Lane
from regaze.hooks.replaced import keeping_nothing
from regaze.hooks.running import Running
from regaze.hooks.second_runs import SecondRuns
from regaze.hooks.tokens import Kind


def look_ahead(runs: SecondRuns, scores: Tensor, running: Running, steps: int) -> None:
    """Run decode steps on the likeliest tokens, as far as samples haven't come to an end.

    Args:
        runs: Runs of the model.
        scores: "B V" after the prompt.
        running: The prompt's pass.
        steps: Number of decode steps.

    Raises:
        NotImplementedError: The prompt left no cache.
    """
    if not steps:
        return
    if running.cache is None:
        raise NotImplementedError(
            "this method looks at what the model would say after the prompt, which takes the "
            "prompt's cache: leave out use_cache=False"
        )
    scorer: Any = runs.scorer()
    pass_, positions, last = running.pass_, running.positions, None
    columns = pass_.past + pass_.length - pass_.n_last + 1
    if positions is not None:
        rows = pass_.last_rows.to(positions.device)
        whole = positions.expand(*positions.shape[:-2], pass_.batch, -1)
        last = whole.gather(-1, rows[:, None].expand(*whole.shape[:-1], 1))[..., 0]
    real = ~pass_.tokens.is_kind(Kind.PAD)[:, :columns]
    if last is None and (runs.owners or not bool(real.all())):
        # The tower counts columns; behind a shorter prompt stands padding, and a model that
        # keeps how far positions run ahead may still hold that of another prompt.
        last = (pass_.last_rows + pass_.past).to(scores.device)
    mask = real.long().to(scores.device)
    name, padded = cache_name(scorer), not bool(real.all())
    lane = Lane(name, _copied(running.cache), mask, 0, columns, last, padded)
    ends = torch.tensor(_ends(runs), device=scores.device)
    speaking = torch.ones(pass_.batch, dtype=torch.bool, device=scores.device)
    for _ in range(steps):
        token = scores.argmax(-1)
        speaking = speaking & ~torch.isin(token, ends)
        if not bool(speaking.any()):
            return
        lane, inputs = lane.next(token[:, None], None, columns)
        given = {**inputs, "return_dict": True}
        with keeping_nothing(scorer):
            scores = runs.call(given, None, 1, ahead=speaking)[0][:, -1].float()
        columns += 1


def _ends(runs: SecondRuns) -> list[int]:
    """Tokens that end an answer, as a running ``generate`` or the model's settings say."""
    asked, scorer = runs.request() or {}, runs.scorer()
    told = getattr(asked.get("generation_config"), "eos_token_id", None)
    known = getattr(getattr(scorer, "generation_config", None), "eos_token_id", None)
    found: Any = next((e for e in (asked.get("eos_token_id"), told, known) if e is not None), [])
    return [int(e) for e in (found if isinstance(found, (list, tuple)) else [found])]


def _copied(cache: Any) -> Any:
    """A copy of a cache, and of what is known of its prompt; no gradient flows into it."""
    held = (vars(layer).values() for layer in cache.layers)
    tensors = (value for values in held for value in values if isinstance(value, Tensor))
    return copy.deepcopy(cache, {id(one): one.detach().clone() for one in tensors})
