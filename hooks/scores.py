"""Next-token scores: edits of them, and second runs of the model that they are combined with.

The text tower knows no scores, so this hooks the module with the output layer that holds it: the
one whose ``forward`` gives ``logits``, which ``generate`` calls, however it is wrapped.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from regaze.hooks.edits import Branch, Edit
from regaze.hooks.lanes import Lane
from regaze.hooks.passes import Pass
from regaze.hooks.prompts import Lanes
from regaze.hooks.running import Running
from regaze.hooks.tally import Entry, due
from regaze.hooks.tokens import Kind

PLACE = -1
"""What scores are counted under, where edits of attention have a layer."""
# Per-token inputs that say which tokens are of a picture.
_TYPES = ("token_type_ids", "mm_token_type_ids")
_POSITIONS = ("position_ids", "cache_position")
_KEPT = ("logits_to_keep", "return_dict")

RunSecond = Callable[[Mapping[str, Any], tuple[Edit, ...], Pass], AbstractContextManager[None]]
"""Lets passes inside be a branch's: its arguments, its edits, the main run's pass."""


def find_scorer(model: nn.Module, tower: nn.Module) -> nn.Module | None:
    """The outermost model with an output layer that holds the text tower."""
    for module in model.modules():
        scores = isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None
        if scores and any(part is tower for part in module.modules()):
            return module
    return None


def without_images(given: Mapping[str, Any], pass_: Pass) -> dict[str, Any]:
    """A call's arguments at the prompt with the image's columns taken out of the sequence.

    Args:
        given: The main run's arguments.
        pass_: The pass that read the prompt.

    Raises:
        ValueError: No token ids, or a sample of which nothing is left.
    """
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor):
        raise ValueError("a run without images needs input_ids, and the model was given none")
    kept = ~pass_.tokens.is_kind(Kind.IMAGE, Kind.SEPARATOR, Kind.PAD)
    size = kept.sum(1)
    if int(size.min()) == 0:
        raise ValueError("a prompt of nothing but its image has no run without it")
    columns = kept.int().argsort(dim=1, stable=True)[:, -int(size.max()) :]
    real = kept.gather(1, columns).to(ids.device)
    taken = ids.gather(1, columns.to(ids.device)).masked_fill(~real, 0)
    found: dict[str, Any] = {"input_ids": taken, "attention_mask": real.long()}
    found |= {name: torch.zeros_like(taken) for name in _TYPES if given.get(name) is not None}
    return found | {name: given[name] for name in _KEPT if name in given}


class _Here(threading.local):
    """The call of the scorer that runs in one thread, and the pass of its tower."""

    given: Mapping[str, Any] | None = None
    running: Running | None = None


class Scores:
    """Edits of next-token scores of one model.

    Args:
        scorer: See `find_scorer`.
        second: See `RunSecond`.
        keep: Leaves the lanes of a pass with its prompt.
    """

    def __init__(
        self, scorer: nn.Module, second: RunSecond, keep: Callable[[Running, Lanes], None]
    ) -> None:
        self._scorer = weakref.ref(scorer)
        self._second, self._keep = second, keep
        self._here = _Here()
        # Qwen-VL models leave how far a prompt's positions run ahead on a module.
        self._owners = [m for m in scorer.modules() if hasattr(m, "rope_deltas")]

    @torch.compiler.disable
    def enter(self, scorer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call's arguments."""
        if scorer is self._scorer():
            self._here.given = dict(zip(("input_ids",), args, strict=False)) | kwargs
            self._here.running = None

    def note(self, running: Running) -> None:
        """Take note of the tower's pass in this call."""
        if self._here.given is not None:
            self._here.running = running

    @torch.compiler.disable
    def leave(self, scorer: nn.Module, args: Any, output: Any) -> Any:
        """Change the scores of a call.

        Raises:
            NotImplementedError: The model gives no ``logits`` by that name, or a branch would have
                to begin in the middle of a prompt.
        """
        if scorer is not self._scorer():
            return None
        given, running = self._here.given, self._here.running
        self._here.given = self._here.running = None
        if output is None or given is None or running is None:
            return None
        works = [(entry, edit) for entry, edit in running.works.items() if edit.scores]
        if not works:
            return None
        pass_ = running.pass_
        if not pass_.prompt_end:
            if any(edit.branches for _, edit in works):
                raise NotImplementedError(
                    "a second run of the model needs the whole prompt in one block (no "
                    "prefill_chunk_size, no shared beginning)"
                )
            return None
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise NotImplementedError(
                f"{type(scorer).__name__} returned no .logits, so its scores can't be edited; "
                "call it with return_dict=True"
            )
        rows = _rows(pass_, logits)
        scores = logits.gather(1, rows).float()
        lanes: dict[tuple[Entry[Edit, int], int], Lane] = {}
        for entry, edit in works:
            before = scores
            for number, branch in enumerate(edit.branches):
                key = entry, number
                other, lane = self._run(branch, given, running, running.prompt.lanes.get(key))
                scores = branch.combine(scores, other.to(scores), pass_)
                if lane is not None:
                    lanes[key] = lane
            scores = edit.edit_scores(scores, pass_)
            _count(entry, before, scores, running)
        if lanes:
            self._keep(running, lanes)
        output.logits = logits.scatter(1, rows, scores.to(logits.dtype))
        return output

    def _run(
        self, branch: Branch, given: Mapping[str, Any], running: Running, lane: Lane | None
    ) -> tuple[Tensor, Lane | None]:
        """A branch's scores at the same rows, "B R V", and where it is then."""
        pass_ = running.pass_
        if pass_.past == 0:
            inputs = self._beginning(branch, given, running)
        elif lane is None:
            raise NotImplementedError(
                "a second run of the model can't begin in the middle of a prompt, whose beginning "
                "is in a cache: read the prompt in one block"
            )
        else:
            lane, inputs = lane.next(*_block(given, pass_), pass_.past)
            inputs |= {name: given[name] for name in _KEPT if name in given}
        scorer: Any = self._scorer()
        kept = [(m, m.rope_deltas) for m in self._owners]
        self._here.given, self._here.running = inputs, None
        try:
            with self._second(inputs, branch.edits, pass_):
                # Not by the module's call: what hooks it is for the main run.
                output = scorer.forward(**inputs)
            second: Running | None = self._here.running
        finally:
            self._here.given = self._here.running = None
            for module, deltas in kept:
                module.rope_deltas = deltas
        if second is None:
            raise RuntimeError(f"{type(scorer).__name__} ran without its text tower")
        scores = output.logits.gather(1, _rows(second.pass_, output.logits))
        if pass_.past == 0:
            columns, positions = second.pass_.length, second.positions
            lane = Lane(
                cache=output.past_key_values,
                mask=(~second.pass_.tokens.is_kind(Kind.PAD)).long().to(scores.device),
                ahead=columns - pass_.length,
                columns=columns,
                last=None if positions is None else positions[..., -1],
            )
        # Without a cache of the main run there is nothing that the lane could go along with.
        return scores, lane if running.cache is not None else None

    def _beginning(
        self, branch: Branch, given: Mapping[str, Any], running: Running
    ) -> dict[str, Any]:
        """The arguments of a branch's first pass."""
        scorer: Any = self._scorer()
        inputs = dict(branch.inputs(given, running.pass_))
        if inputs.get("input_ids") is not given.get("input_ids"):
            for name in _POSITIONS:
                inputs.pop(name, None)
            mask, axes = inputs.get("attention_mask"), running.positions
            plain = axes is None or axes.ndim == 2
            if plain and isinstance(mask, Tensor) and not bool(mask.bool().all()):
                inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        inputs.pop("labels", None)
        cache = DynamicCache(config=scorer.config.get_text_config(decoder=True))
        return inputs | {"past_key_values": cache, "use_cache": True}


def _rows(pass_: Pass, logits: Tensor) -> Tensor:
    """Which of the rows whose scores were kept are the last ones, "B R V" for `gather`."""
    rows = pass_.scored(logits.shape[1]).to(logits.device)
    return rows[..., None].expand(-1, -1, logits.shape[-1])


def _block(given: Mapping[str, Any], pass_: Pass) -> tuple[Tensor, Tensor]:
    """Token ids of the main run's block, and which are no padding."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape[1] < pass_.length:
        raise NotImplementedError(
            "a second run of the model follows token ids, and this step was given none"
        )
    kinds = pass_.tokens.is_kind(Kind.IMAGE)[:, pass_.past :]
    if bool(kinds.any()):
        raise NotImplementedError(
            "another picture came in the middle of the conversation, which a second run of the "
            "model can't follow: begin anew with the whole conversation"
        )
    real = ~pass_.tokens.is_kind(Kind.PAD)[:, pass_.past :]
    return ids[:, -pass_.length :], real.to(ids.device)


def _count(entry: Entry[Edit, int], before: Tensor, after: Tensor, running: Running) -> None:
    """Count an edit of scores; its effect is how far probabilities moved (total variation)."""
    entry.tally.count(PLACE)
    asked = running.prompt.asked
    asked[entry, PLACE] += 1
    if due(asked[entry, PLACE]):
        moved = 0.5 * (after.softmax(-1) - before.softmax(-1)).abs().sum(-1)
        entry.tally.add(PLACE, moved)
