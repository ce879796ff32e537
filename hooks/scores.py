"""Next-token scores: edits of them, and second runs of the model that they are combined with.

The text tower knows no scores, so this hooks the model around it whose ``forward`` gives ``logits``
and which ``generate`` calls, however it is wrapped.
"""

from __future__ import annotations

import copy
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
from transformers import DynamicCache, GenerationMixin
from transformers.utils import ModelOutput

from regaze.hooks.again import Again
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.joint import JointCache, Part, Together, arguments, joinable, plain
from regaze.hooks.lanes import Lane
from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.prompts import Lanes
from regaze.hooks.running import Running
from regaze.hooks.tally import Entry, due
from regaze.hooks.tokens import Kind

PLACE = -1
"""What scores are counted under, where edits of attention have a layer."""
# Per-token inputs that say which tokens are of a picture.
_TYPES = ("token_type_ids", "mm_token_type_ids")
_POSITIONS = ("position_ids", "cache_position")

RunSecond = Callable[
    [Mapping[str, Any], tuple[Edit, ...] | None, int, Any, Tensor | None],
    AbstractContextManager[None],
]
"""Lets passes inside be a branch's: its arguments, its edits (None: the main run's), rows whose
scores are wanted, `Branch.enter` at its prompt, and `Pass.ahead`."""

RunAgain = Callable[[Running, Tensor], AbstractContextManager[Again]]
"""Lets the pass inside be a second run of a prompt's last rows, given the samples that take what
comes out."""


def find_scorer(model: nn.Module, tower: nn.Module) -> nn.Module | None:
    """The outermost model that generates with the text tower, if it is within reach."""
    for module in model.modules():
        if isinstance(module, GenerationMixin) and any(part is tower for part in module.modules()):
            return module
    return None


def generates_by(model: nn.Module, tower: nn.Module) -> str:
    """The class of the part that a model generates with in its place; empty if there is none.

    Such a model's ``generate`` calls another one inside of it (as Q-Former models do), and its own
    ``forward``, whose scores could be edited, never runs.
    """
    scorer: Any = find_scorer(model, tower)
    if scorer is None or type(scorer).generate is GenerationMixin.generate:
        return ""
    inner = (one for one in scorer.children() if find_scorer(one, tower) is not None)
    return next((type(one).__name__ for one in inner), "")


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
    return found


class _Here(threading.local):
    """The call of the scorer that runs in one thread, and the pass of its tower."""

    given: Mapping[str, Any] | None = None
    running: Running | Together | None = None
    joint: Lanes = MappingProxyType({})
    as_tuple: bool = False


class Scores:
    """Edits of next-token scores of one model.

    Args:
        scorer: See `find_scorer`.
        second: See `RunSecond`.
        request: What a running ``generate`` was asked; None if none runs.
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
        self._second, self._request = second, request
        self._lanes, self._keep = lanes, keep
        self._again = again
        self._here = _Here()
        # Qwen-VL models leave how far a prompt's positions run ahead on a module.
        self._owners = [m for m in scorer.modules() if hasattr(m, "rope_deltas")]

    @torch.compiler.disable
    def enter(
        self, scorer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take note of a call's arguments; return others where second runs join it."""
        if scorer is not self._scorer():
            return None
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
        cache: Any = given.get("past_key_values")
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
            if self._owners or any(lane.last is not None for lane in joined.values()):
                return None
            if len(set(columns)) > 1:
                return None
            positions = [None] * len(parts)
        if not joined or len({len(part.cache) for part in parts}) > 1:
            return None
        joint = JointCache(parts, columns, before)
        self._here.joint = {key: replace(lane, joint=joint) for key, lane in joined.items()}
        return arguments(joint, positions)

    def note(self, running: Running | Together) -> None:
        """Take note of the tower's pass in this call.

        Raises:
            NotImplementedError: A model generates that makes its scores elsewhere.
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
        if any(edit.scores for edit in main.works.values()) and self._request() is not None:
            raise NotImplementedError(
                f"{type(self._scorer()).__name__}.generate() doesn't make its scores by a call of "
                "the model itself but of a part of it, so they can't be edited"
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
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise NotImplementedError(
                f"{type(scorer).__name__} returned no .logits, so its scores can't be edited; "
            )
        others: dict[tuple[Entry[Edit, int], int], Tensor] = {}
        if isinstance(found, Together):
            logits, *rest = found.joint.split(logits)
            found.joint.restore(output)
            for key, second, one in zip(joined, seconds, rest, strict=True):
                others[key] = one.gather(1, _rows(second.pass_, one))
        rows = _rows(pass_, logits)
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
                    other, lane = self._run(branch, given, running, running.prompt.lanes.get(key))
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
        """The scores after the last rows were run again, where an edit wants that."""
        pass_ = running.pass_
        scorer: Any = self._scorer()
        config = scorer.config.get_text_config(decoder=True)
        samples = torch.zeros(pass_.batch, dtype=torch.bool, device=scores.device)
        first = scores[:, scores.shape[1] - pass_.n_last]
        looking = [edit for edit in running.works.values() if edit.looks_back]
        with torch.no_grad():
            self._look_ahead(first, running, max(edit.looks_ahead for edit in looking))
            for edit in looking:
                wanted = edit.look_back(first, pass_)
                samples |= False if wanted is None else wanted.to(scores.device)
        samples &= pass_.tokens.has_image.to(scores.device)
        if not bool(samples.any()):
            return scores
        kept = [(m, m.rope_deltas) for m in self._owners]
        try:
            with self._again(running, samples) as again:
                new = scorer.forward(**again.inputs(given, config))
        finally:
            self._here.given = self._here.running = None
            for module, deltas in kept:
                module.rope_deltas = deltas
        return again.answer(output, scores, new)

    def _look_ahead(self, scores: Tensor, running: Running, steps: int) -> None:
        """Run decode steps on the likeliest tokens, as far as samples haven't come to an end.

        Args:
            scores: "B V" after the prompt.
            running: The prompt's pass.
            steps: How many.

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
        pass_, positions, last = running.pass_, running.positions, None
        columns = pass_.past + pass_.length - pass_.n_last + 1
        if positions is not None:
            rows = pass_.last_rows.to(positions.device)
            whole = positions.expand(*positions.shape[:-2], pass_.batch, -1)
            last = whole.gather(-1, rows[:, None].expand(*whole.shape[:-1], 1))[..., 0]
        real = ~pass_.tokens.is_kind(Kind.PAD)[:, :columns]
        if last is None and not bool(real.all()):
            # The tower counts columns; behind a shorter prompt stands padding.
            last = (pass_.last_rows + pass_.past).to(scores.device)
        mask = real.long().to(scores.device)
        lane = Lane(_copied(running.cache), mask, 0, columns, last, not bool(real.all()))
        ends = torch.tensor(self._ends(), device=scores.device)
        speaking = torch.ones(pass_.batch, dtype=torch.bool, device=scores.device)
        for _ in range(steps):
            token = scores.argmax(-1)
            speaking = speaking & ~torch.isin(token, ends)
            if not bool(speaking.any()):
                return
            lane, inputs = lane.next(token[:, None], None, columns)
            given = {**inputs, "return_dict": True}
            scores = self._call(given, None, 1, ahead=speaking)[0][:, -1].float()
            columns += 1

    def _ends(self) -> list[int]:
        """Tokens that end an answer, as a running ``generate`` or the model's settings say."""
        asked, scorer = self._request() or {}, self._scorer()
        told = getattr(asked.get("generation_config"), "eos_token_id", None)
        known = getattr(getattr(scorer, "generation_config", None), "eos_token_id", None)
        found = next((e for e in (asked.get("eos_token_id"), told, known) if e is not None), [])
        return [int(e) for e in (found if isinstance(found, (list, tuple)) else [found])]

    def _run(
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
        scorer: Any = self._scorer()
        pass_, asked = running.pass_, self._request()
        if asked is not None and running.cache is None:
            raise NotImplementedError(
                "a second run of the model keeps its tokens in a cache, and generate was told "
                "use_cache=False; leave that out"
            )
        if asked is not None:
            # Inputs of the model, not settings of generate.
            known = inspect.signature(scorer.forward).parameters
            given = {k: v for k, v in asked.items() if k in known or isinstance(v, Tensor)}
        inputs = dict(branch.inputs(given, self._of_rows(pass_, given)))
        for name in (*_POSITIONS, "labels", "logits_to_keep"):
            inputs.pop(name, None)
        if (positions := _positions(inputs, running.positions)) is not None:
            inputs["position_ids"] = positions
        mask = inputs.get("attention_mask")
        ends = mask is None or (isinstance(mask, Tensor) and bool(mask[:, -1].all()))
        if ends and "logits_to_keep" in inspect.signature(scorer.forward).parameters:
            inputs["logits_to_keep"] = 1
        cache = DynamicCache(config=scorer.config.get_text_config(decoder=True))
        inputs |= {"past_key_values": cache, "use_cache": True, "return_dict": True}
        scores, second = self._call(inputs, branch.edits, 1, branch.enter)
        if len(scores) < 1 or pass_.batch % len(scores):
            raise ValueError(
                f"a second run has {len(scores)} samples, the main one {pass_.batch}; it needs one "
                "for each"
            )
        columns, positions = second.pass_.length, second.positions
        lane = Lane(
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
            lane = lane.select(torch.arange(len(scores)).repeat_interleave(times))
            scores = scores.repeat_interleave(times, 0)
        return scores, lane

    def _of_rows(self, pass_: Pass, given: Mapping[str, Any]) -> Pass:
        """The main run's pass for the samples that were asked for, without repeated rows."""
        ids = given.get("input_ids")
        batch = len(ids) if isinstance(ids, Tensor) else pass_.batch
        length = pass_.length - pass_.n_last + 1
        if batch == pass_.batch and length == pass_.length:
            return pass_
        rows = torch.arange(0, pass_.batch, pass_.batch // batch)
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
        scores, _ = self._call(given, branch.edits, min(pass_.n_last, count))
        return scores, lane

    def _call(
        self,
        inputs: Mapping[str, Any],
        edits: tuple[Edit, ...] | None,
        n_last: int,
        enter: Any = None,
        ahead: Tensor | None = None,
    ) -> tuple[Tensor, Running]:
        """Run the model for a branch: scores of its last rows, "B R V", and its tower's pass."""
        scorer: Any = self._scorer()
        kept = [(m, m.rope_deltas) for m in self._owners]
        self._here.given, self._here.running = inputs, None
        try:
            with self._second(inputs, edits, n_last, enter, ahead):
                # Not by the module's call: what hooks it is for the main run.
                output = scorer.forward(**inputs)
            second = self._here.running
        finally:
            self._here.given = self._here.running = None
            for module, deltas in kept:
                module.rope_deltas = deltas
        if not isinstance(second, Running):
            raise RuntimeError(f"{type(scorer).__name__} ran without its text tower")
        return output.logits.gather(1, _rows(second.pass_, output.logits)), second


def _copied(cache: Any) -> Any:
    """A copy of a cache, and of what is known of its prompt; no gradient flows into it."""
    held = (vars(layer).values() for layer in cache.layers)
    tensors = (value for values in held for value in values if isinstance(value, Tensor))
    return copy.deepcopy(cache, {id(one): one.detach().clone() for one in tensors})


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


def _rows(pass_: Pass, logits: Tensor) -> Tensor:
    """Which of the rows whose scores were kept are the last ones, "B R V" for `gather`."""
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


def _count(entry: Entry[Edit, int], before: Tensor, after: Tensor, running: Running) -> None:
    """Count an edit of scores; its effect is how far probabilities moved (total variation)."""
    entry.tally.count(PLACE)
    asked = running.prompt.asked
    asked[entry, PLACE] += 1
    if due(asked[entry, PLACE]):
        moved = 0.5 * (after.softmax(-1) - before.softmax(-1)).abs().sum(-1)
        entry.tally.add(PLACE, moved)
