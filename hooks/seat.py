"""The seat: the stack of edits of one text tower, its hooks, and its passes' beginning and end."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.again import Again
from regaze.hooks.caches import find_cache
from regaze.hooks.callers import refuse_nested
from regaze.hooks.checkpointing import checkpoints, guard, hand_on
from regaze.hooks.edits import overrides
from regaze.hooks.host import Host
from regaze.hooks.joint import JointCache, Together
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.null_prompt import NullPrompt
from regaze.hooks.openings import null_prompt_of
from regaze.hooks.others import go_inside, hooked
from regaze.hooks.packing import Inputs
from regaze.hooks.reading import Reader
from regaze.hooks.recurrent import Apart
from regaze.hooks.replaced import replaced
from regaze.hooks.running import Running
from regaze.hooks.scoring import Scoring
from regaze.hooks.shown import show_each
from regaze.hooks.sites import counts_beyond, rescales_beyond
from regaze.hooks.stack import KWARG, LayerEntry

TEXT_ROWS = (None, "last", "latest", "question", "text", "image")


class Seat(Scoring):
    """The ordered stack of edits of one text tower, and what they need to run."""

    kind = "text"

    def __init__(self, host: Host, reader: Reader) -> None:
        super().__init__(host, reader)
        self._inputs = Inputs(
            host.family.packs,
            host.family.zeros,
            min((site.window for site in host.sites if site.window is not None), default=None),
            rescales=rescales_beyond(host.tower.config),
            counts=counts_beyond(host.tower.config),
        )
        self._drops = host.family.drops
        if host.recurrent:
            self.note = f"{len(host.sites)} of {host.n_layers} layers attend"
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
        self._layers = weakref.WeakKeyDictionary()

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
    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running, layer = self._here.running, self._layers.get(module)
        if running is not None and layer is not None:
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
        if self._here.running is not None:
            refuse_nested(tower)
        self._here.running, self._here.reached = self._here.again, True
        if self._here.paused or self._here.again is not None:
            return None
        if not self.entries and self._here.second is None:
            return None  # Detached since the hooks of this call were listed.
        _refuse_tracing()
        self._check_names()
        inside = go_inside(tower, self)
        for index, layer in enumerate(self._alive().layers):
            if layer in self._layers or index not in self._paths:
                go_inside(layer, self)
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        for name in self._drops:
            kwargs.pop(name, None)
        joint = find_cache(kwargs)
        if isinstance(joint, JointCache):
            self._here.running = Together(joint, self._open_all(joint, kwargs))
            return (), kwargs
        second = self._here.second
        running = self._open(
            kwargs, self._block(kwargs), None if second is None else second.entries
        )
        if second is not None and second.enter is not None:
            kwargs = dict(second.enter(kwargs, running.pass_))
        null = null_prompt_of(running, kwargs)
        if null is not None:
            self._show_hooks(tower, inside)
            entries = list(running.works)
            drop_or_mask = next(e.work.null_positions for e in entries if e.work.null_prompt)
            kwargs = null.pack(kwargs, drop_or_mask, tower, self._inputs)
            known = running.pass_.length - running.pass_.n_last + 1
            compared = running.prompt.ids[:, :known]
            running.null = null
            running.prompt = running.prompt.having(compared=compared)
        positions = kwargs.get("position_ids")
        running.positions = positions if isinstance(positions, Tensor) else None
        if running.works and checkpoints(tower):
            hand_on(tower, kwargs, running)
        self._here.running = running
        return (), kwargs

    def _show_hooks(self, tower: nn.Module, inside: bool) -> None:
        """Show hooks of others one prompt at a time, where two stand in one row.

        Args:
            tower: The tower, which is being called.
            inside: True if our hooks stand inside of others' there.

        Raises:
            NotImplementedError: Hooks or replaced code of others would be given both at once.
        """
        if not inside or (checkpoints(tower) and hooked(tower)):
            raise NotImplementedError(
                "this intervention compares the prompt with itself without images, which stands "
                "behind it in the same rows, and a hook that isn't regaze's would be given both: "
                "call the whole model rather than its text tower, and disable gradient "
                "checkpointing, or take the hook off"
            )
        if code := replaced(tower):
            raise NotImplementedError(
                "this intervention compares the prompt with itself without images, which stands "
                "behind it in the same rows, and what stands in the place of "
                f"{next(iter(code))}'s own forward would be given both: give it its own back, or "
                "do by a forward hook what it does"
            )
        for module in show_each(tower, self._packing, self):
            self._note(module)

    def _packing(self) -> NullPrompt | None:
        """The prompt without images in the pass under way, if there is one."""
        running = self._here.running
        return running.null if isinstance(running, Running) else None

    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        if tower is not self.tower():
            return None
        running, self._here.running = self._here.running, None
        if output is None or running is None or isinstance(running, Again):
            return None
        running.finish(self._alive())
        if running.null is not None:
            output = running.null.cut(output)
        for one in running.runs if isinstance(running, Together) else (running,):
            # A model that is given no cache makes one.
            self._leave_prompt(one, _cache_in(output) if one.cache is None else one.cache)
        if self._scores is not None:
            if isinstance(running, Running):
                self._see_asked(running)
            self._scores.note(running)
        if isinstance(running, Running) and checkpoints(tower):
            guard(output, running, self.entries)
        return output


def _refuse_tracing() -> None:
    """Check that a pass isn't recorded to be run again, on other prompts.

    Raises:
        NotImplementedError: It is.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    # torch.compiler.is_exporting() came with torch 2.7. Compiled models run this uncompiled.
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if tracing or exporting:
        raise NotImplementedError(
            "torch.jit.trace and torch.export record one prompt's pass, whose columns and rows "
            "would be edited in every other prompt: detach first (torch.compile works)"
        )


def _cache_in(output: Any) -> Any:
    """The cache that the tower returns, if any."""
    if isinstance(output, tuple):
        return next((one for one in output if hasattr(one, "get_seq_length")), None)
    return find_cache(output) if isinstance(output, Mapping) else None
