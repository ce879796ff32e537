"""Second runs of a model on other inputs (`Branch`), each with a cache that keeps step.

Those that can join a step of the main run do so in one call (`regaze.hooks.joint`); prompts, and
what can't join, run beside it.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from regaze.hooks.caches import cache_name, with_cache
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.joint import Together
from regaze.hooks.lanes import Lane
from regaze.hooks.others import run_before
from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.prompts import Lanes
from regaze.hooks.replaced import keeping_nothing
from regaze.hooks.running import Running
from regaze.hooks.tokens import Kind

# Per-token inputs that say which tokens are of a picture.
_TYPES = ("token_type_ids", "mm_token_type_ids")
_POSITIONS = ("position_ids", "cache_position")

RunSecond = Callable[
    [Mapping[str, Any], tuple[Edit, ...] | None, int, Any, Tensor | None],
    AbstractContextManager[None],
]
"""Lets passes inside be a branch's: its arguments, its edits (None: the main run's), rows whose
scores are wanted, `Branch.enter` at its prompt, and `Pass.ahead`."""


def without_images(given: Mapping[str, Any], pass_: Pass) -> dict[str, Any]:
    """Make a call's arguments for the prompt with the image's columns taken out of the sequence.

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
    return found


class ScorerHere(threading.local):
    """The call of the scorer that runs in one thread, and the pass of its tower."""

    given: Mapping[str, Any] | None = None
    running: Running | Together | None = None
    joint: Lanes = MappingProxyType({})
    as_tuple: bool = False


class SecondRuns:
    """Runs of one model on other inputs.

    Args:
        scorer: See `regaze.hooks.scorer.find_scorer`.
        second: See `RunSecond`.
        request: Returns the arguments of a running ``generate``; None if none runs.
        here: The scorer's call in this thread.
    """

    def __init__(
        self,
        scorer: nn.Module,
        second: RunSecond,
        request: Callable[[], Mapping[str, Any] | None],
        here: ScorerHere,
    ) -> None:
        self.scorer, self.request = weakref.ref(scorer), request
        self._second, self._here = second, here
        # Qwen-VL models leave how far a prompt's positions run ahead on a module.
        self.owners = [m for m in scorer.modules() if hasattr(m, "rope_deltas")]

    def run(
        self, branch: Branch, given: Mapping[str, Any], running: Running, lane: Lane | None
    ) -> tuple[Tensor, Lane]:
        """A branch's scores at the same rows, "B R V", and where it is then."""
        pass_ = running.pass_
        if pass_.past == 0:
            first, lane = self._begin(branch, given, running)
            if pass_.n_last == 1:
                return first, lane
            # What assisted decoding proposes after the prompt.
            drafted = pass_.n_last - 1
            rest, lane = self._go_on(branch, given, pass_, lane, drafted)
            return torch.cat([first, rest], 1), lane
        if lane is None:
            raise NotImplementedError(
                "a second run of the model can't begin in the middle of a prompt, whose beginning "
                "is in a cache: read the prompt in one block"
            )
        return self._go_on(branch, given, pass_, lane, pass_.length)

    def _begin(
        self, branch: Branch, given: Mapping[str, Any], running: Running
    ) -> tuple[Tensor, Lane]:
        """Run a branch's prompt: the scores after it, "B 1 V", and its lane."""
        scorer: Any = self.scorer()
        pass_, asked = running.pass_, self.request()
        if asked is not None and running.cache is None:
            raise NotImplementedError(
                "a second run of the model keeps its tokens in a cache, and generate was told "
                "use_cache=False; leave that out"
            )
        if asked is not None and _is_asked(asked, pass_):
            # Inputs of the model, not settings of generate.
            known = inspect.signature(scorer.forward).parameters
            given = {k: v for k, v in asked.items() if k in known or isinstance(v, Tensor)}
        _refuse_other_masks(given)
        inputs = dict(branch.inputs(given, self._of_rows(pass_, given)))
        _refuse_other_masks(inputs)
        for name in (*_POSITIONS, "labels", "logits_to_keep"):
            inputs.pop(name, None)
        mask = inputs.get("attention_mask")
        if (positions := _positions(inputs, running.positions)) is not None:
            inputs["position_ids"] = positions
        ends = mask is None or (isinstance(mask, Tensor) and bool(mask[:, -1].all()))
        if ends and "logits_to_keep" in inspect.signature(scorer.forward).parameters:
            inputs["logits_to_keep"] = 1
        cache = DynamicCache(config=scorer.config.get_text_config(decoder=True))
        inputs = with_cache(inputs, cache, scorer)
        inputs |= {"use_cache": True, "return_dict": True}
        with keeping_nothing(scorer):
            scores, second = self.call(inputs, branch.edits, 1, branch.enter)
        if len(scores) < 1 or pass_.batch % len(scores):
            raise ValueError(
                f"a second run has {len(scores)} samples, the main one {pass_.batch}; it needs one "
                "for each"
            )
        columns, positions = second.pass_.length, second.positions
        lane = Lane(
            name=cache_name(scorer),
            cache=cache,
            mask=(real := ~second.pass_.tokens.is_kind(Kind.PAD)).long().to(scores.device),
            ahead=columns - (pass_.length - pass_.n_last + 1),
            columns=columns,
            last=None if positions is None else positions[..., -1],
            padded=not bool(real.all()),
        )
        times = pass_.batch // len(scores)
        if times > 1:
            # Beams and sampled answers are rows of their own from the start.
            lane = lane.select(torch.arange(len(scores), device="cpu").repeat_interleave(times))
            scores = scores.repeat_interleave(times, 0)
        return scores, lane

    def _of_rows(self, pass_: Pass, given: Mapping[str, Any]) -> Pass:
        """The main run's pass for the samples that were asked for, without repeated rows."""
        ids = given.get("input_ids")
        batch = len(ids) if isinstance(ids, Tensor) else pass_.batch
        length = pass_.length - pass_.n_last + 1
        if batch == pass_.batch and length == pass_.length:
            return pass_
        rows = torch.arange(0, pass_.batch, pass_.batch // batch, device="cpu")
        tokens = pass_.tokens.select(rows).crop(length)
        return replace(pass_, tokens=tokens, length=length, n_last=1, masks=PromptMasks(tokens))

    def _go_on(
        self, branch: Branch, given: Mapping[str, Any], pass_: Pass, lane: Lane, count: int
    ) -> tuple[Tensor, Lane]:
        """Run the last ``count`` new tokens of the main run's block through a branch."""
        ids, real = _block(given, pass_, count)
        past = pass_.past + pass_.length - count
        lane, inputs = lane.next(ids, real, past)
        given = {**inputs, "return_dict": True}
        scores, _ = self.call(given, branch.edits, min(pass_.n_last, count))
        return scores, lane

    def call(
        self,
        inputs: Mapping[str, Any],
        edits: tuple[Edit, ...] | None,
        n_last: int,
        enter: Any = None,
        ahead: Tensor | None = None,
    ) -> tuple[Tensor, Running]:
        """Run the model for a branch: scores of its last rows, "B R V", and its tower's pass."""
        scorer: Any = self.scorer()
        kept = [(m, m.rope_deltas) for m in self.owners]
        self._here.given, self._here.running = inputs, None
        try:
            with self._second(inputs, edits, n_last, enter, ahead):
                # Not by the module's call: what we hook it with is for the main run.
                output = scorer.forward(**run_before(scorer, inputs))
            second = self._here.running
        finally:
            self._here.given = self._here.running = None
            for module, deltas in kept:
                module.rope_deltas = deltas
        if not isinstance(second, Running):
            raise RuntimeError(f"{type(scorer).__name__} ran without its text tower")
        return output.logits.gather(1, scored_rows(second.pass_, output.logits)), second


def _refuse_other_masks(inputs: Mapping[str, Any]) -> None:
    """Check that an attention mask says which tokens are padding.

    Raises:
        NotImplementedError: It has other dimensions.
    """
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim != 2:
        raise NotImplementedError(
            "a second run of the model counts a prompt's tokens by its attention mask, and this "
            f"one has {mask.ndim} dimensions: give one of two"
        )


def _is_asked(asked: Mapping[str, Any], pass_: Pass) -> bool:
    """Return whether a prompt is the one that a running ``generate`` was asked.

    Processors of scores may run the model inside of it on a prompt of their own, as those for
    classifier-free guidance do.
    """
    ids = asked.get("input_ids")
    if not isinstance(ids, Tensor) or pass_.batch % len(ids):
        return True
    ids = ids.cpu().repeat_interleave(pass_.batch // len(ids), 0)
    return torch.equal(pass_.ids[:, : ids.shape[1]], ids)


def _positions(inputs: Mapping[str, Any], like: Tensor | None) -> Tensor | None:
    """Positions of a branch's prompt, where the model wouldn't count them right by itself.

    Args:
        inputs: The branch's arguments.
        like: The main run's position ids: "1|B Q", or "3|4 B Q" of M-RoPE, whose models count only
            prompts with pictures and go on from whatever prompt they counted last.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor):
        return None
    axes = None if like is None or like.ndim == 2 else like.shape[0]
    pictures = any(isinstance(v, Tensor) and v.is_floating_point() for v in inputs.values())
    padded = isinstance(mask, Tensor) and not bool(mask.bool().all())
    if (axes is not None and pictures) or (axes is None and not padded):
        return None
    real = torch.ones_like(ids) if not isinstance(mask, Tensor) else mask.long()
    positions = (real.cumsum(1) - 1).clamp(min=0)
    return positions if axes is None else positions.expand(axes, -1, -1)


def scored_rows(pass_: Pass, logits: Tensor) -> Tensor:
    """Return the indices of the last rows among those with scores, "B R V" for `gather`."""
    rows = pass_.scored(logits.shape[1]).to(logits.device)
    return rows[..., None].expand(-1, -1, logits.shape[-1])


def _block(given: Mapping[str, Any], pass_: Pass, count: int) -> tuple[Tensor, Tensor]:
    """The last token ids of the main run's block, and which are no padding."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape[1] < count:
        raise NotImplementedError(
            "a second run of the model follows token ids, and this step was given none"
        )
    if bool(pass_.tokens.is_kind(Kind.IMAGE)[:, -count:].any()):
        raise NotImplementedError(
            "another picture came in the middle of the conversation, which a second run of the "
            "model can't follow: begin anew with the whole conversation"
        )
    real = ~pass_.tokens.is_kind(Kind.PAD)[:, -count:]
    return ids[:, -count:], real.to(ids.device)
