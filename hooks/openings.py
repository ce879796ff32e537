"""The opening of a text tower's passes: the call read, its prompt taken up, works made ready."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.again import Again, keeps_calls
from regaze.hooks.cache_rows import CacheRows
from regaze.hooks.caches import find_cache
from regaze.hooks.callers import Generating, call_of, runs
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.joint import JointCache, Together
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.null_prompt import NullPrompt, shares_beginning
from regaze.hooks.others import go_inside
from regaze.hooks.passes import Pass
from regaze.hooks.prompts import Prompt, prompt_on, put_prompt
from regaze.hooks.reading import Block, Reader
from regaze.hooks.running import Running
from regaze.hooks.stack import Here, LayerEntry, Stack, at_layers
from regaze.hooks.tally import Entry
from regaze.hooks.tokens import Kind

Enter = Callable[[Mapping[str, Any], Pass], Mapping[str, Any]]


@dataclass(frozen=True)
class Second:
    """A second run of the model that is under way.

    Attributes:
        entries: Entries that edit the run; None for those of the main run, in a run that looks
            ahead.
        n_last: Rows whose scores are wanted.
        enter: `Branch.enter`, while it reads its prompt.
        ahead: `Pass.ahead`.
    """

    entries: Sequence[LayerEntry] | None
    n_last: int
    enter: Enter | None
    ahead: Tensor | None


class TextHere(Here):
    """The state of a seat in one thread."""

    running: Running | Together | Again | None = None
    again: Again | None = None
    second: Second | None = None
    partial: bool = False
    asked: bool = False
    reached: bool = False
    outer: tuple[FrameType | None, Mapping[str, Any]] = (None, {})
    embedded: tuple[FrameType | None, Tensor | None] = (None, None)


class Openings(Stack):
    """A stack that opens the passes of a text tower.

    What belongs to a call is kept per thread (`TextHere`), what belongs to a prompt by its cache
    (`Prompt`).
    """

    here = TextHere
    _here: TextHere

    def __init__(self, host: Host, reader: Reader) -> None:
        super().__init__(host.model, host.tower, {site.layer: site.path for site in host.sites})
        self.reader = reader
        self._kv_layers = {site.layer: site.kv_layer for site in host.sites}
        self._inner: weakref.WeakKeyDictionary[Edit, LayerEntry] = weakref.WeakKeyDictionary()

    @torch.compiler.disable
    @sees_keywords
    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is self._model():
            given = dict(zip(("input_ids",), args, strict=False)) | kwargs
            self._here.outer, self._here.reached = (call_of(model), given), False
            self._here.embedded = None, None
            if (tower := self.tower()) is not None:
                go_inside(tower, self)  # Now, for hooks of a call are listed when it begins.

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if model is not self._model():
            return
        self._here.outer, self._here.embedded = (None, {}), (None, None)
        if output is not None and not self._here.reached:
            raise RuntimeError(
                f"{type(model).__name__} ran without the text tower that interventions were "
                "attached to (another was put in its place since), so they were skipped: detach, "
                "and attach again"
            )

    @torch.compiler.disable
    @sees_keywords
    def _embed(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tower: Any = self.tower()
        ids = args[0] if args else kwargs.get("input")
        if tower is not None and isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] > 1:
            self._here.embedded = self.reader.callers.around(), ids

    def _block(self, kwargs: Mapping[str, Any]) -> Block:
        """Gather the facts about the call, without what an interrupted one left in this thread."""
        frame, outer = self._here.outer
        second = self._here.second
        if second is None:
            generating = self.reader.callers.generating()
        else:
            generating = Generating(candidates=second.n_last - 1)
        inside, ids = self._here.embedded
        cache = find_cache(kwargs)
        return Block(
            kwargs,
            outer=outer if runs(frame) else {},
            embedded=ids if runs(inside) else None,
            generating=generating,
            partial=self._here.partial,
            past=0 if cache is None else int(cache.get_seq_length()),
        )

    def _open(
        self, kwargs: Mapping[str, Any], block: Block, entries: Sequence[LayerEntry] | None
    ) -> Running:
        """Begin the pass of one run.

        Args:
            kwargs: The tower's arguments.
            block: Facts known of the call.
            entries: Entries that edit the run; None for the main run.
        """
        cache = find_cache(kwargs)
        before = prompt_on(cache, self)
        # Put back when the pass has gone well; a cache that one broke off is no prompt's.
        put_prompt(cache, self, None)
        pass_, prompt = self.reader.read(block, before)
        pass_.ahead = None if self._here.second is None else self._here.second.ahead
        before = before if block.past else None
        if before is not None and before.rows is not None:
            before.rows.check(cache, pass_.past)
        by_layer = self._by_layer if entries is None else at_layers(entries)
        prompt = _with_works(self.entries if entries is None else entries, prompt, before, pass_)
        keeps = entries is None and keeps_calls(list(prompt.works.values()), pass_)
        sizes: dict[int, tuple[int, int]] = {}
        if cache is not None and _gives_others(cache):
            sizes = {
                i: cache.get_mask_sizes(pass_.length, self._kv_layers[i])
                for i in (self._kv_layers if keeps else by_layer)
            }
        offsets = {i: offset for i, (_, offset) in sizes.items()}
        n_keys = {i: count for i, (count, _) in sizes.items()}
        running = Running(
            pass_, prompt, prompt.works, cache, by_layer, None, offsets, n_keys, self._checked
        )
        running.keeps = keeps
        return running

    def _open_all(self, joint: JointCache, kwargs: Mapping[str, Any]) -> list[Running]:
        """Begin the pass of several runs in one."""
        runs: list[Running] = []
        for number, part in enumerate(joint.parts):
            given = joint.tower(number, kwargs)
            # Behind the main run's drafts the others' are as many.
            generating = (
                Generating(candidates=runs[0].pass_.n_last - 1)
                if runs
                else self.reader.callers.generating()
            )
            partial = self._here.partial and not runs
            past = int(part.cache.get_seq_length())
            block = Block(given, part.given, None, generating, partial, past)
            entries = None if part.edits is None else self._entries_of(part.edits)
            runs.append(self._open(given, block, entries))
        return runs

    def _entries_of(self, edits: tuple[Edit, ...]) -> list[LayerEntry]:
        """Entries for a branch's edits, the same ones in every pass."""
        for edit in edits:
            if edit not in self._inner:
                self._inner[edit] = Entry(edit)
        return [self._inner[edit] for edit in edits]

    def _leave_prompt(self, running: Running, cache: Any) -> None:
        """Leave what is known of a prompt on its cache, if there is one."""
        if cache is None:
            return
        rows = running.prompt.rows
        grown = running.pass_.tokens.generated > 0 and rows is not None
        rows = rows.seen(cache) if grown and rows else CacheRows.of(cache, running.pass_.tokens)
        put_prompt(cache, self, running.prompt.having(rows=rows))
        running.cache = cache

    @contextmanager
    def partial(self) -> Iterator[None]:
        """Forward passes of this thread inside are parts of a prompt that goes on."""
        before, self._here.partial = self._here.partial, True
        try:
            yield
        finally:
            self._here.partial = before


def _gives_others(cache: Any) -> bool:
    """Return whether a cache hands layers a window of the columns so far, or empty room too."""
    return any(getattr(cache, "is_sliding", ())) or bool(getattr(cache, "is_compileable", False))


def _with_works(
    entries: Sequence[LayerEntry],
    prompt: Prompt,
    before: Prompt | None,
    pass_: Pass,
) -> Prompt:
    """The prompt with each edit's state, prepared for a pass."""
    works = {}
    for entry in entries:
        known = None if before is None else before.works.get(entry)
        if known is None:
            if before is not None and not entry.work.idle:
                raise ValueError(
                    "an intervention was attached in the middle of a prompt, which was encoded "
                    "without it; attach first, then prefill"
                )
            known = entry.work
        works[entry] = edit = known.fork()
        edit.begin(pass_)
        # At its end: a beginning may be shared by several prompts.
        if pass_.prompt_end and pass_.tokens.generated == 0:
            entry.tally.begin(pass_.batch)
    return prompt.having(works=works, asked=prompt.asked.copy())


def null_prompt_of(running: Running, kwargs: Mapping[str, Any]) -> NullPrompt | None:
    """The prompt without images, where an edit compares and hasn't yet."""
    pass_, prompt, entries = running.pass_, running.prompt, list(running.works)
    wants = any(e.work.null_prompt and e.work.layers for e in entries)
    if not wants or not bool(pass_.tokens.has_image.any()):
        return None
    if prompt.compared is not None and _holds(prompt, prompt.compared, pass_):
        later = pass_.tokens.is_kind(Kind.IMAGE)[:, prompt.compared.shape[1] :]
        if not pass_.decodes and bool(later.any()):
            raise NotImplementedError(
                "another picture came in the middle of the conversation, and this intervention "
                "compared the prompt with and without the first one: begin anew with the whole "
                "conversation"
            )
        return None
    if pass_.past > 0 or not pass_.prompt_end:
        raise NotImplementedError(
            "this intervention compares the prompt with and without its image and needs "
            "the whole prompt, image and question, in one block (no prefill_chunk_size, no "
            "cached beginning)"
        )
    return NullPrompt.of(pass_, shares_beginning(pass_, kwargs.get("attention_mask")))


def _holds(prompt: Prompt, ids: Tensor, pass_: Pass) -> bool:
    """Return whether a prompt still begins with token ids "B C"; it may have been rolled back.

    Token ids say nothing of pictures: those that are read again may be others.
    """
    end = ids.shape[1]
    if bool(pass_.tokens.is_kind(Kind.IMAGE)[:, pass_.past : end].any()):
        return False
    return torch.equal(prompt.ids[:, :end], ids)
