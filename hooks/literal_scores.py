"""Next-token scores combined with those of the prompt without its image, the literal way.

For each token the text so far, the image's columns taken out, is run anew: no cache, no second run
that keeps step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from regaze.hooks.host import Host

_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class ScoreForm:
    """A method that changes next-token scores.

    Attributes:
        combine: ``combine(scores, text)``: scores "1 V" of the last row and of the same text
            without its image, to those that take their place.
    """

    combine: Callable[[Tensor, Tensor], Tensor]


class _Run(Protocol):
    """A literal run that is under way."""

    start: int


@contextmanager
def scored(
    host: Host,
    inputs: Mapping[str, Any],
    removed: Sequence[bool],
    forms: Sequence[ScoreForm],
    now: _Run,
    plain: Callable[[int], Any],
) -> Iterator[None]:
    """Change the scores of the runs inside.

    Args:
        host: The model.
        inputs: The prompt.
        removed: Which of its columns are the image's.
        forms: The methods, in order.
        now: The run; its ``start`` is the number of columns before a block.
        plain: Makes a context in which the text tower runs a number of columns unedited.
    """
    if not forms or not any(removed):
        with nullcontext():
            yield
        return
    kept = ~torch.tensor(removed)
    model: Any = host.model
    ids = torch.empty(1, 0, dtype=torch.long)

    def change(module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        nonlocal ids
        block = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        ids = torch.cat([ids.to(block)[:, : now.start], block], 1)
        tail = torch.ones(ids.shape[1] - len(kept), dtype=torch.bool)
        text = ids[:, torch.cat([kept, tail]).to(ids.device)]
        given: dict[str, Any] = {"input_ids": text, "use_cache": False}
        for name in _TYPES:
            if name in inputs:
                given[name] = torch.zeros_like(text)
                if host.model_type == "paligemma":  # Its prompts see all of themselves.
                    given[name][:, int(kept.sum()) :] = 1
        with plain(text.shape[1]), torch.no_grad():
            other = model.forward(**given).logits[:, -1]
        scores = output.logits[:, -1].float()
        for form in forms:
            scores = form.combine(scores, other.float())
        output.logits = torch.cat([output.logits[:, :-1], scores[:, None].to(output.logits)], 1)
        return output

    handle = model.register_forward_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
