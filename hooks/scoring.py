"""The scorer's side of a text tower's stack: its hooks, second runs, and last rows run again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from regaze.hooks.again import Again
from regaze.hooks.cache_rows import CacheRows
from regaze.hooks.callers import frames
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.openings import Enter, Openings, Second
from regaze.hooks.prompts import Lanes, prompt_on, put_prompt
from regaze.hooks.reading import Reader
from regaze.hooks.running import Running
from regaze.hooks.scorer import find_scorer
from regaze.hooks.scores import Scores


class Scoring(Openings):
    """A stack that has the model's next-token scores edited, where works ask for it."""

    def __init__(self, host: Host, reader: Reader) -> None:
        super().__init__(host, reader)
        self._scores: Scores | None = None

    def _scorer(self) -> nn.Module | None:
        return find_scorer(self._model() or self._alive(), self._alive())

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
        # Outside of others' hooks, which are called for second runs too.
        scorer.register_forward_pre_hook(self._ask, with_kwargs=True, prepend=True)
        scorer.register_forward_hook(self._answer, always_call=True)

    def _hosts(self) -> set[nn.Module]:
        hosts = super()._hosts()
        if hosts:
            scorer = None if self._scores is None else self._scorer()
            hosts |= {one for one in (self._model(), scorer) if one is not None}
        return hosts

    def uninstall(self) -> None:
        """Take everything off the model; once more if it was interrupted."""
        super().uninstall()
        self._scores = None

    @torch.compiler.disable
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
        scorer = self._scorer()
        for frame in frames():
            made = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
            if made is scorer:
                raise RuntimeError(
                    f"{type(scorer).__name__}.forward was called directly, around what is attached "
                    "(some wrappers, PEFT's forward among them, do that), so next-token scores "
                    "would stay as they are: call the model itself, or its generate"
                )
            if isinstance(made, GenerationMixin) and self.reader.callers.holds(made):
                raise RuntimeError(
                    f"{type(made).__name__} makes next-token scores with a text tower that it "
                    "shares with the model that was attached to, so they would stay as they are: "
                    "attach to it"
                )

    @torch.compiler.disable
    def _answer(self, scorer: nn.Module, args: Any, output: Any) -> Any:
        self._here.asked = False
        try:
            return None if self._scores is None else self._scores.leave(scorer, args, output)
        finally:
            if scorer in self._hosts():
                self._retire(calls=1)

    @torch.compiler.disable
    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        try:
            super()._leave(model, args, output)
        finally:
            hosts = self._hosts()
            # Behind this hook comes `_answer`, if this is the model that makes scores.
            if model in hosts and (self._scores is None or model is not self._scorer()):
                self._retire(calls=1)

    @contextmanager
    def _run_second(
        self,
        given: Mapping[str, Any],
        edits: tuple[Edit, ...] | None,
        n_last: int,
        enter: Enter | None,
        ahead: Tensor | None,
    ) -> Iterator[None]:
        """Let passes of this thread inside be those of a second run of the model."""
        entries = None if edits is None else self._entries_of(edits)
        second = Second(entries, n_last, enter, ahead)
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

    def _lanes_on(self, cache: Any) -> Lanes:
        """The second runs of the prompt on a cache that go on in this pass."""
        prompt = prompt_on(cache, self)
        if prompt is None or self._here.paused or self._flexes():
            return {}
        return {key: lane for key, lane in prompt.lanes.items() if key[0] in self.entries}

    def _flexes(self) -> bool:
        """Return whether attention masks are functions of a row's number, as in flex attention."""
        return any(base == "flex_attention" for _, base in self._configs)

    def _keep_lanes(self, running: Running, lanes: Lanes) -> None:
        """Leave the second runs' caches with the prompt on the main run's."""
        if running.cache is not None:
            rows = prompt_on(running.cache, self)
            prompt = running.prompt.having(lanes=lanes, rows=rows.rows if rows else None)
            put_prompt(running.cache, self, prompt)
