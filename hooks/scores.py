"""Edits of next-token scores, and what second runs of the model give for them.

The text tower knows no scores, so this hooks the model around it whose ``forward`` gives ``logits``
and which ``generate`` calls, however it is wrapped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from regaze.hooks.again import Again, shown
from regaze.hooks.ahead import look_ahead
from regaze.hooks.caches import cache_name, find_cache
from regaze.hooks.callers import refuse_nested
from regaze.hooks.edits import Edit
from regaze.hooks.joint import JointCache, Part, Together, arguments, joinable, plain
from regaze.hooks.lanes import Lane
from regaze.hooks.prompts import Lanes
from regaze.hooks.replaced import keeping_nothing
from regaze.hooks.running import Running
from regaze.hooks.second_runs import RunSecond, ScorerHere, SecondRuns, scored_rows
from regaze.hooks.tally import Entry, due

PLACE = -1
"""The layer number under which edits of scores are counted."""

RunAgain = Callable[[Running, Tensor], AbstractContextManager[Again]]
"""Lets the pass inside be a second run of a prompt's last rows, given the samples that take what
comes out."""


class Scores:
    """Edits of next-token scores of one model.

    Args:
        scorer: See `regaze.hooks.scorer.find_scorer`.
        second: See `regaze.hooks.second_runs.RunSecond`.
        request: Returns the arguments of a running ``generate``; None if none runs.
        lanes: The second runs of the prompt on a cache, as far as they are of edits that act now.
        keep: Leaves the lanes of a pass with its prompt.
        again: Runs the last rows of a prompt again; see `regaze.hooks.again`.
    """

    def __init__(
        self,
        scorer: nn.Module,
        second: RunSecond,
        request: Callable[[], Mapping[str, Any] | None],
        lanes: Callable[[Any], Lanes],
        keep: Callable[[Running, Lanes], None],
        again: RunAgain,
    ) -> None:
        self._scorer = weakref.ref(scorer)
        self._request = request
        self._lanes, self._keep = lanes, keep
        self._again = again
        self._here = ScorerHere()
        self._runs = SecondRuns(scorer, second, request, self._here)

    @torch.compiler.disable
    def enter(
        self, scorer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take note of a call's arguments; return others where second runs join it."""
        if scorer is not self._scorer():
            return None
        if self._here.given is not None:
            refuse_nested(scorer)
        given = dict(zip(("input_ids",), args, strict=False)) | kwargs
        self._here.given, self._here.running, self._here.joint = given, None, {}
        asked = kwargs.get("return_dict")
        named = getattr(scorer.config, "return_dict", True) if asked is None else asked
        self._here.as_tuple = not named
        if not named:  # Scores are found by name; `leave` makes the tuple.
            given, kwargs = ({**held, "return_dict": True} for held in (given, kwargs))
        joint = self._join(scorer, given)
        if joint is not None:
            return (), joint
        return None if named else (args, kwargs)

    def _join(self, scorer: Any, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments of a step of the main run and of those second runs that can join it."""
        cache: Any = find_cache(given)
        if not (lanes := self._lanes(cache)) or not joinable(scorer, given):
            return None
        ids, mask, past = given["input_ids"], given.get("attention_mask"), cache.get_seq_length()
        real = None if mask is None else mask[:, -ids.shape[1] :]
        parts, joined, positions = [Part(given)], {}, [given.get("position_ids")]
        before = next(iter(lanes.values())).joint
        for key, lane in lanes.items():
            branch = key[0].work.branches[key[1]]
            lane, alone = lane.next(ids, real, past)
            if not plain(lane.cache, len(ids)):
                continue
            parts.append(Part(alone, branch.edits))
            positions.append(lane.positions(alone))
            joined[key] = lane
        columns = [int(part.cache.get_seq_length()) for part in parts]
        if positions[0] is None:
            # What the model counts by itself it counts alike for all rows.
            if self._runs.owners or any(lane.last is not None for lane in joined.values()):
                return None
            if len(set(columns)) > 1:
                return None
            positions = [None] * len(parts)
        if not joined or len({len(part.cache) for part in parts}) > 1:
            return None
        joint = JointCache(parts, columns, before)
        self._here.joint = {key: replace(lane, joint=joint) for key, lane in joined.items()}
        return arguments(scorer, joint, positions)

    def note(self, running: Running | Together) -> None:
        """Take note of the tower's pass in this call.

        Raises:
            NotImplementedError: A model generates that makes its scores elsewhere, or a part of it
                was called that makes none.
        """
        if self._here.given is not None:
            self._here.running = running
            return
        main = running.main if isinstance(running, Together) else running
        if main.keeps:
            raise NotImplementedError(
                "an intervention runs the last row of a prompt again when it has seen what it "
                f"predicts, and {type(self._scorer()).__name__} was called without its output "
                "layer: call the model itself, not a part of it"
            )
        if not any(edit.scores for edit in main.works.values()):
            return
        name = type(self._scorer()).__name__
        if self._request() is not None:
            raise NotImplementedError(
                f"{name}.generate() doesn't make its scores by a call of the model itself but of a "
                "part of it, so they can't be edited"
            )
        if main.pass_.prompt_end:
            raise NotImplementedError(
                f"an intervention edits next-token scores, and {name} was called without its "
                "output layer, so that scores made of what it returns would stay as they are: call "
                "the model itself, not a part of it (run.partial_prompt() if the prompt goes on)"
            )

    @torch.compiler.disable
    def leave(self, scorer: nn.Module, args: Any, output: Any) -> Any:
        """Change the scores of a call; a tuple where the caller asked for one."""
        changed = self._change(scorer, output)
        if scorer is not self._scorer() or not self._here.as_tuple:
            return changed
        self._here.as_tuple = False
        output = output if changed is None else changed
        return output.to_tuple() if isinstance(output, ModelOutput) else output

    def _change(self, scorer: nn.Module, output: Any) -> Any:
        """The output with its scores changed, or None if it stays.

        Raises:
            NotImplementedError: The model gives no ``logits`` by that name, or a branch would have
                to begin in the middle of a prompt.
        """
        if scorer is not self._scorer():
            return None
        given, found, joined = self._here.given, self._here.running, self._here.joint
        self._here.given, self._here.running, self._here.joint = None, None, {}
        if output is None or given is None or found is None:
            return None
        seconds: list[Running] = []
        if isinstance(found, Together):
            running, *seconds = found.runs
        else:
            running = found
        works = [(entry, edit) for entry, edit in running.works.items() if edit.scores]
        if not works and not running.keeps:
            return None
        pass_ = running.pass_
        if not pass_.prompt_end:
            if any(edit.branches for _, edit in works):
                raise NotImplementedError(
                    "a second run of the model needs the whole prompt in one block (no "
                    "prefill_chunk_size, no shared beginning)"
                )
            return None
        _refuse_picked(given.get("logits_to_keep"), pass_.length)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise NotImplementedError(
                f"{type(scorer).__name__} returned no .logits, so its scores can't be edited: "
                "attach methods that leave scores alone"
            )
        others: dict[tuple[Entry[Edit, int], int], Tensor] = {}
        if isinstance(found, Together):
            logits, *rest = found.joint.split(logits)
            found.joint.restore(output)
            for key, second, one in zip(joined, seconds, rest, strict=True):
                others[key] = one.gather(1, scored_rows(second.pass_, one))
        rows = scored_rows(pass_, logits)
        scores = logits.gather(1, rows).float()
        if running.keeps:
            scores = self._look_back(scores, given, running, output)
        lanes: dict[tuple[Entry[Edit, int], int], Lane] = {}
        for entry, edit in works:
            before = scores
            for number, branch in enumerate(edit.branches):
                key = entry, number
                if key in others:
                    other, lane = others[key], joined[key]
                else:
                    other, lane = self._runs.run(
                        branch, given, running, running.prompt.lanes.get(key)
                    )
                scores = branch.combine(scores, other.to(scores), pass_)
                lanes[key] = lane
            scores = edit.edit_scores(scores, pass_)
            _count(entry, before, scores, running)
        if lanes and running.cache is not None:
            self._keep(running, lanes)
        output.logits = logits.scatter(1, rows, scores.to(logits.dtype))
        return output

    def _look_back(
        self, scores: Tensor, given: Mapping[str, Any], running: Running, output: Any
    ) -> Tensor:
        """The scores after the last rows were run again, where an edit wants that.

        Raises:
            NotImplementedError: ``generate`` keeps no cache, so all steps would decide anew.
        """
        pass_ = running.pass_
        if running.cache is None and self._request() is not None:
            raise NotImplementedError(
                "this method decides once by what a prompt predicts, and keeps that with the "
                "prompt's cache: leave out use_cache=False"
            )
        scorer: Any = self._scorer()
        config = scorer.config.get_text_config(decoder=True)
        samples = torch.zeros(pass_.batch, dtype=torch.bool, device=scores.device)
        first = scores[:, scores.shape[1] - pass_.n_last]
        looking = [edit for edit in running.works.values() if edit.looks_back]
        with torch.no_grad():
            look_ahead(self._runs, first, running, max(edit.looks_ahead for edit in looking))
            for edit in looking:
                wanted = edit.look_back(first, pass_)
                samples |= False if wanted is None else wanted.to(scores.device)
        samples &= pass_.tokens.has_image.to(scores.device)
        if not bool(samples.any()):
            return scores
        kept = [(m, m.rope_deltas) for m in self._runs.owners]
        try:
            with keeping_nothing(scorer), self._again(running, samples) as again:
                told = again.inputs(given, config, cache_name(scorer), shown(output))
                new = scorer.forward(**told)
        finally:
            self._here.given = self._here.running = None
            for module, deltas in kept:
                module.rope_deltas = deltas
        return again.answer(output, scores, new)


def _refuse_picked(kept: Any, length: int) -> None:
    """Check that rows whose scores are kept are a block's last ones."""
    if not isinstance(kept, Tensor) or kept.ndim == 0:
        return
    if kept.tolist() != list(range(length - kept.numel(), length)):
        raise NotImplementedError(
            "logits_to_keep picks rows, and next-token scores are edited where they are the last "
            "ones: give it a number of rows, or leave it out"
        )


def _count(entry: Entry[Edit, int], before: Tensor, after: Tensor, running: Running) -> None:
    """Count an edit of scores; its effect is how far probabilities moved (total variation)."""
    entry.tally.count(PLACE)
    asked = running.prompt.asked
    asked[entry, PLACE] += 1
    if due(asked[entry, PLACE]):
        moved = 0.5 * (after.softmax(-1) - before.softmax(-1)).abs().sum(-1)
        entry.tally.add(PLACE, moved)
