"""The seat: the stack of edits of one text tower, and what its forward passes need."""

from __future__ import annotations

import inspect
import sys
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
from regaze.hooks.callers import Generating, call_of, frames, runs
from regaze.hooks.edits import Edit, overrides
from regaze.hooks.host import Host
from regaze.hooks.joint import JointCache, Together
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.null_prompt import NullPrompt, shares_beginning
from regaze.hooks.packing import Inputs
from regaze.hooks.passes import Pass
from regaze.hooks.prompts import Lanes, Prompt, prompt_on, put_prompt
from regaze.hooks.reading import Block, Reader
from regaze.hooks.recurrent import Apart
from regaze.hooks.running import Running
from regaze.hooks.scores import Scores, find_scorer
from regaze.hooks.sites import counts_beyond, rescales_beyond
from regaze.hooks.stack import KWARG, Here, LayerEntry, Stack, at_layers
from regaze.hooks.tally import Entry

Enter = Callable[[Mapping[str, Any], Pass], Mapping[str, Any]]
TEXT_ROWS = (None, "last", "latest", "question", "text", "image")


@dataclass(frozen=True)
class _Second:
    """A second run of the model that is under way.

    Attributes:
        entries: What edits it.
        n_last: Rows whose scores are wanted.
        enter: `Branch.enter`, while it reads its prompt.
    """

    entries: Sequence[LayerEntry]
    n_last: int
    enter: Enter | None


class _Here(Here):
    """What a seat knows of the calls of one thread."""

    running: Running | Together | Again | None = None
    again: Again | None = None
    second: _Second | None = None
    partial: bool = False
    asked: bool = False
    outer: tuple[FrameType | None, Mapping[str, Any]] = (None, {})
    embedded: tuple[FrameType | None, Tensor | None] = (None, None)


class Seat(Stack):
    """The ordered stack of edits of one text tower, and what they need to run.

    What belongs to a call is kept per thread (`_Here`), what belongs to a prompt by its cache
    (`Prompt`).
    """

    kind = "text"
    here = _Here
    _here: _Here

    def __init__(self, host: Host, reader: Reader) -> None:
        super().__init__(host.model, host.tower, {site.layer: site.path for site in host.sites})
        self.reader = reader
        self._inputs = Inputs(
            host.family.packs,
            host.family.zeros,
            min((site.window for site in host.sites if site.window is not None), default=None),
            rescales=rescales_beyond(host.tower.config),
            counts=counts_beyond(host.tower.config),
        )
        self._drops = host.family.drops
        self._kv_layers = {site.layer: site.kv_layer for site in host.sites}
        if host.recurrent:
            self.note = f"{len(host.sites)} of {host.n_layers} layers attend"
        self._scores: Scores | None = None
        self._inner: weakref.WeakKeyDictionary[Edit, LayerEntry] = weakref.WeakKeyDictionary()
        self._layers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()

    # -- coming and going -----------------------------------------------------------------------

    def _check(self, entry: LayerEntry) -> None:
        work = entry.work
        if work.rows not in TEXT_ROWS:
            raise ValueError(
                f'{work.rows!r} rows are of a vision tower: set tower = "vision" on '
                f'{type(work).__name__}, or take "last", "question" or "text"'
            )
        if any(edit.tower != "text" for branch in work.branches for edit in branch.edits):
            raise ValueError("edits of a second run (Branch.edits) act in the text tower only")
        if any(edit.looks_back for branch in work.branches for edit in branch.edits):
            raise ValueError("edits of a second run (Branch.edits) can't look back")
        null = {e.work.null_positions for e in [*self.entries, entry] if e.work.null_prompt}
        if len(null) > 1:
            raise ValueError(
                'interventions that remove the image as "drop" and as "mask" can\'t share a pass; '
                "give both the same null_image"
            )
        if (work.scores or work.looks_back) and self._scorer() is None:
            raise ValueError(
                "this intervention works on next-token scores, and "
                f"{type(self._model() or self._alive()).__name__} has no output layer that makes "
                "them: attach to the whole model (...ForConditionalGeneration)"
            )

    def _scorer(self) -> nn.Module | None:
        return find_scorer(self._model() or self._alive(), self._alive())

    def _prepare(self, entry: LayerEntry) -> None:
        needs = entry.work.scores or entry.work.looks_back
        scorer = self._scorer() if needs else None
        if scorer is not None and self._scores is None:
            self._watch_scores(scorer)

    def _hook(self, tower: Any) -> None:
        model = self._model()
        if model is not None and model is not tower:
            self._note(model)
            model.register_forward_pre_hook(self._enter, with_kwargs=True)
            model.register_forward_hook(self._leave, always_call=True)
        embeddings = tower.get_input_embeddings()
        self._note(embeddings)
        embeddings.register_forward_pre_hook(self._embed, with_kwargs=True)
        for index, layer in enumerate(tower.layers):
            if index not in self._paths:
                self._note(layer)
                layer.register_forward_pre_hook(self._divide, with_kwargs=True)
                layer.register_forward_hook(self._join, with_kwargs=True)

    def uninstall(self) -> None:
        """Take everything off the model; once more if it was interrupted."""
        super().uninstall()
        self._scores = None
        self._layers = weakref.WeakKeyDictionary()

    def _watch_scores(self, scorer: nn.Module) -> None:
        """Hook the model that makes next-token scores."""
        self._scores = Scores(
            scorer,
            self._run_second,
            self.reader.callers.request,
            self._lanes_on,
            self._keep_lanes,
            self._run_again,
        )
        self._note(scorer)
        scorer.register_forward_pre_hook(self._ask, with_kwargs=True)
        scorer.register_forward_hook(self._answer, always_call=True)

    def _watch(self) -> None:
        """Hook the layers whose input an edit wants to see."""
        layers = self._alive().layers
        works = [entry.work for entry in self.entries]
        works += [edit for work in works for branch in work.branches for edit in branch.edits]
        seeing = (work for work in works if overrides(work, "see_hidden"))
        for index in sorted({layer for work in seeing for layer in work.layers}):
            if layers[index] not in self._layers:
                self._note(layers[index])
                self._layers[layers[index]] = index
                layers[index].register_forward_pre_hook(self._see, with_kwargs=True)

    # -- around one forward pass ----------------------------------------------------------------

    @torch.compiler.disable
    @sees_keywords
    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is self._model():
            given = dict(zip(("input_ids",), args, strict=False)) | kwargs
            self._here.outer = call_of(model), given
            self._here.embedded = None, None

    @torch.compiler.disable
    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if model is self._model():
            self._here.outer, self._here.embedded = (None, {}), (None, None)

    @torch.compiler.disable
    @sees_keywords
    def _embed(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tower: Any = self.tower()
        ids = args[0] if args else kwargs.get("input")
        if tower is not None and isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] > 1:
            self._here.embedded = self.reader.callers.around(), ids

    @sees_keywords
    def _ask(
        self, scorer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._here.asked = True
        return None if self._scores is None else self._scores.enter(scorer, args, kwargs)

    def _see_asked(self, running: Running) -> None:
        """See that the scores of a pass will be edited, where a method does that.

        Raises:
            RuntimeError: They won't, as the model's ``forward`` was called around its hooks.
        """
        if self._here.asked or self._here.second:
            return
        if not running.keeps and not any(work.scores for work in running.works.values()):
            return
        scorer, around = self._scorer(), (f for f in frames() if f.f_code.co_name == "forward")
        if any(frame.f_locals.get("self") is scorer for frame in around):
            raise RuntimeError(
                f"{type(scorer).__name__}.forward was called directly, around what is attached "
                "(some wrappers, PEFT's forward among them, do that), so next-token scores would "
                "stay as they are: call the model itself, or its generate"
            )

    def _answer(self, scorer: nn.Module, args: Any, output: Any) -> Any:
        self._here.asked = False
        return None if self._scores is None else self._scores.leave(scorer, args, output)

    @contextmanager
    def _run_second(
        self, given: Mapping[str, Any], edits: tuple[Edit, ...], n_last: int, enter: Enter | None
    ) -> Iterator[None]:
        """Let passes of this thread inside be those of a second run of the model."""
        second = _Second(self._entries_of(edits), n_last, enter)
        here, self._here.second = self._here.second, second
        before = self._here.outer, self._here.embedded
        self._here.outer = sys._getframe(2), given
        self._here.embedded = None, None
        try:
            with self.others_paused():
                yield
        finally:
            self._here.second = here
            self._here.outer, self._here.embedded = before

    @contextmanager
    def _run_again(self, first: Running, samples: Tensor) -> Iterator[Again]:
        """Let the pass of this thread inside be a second run of a prompt's last rows."""
        again = Again.of(first, samples)
        cache = first.cache
        marked = None if cache is None else prompt_on(cache, self)
        put_prompt(cache, self, None)
        self._here.again = again
        try:
            with self.others_paused():
                yield again
                again.store()
        finally:
            self._here.again = None
            first.kept.clear()
        if cache is not None and marked is not None:
            rows = CacheRows.of(cache, first.pass_.tokens)
            put_prompt(cache, self, marked.having(rows=rows))

    def _entries_of(self, edits: tuple[Edit, ...]) -> list[LayerEntry]:
        """Entries for a branch's edits, the same ones in every pass."""
        for edit in edits:
            if edit not in self._inner:
                self._inner[edit] = Entry(edit)
        return [self._inner[edit] for edit in edits]

    def _lanes_on(self, cache: Any) -> Lanes:
        """The second runs of the prompt on a cache that go on in this pass."""
        prompt = prompt_on(cache, self)
        if prompt is None or self._here.paused or self._flexes():
            return {}
        return {key: lane for key, lane in prompt.lanes.items() if key[0] in self.entries}

    def _flexes(self) -> bool:
        """Whether masks of attention are functions of a row's number, as flex attention's are."""
        return any(base == "flex_attention" for _, base in self._configs)

    def _keep_lanes(self, running: Running, lanes: Lanes) -> None:
        """Leave the second runs' caches with the prompt on the main run's."""
        if running.cache is not None:
            rows = prompt_on(running.cache, self)
            prompt = running.prompt.having(lanes=lanes, rows=rows.rows if rows else None)
            put_prompt(running.cache, self, prompt)

    @torch.compiler.disable
    @sees_keywords
    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running, layer = self._here.running, self._layers.get(module)
        if isinstance(running, Running) and layer is not None:
            running.show(layer, args[0] if args else kwargs["hidden_states"])

    @torch.compiler.disable
    @sees_keywords
    def _divide(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        running = kwargs.get(KWARG) or self._here.running
        if not isinstance(running, Running) or running.null is None or not running.null.size:
            return None
        running.apart[layer] = Apart.of(running.null, args, kwargs)
        return running.apart[layer].prompt()

    @torch.compiler.disable
    @sees_keywords
    def _join(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        running = kwargs.get(KWARG) or self._here.running
        apart = running.apart.pop(layer, None) if isinstance(running, Running) else None
        return output if apart is None else apart.join(layer, output)

    @torch.compiler.disable
    @sees_keywords
    def _begin(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if tower is not self.tower():
            return None
        self._here.running = self._here.again
        if self._here.paused or self._here.again is not None:
            return None
        self._check_names()
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        for name in self._drops:
            kwargs.pop(name, None)
        joint = kwargs.get("past_key_values")
        if isinstance(joint, JointCache):
            self._here.running = Together(joint, self._open_all(joint, kwargs))
            return (), kwargs
        second = self._here.second
        running = self._open(
            kwargs, self._block(kwargs), None if second is None else second.entries
        )
        if second is not None and second.enter is not None:
            kwargs = dict(second.enter(kwargs, running.pass_))
        null = self._null_prompt(running, kwargs)
        if null is not None:
            entries = list(running.works)
            drop_or_mask = next(e.work.null_positions for e in entries if e.work.null_prompt)
            kwargs = null.pack(kwargs, drop_or_mask, self._alive().config, self._inputs)
            known = running.pass_.length - running.pass_.n_last + 1
            compared = running.prompt.ids[:, :known]
            running.null = null
            running.prompt = running.prompt.having(compared=compared)
        positions = kwargs.get("position_ids")
        running.positions = positions if isinstance(positions, Tensor) else None
        if running.works and _checkpoints(tower):
            self._hand_on(tower, kwargs, running)
        self._here.running = running
        return (), kwargs

    def _open(
        self, kwargs: Mapping[str, Any], block: Block, entries: Sequence[LayerEntry] | None
    ) -> Running:
        """Begin the pass of one run.

        Args:
            kwargs: The tower's arguments.
            block: What is known of the call.
            entries: What edits it; None for the main run.
        """
        cache = kwargs.get("past_key_values")
        before = prompt_on(cache, self)
        # Put back when the pass has gone well; a cache that one broke off is no prompt's.
        put_prompt(cache, self, None)
        pass_, prompt = self.reader.read(block, before)
        before = before if block.past else None
        if before is not None and before.rows is not None:
            before.rows.check(cache, pass_.past)
        by_layer = self._by_layer if entries is None else at_layers(entries)
        prompt = self._with_works(
            self.entries if entries is None else entries, prompt, before, pass_
        )
        keeps = entries is None and keeps_calls(list(prompt.works.values()), pass_)
        offsets = {}
        if cache is not None and any(getattr(cache, "is_sliding", ())):
            offsets = {
                i: cache.get_mask_sizes(pass_.length, self._kv_layers[i])[1]
                for i in (self._kv_layers if keeps else by_layer)
            }
        running = Running(
            pass_, prompt, prompt.works, cache, by_layer, None, offsets, self._checked
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

    @torch.compiler.disable
    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        if tower is not self.tower():
            return None
        running, self._here.running = self._here.running, None
        if output is None or running is None or isinstance(running, Again):
            return None
        config: Any = self._alive().config
        running.finish(getattr(config, "num_hidden_layers", len(self._paths)))
        if running.null is not None:
            output = running.null.cut(output)
        for one in running.runs if isinstance(running, Together) else (running,):
            # A model that is given no cache makes one.
            self._leave_prompt(one, _cache_in(output) if one.cache is None else one.cache)
        if self._scores is not None:
            if isinstance(running, Running):
                self._see_asked(running)
            self._scores.note(running)
        if isinstance(running, Running) and _checkpoints(tower):
            self._guard(output, running)
        return output

    def _leave_prompt(self, running: Running, cache: Any) -> None:
        """Leave what is known of a prompt on its cache, if there is one."""
        if cache is None:
            return
        rows = running.prompt.rows
        grown = running.pass_.tokens.generated > 0 and rows is not None
        rows = rows.seen(cache) if grown and rows else CacheRows.of(cache, running.pass_.tokens)
        put_prompt(cache, self, running.prompt.having(rows=rows))
        running.cache = cache

    def _block(self, kwargs: Mapping[str, Any]) -> Block:
        """What is known of the call. What an interrupted one left in this thread isn't."""
        frame, outer = self._here.outer
        second = self._here.second
        if second is None:
            generating = self.reader.callers.generating()
        else:
            generating = Generating(candidates=second.n_last - 1)
        inside, ids = self._here.embedded
        cache = kwargs.get("past_key_values")
        return Block(
            kwargs,
            outer=outer if runs(frame) else {},
            embedded=ids if runs(inside) else None,
            generating=generating,
            partial=self._here.partial,
            past=0 if cache is None else int(cache.get_seq_length()),
        )

    def _with_works(
        self,
        entries: Sequence[LayerEntry],
        prompt: Prompt,
        before: Prompt | None,
        pass_: Pass,
    ) -> Prompt:
        """The prompt with each edit's state, prepared for a pass."""
        works = {}
        for entry in entries:
            known: Edit | None = entry.work
            if before is not None and not entry.work.idle:
                known = before.works.get(entry)
            if known is None:
                raise ValueError(
                    "an intervention was attached in the middle of a prompt, which was encoded "
                    "without it; attach first, then prefill"
                )
            works[entry] = edit = known.fork()
            edit.begin(pass_)
            # At its end: a beginning may be shared by several prompts.
            if pass_.prompt_end and pass_.tokens.generated == 0:
                entry.tally.begin(pass_.batch)
        return prompt.having(works=works, asked=prompt.asked.copy())

    def _null_prompt(self, running: Running, kwargs: Mapping[str, Any]) -> NullPrompt | None:
        """The prompt without images, where an edit compares and hasn't yet."""
        pass_, prompt, entries = running.pass_, running.prompt, list(running.works)
        wants = any(e.work.null_prompt and e.work.layers for e in entries)
        if not wants or not bool(pass_.tokens.has_image.any()):
            return None
        if prompt.compared is not None and _holds(prompt, prompt.compared, pass_):
            return None
        if pass_.past > 0 or not pass_.prompt_end:
            raise NotImplementedError(
                "this intervention compares the prompt with and without its image and needs "
                "the whole prompt, image and question, in one block (no prefill_chunk_size, no "
                "cached beginning)"
            )
        return NullPrompt.of(pass_, shares_beginning(pass_, kwargs.get("attention_mask")))

    # -- gradient checkpointing -----------------------------------------------------------------

    def _hand_on(self, tower: nn.Module, kwargs: dict[str, Any], running: Running) -> None:
        """Give the pass to the layers, which the backward pass runs again."""
        parameters = inspect.signature(type(tower).forward).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise NotImplementedError(
                f"{type(tower).__name__} doesn't hand arguments on to its layers, so they can't be "
                "edited when gradient checkpointing runs them again; call "
                "model.gradient_checkpointing_disable(), or detach first"
            )
        kwargs[KWARG] = running

    def _guard(self, output: Any, running: Running) -> None:
        """See to it that the layers are still edited when they run again."""
        hidden = output[0] if isinstance(output, (tuple, list)) else output.last_hidden_state
        entries = list(self.entries)

        def look(gradient: Tensor) -> None:
            if not all(any(e is one for one in self.entries) for e in entries):
                raise RuntimeError(
                    "interventions were detached before the backward pass, and gradient "
                    "checkpointing would now run the layers again without them: call backward "
                    "while they are attached"
                )

        if running.works and isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(look)

    @contextmanager
    def partial(self) -> Iterator[None]:
        """Forward passes of this thread inside are parts of a prompt that goes on."""
        before, self._here.partial = self._here.partial, True
        try:
            yield
        finally:
            self._here.partial = before


def _holds(prompt: Prompt, ids: Tensor, pass_: Pass) -> bool:
    """Whether a prompt still begins with these token ids "B C"; it may have been rolled back."""
    end = ids.shape[1]
    if pass_.past >= end:
        return True
    return torch.equal(prompt.ids[:, :end], ids)


def _checkpoints(tower: nn.Module) -> bool:
    """Whether the layers will run again in a backward pass."""
    if not (torch.is_grad_enabled() and tower.training):
        return False
    layers: Any = tower.layers
    return bool(getattr(tower, "gradient_checkpointing", False)) or any(
        getattr(layer, "gradient_checkpointing", False) for layer in layers
    )


def _cache_in(output: Any) -> Any:
    """The cache that the tower returns, if any."""
    if isinstance(output, tuple):
        return next((one for one in output if hasattr(one, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)
