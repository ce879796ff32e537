"""Answers: one thread that owns the model, and puts on it for a batch what the batch asks for."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from regaze.evals.asking.batching import out_of_memory
from regaze.evals.asking.models import Loaded
from regaze.evals.runs.conditions import Condition
from regaze.hooks import Attachment, attach
from regaze.interventions import Intervention
from regaze.serving.errors import ApiError, bad
from regaze.serving.jobs import Answer, Job, Waiting
from regaze.serving.prompts import Prompt, Prompts
from regaze.serving.settings import Limits
from regaze.serving.writing import Finish, Writer

_log = logging.getLogger(__name__)
_KEPT = 64


@dataclass(frozen=True)
class _Row:
    """A job of a batch with its prompt, the prompt's length in tokens, and the answer so far."""

    job: Job
    length: int
    writer: Writer


class Engine:
    """A model that answers jobs, one batch after another, on a thread of its own.

    Attributes:
        loaded: The model.
        limits: Limits of a batch and of an answer.
        prompts: Makes its prompts.
    """

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.loaded, self.limits = loaded, limits
        self.prompts = Prompts(loaded)
        self._resolved: dict[str, tuple[Intervention, ...]] = {}
        self._waiting = Waiting(limits.waiting)
        self._under_way: Sequence[Job] = ()
        self._thread = threading.Thread(target=self._run, name="regaze-serve", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Send everybody away and end."""
        for job in (*self._waiting.close(), *self._under_way):
            job.tell(ApiError(503, "the server is going down", code="unavailable"))
            job.gone.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while it answers."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            ApiError: Too many wait, or one of its messages stands for a picture.
        """
        self.prompts.check(job.messages)
        job.together = not job.pictures or bool(self.prompts.marks)
        self._waiting.put(job)

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in.

        It attaches them for that, so only the engine's thread may call it once it runs.

        Raises:
            ValueError: One can't act on this model.
        """
        if condition.label not in self._resolved:
            model, processor = self.loaded.model, self.loaded.processor
            if len(self._resolved) >= _KEPT:
                self._resolved.clear()
            with attach(model, *condition.specs, processor=processor) as attached:
                found = tuple(cast(Intervention, spec) for spec in attached.specs)
            self._resolved[condition.label] = found
        return self._resolved[condition.label]

    def _run(self) -> None:
        while jobs := self._waiting.take(self.limits.batch):
            self._under_way = jobs
            self._serve(jobs)
            self._under_way = ()

    def _serve(self, jobs: Sequence[Job]) -> None:
        """Answer jobs of one kind; if that fails, each of several gets a try of its own."""
        try:
            with torch.inference_mode():
                self._batch(jobs)
            return
        except Exception as error:
            failure = _failure(error)
            # A traceback holds the batch's tensors.
            error.__traceback__ = None
        if failure.status == 503:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for job in jobs:
            if job.over:
                continue
            if len(jobs) == 1 or job.begun:  # What was sent can't be taken back.
                job.tell(failure)
            else:
                self._serve([job])

    def _batch(self, jobs: Sequence[Job]) -> None:
        ready: list[tuple[Job, Prompt]] = []
        for job in jobs:
            try:
                images = [picture.load() for picture in job.pictures]
                ready.append((job, self.prompts.prompt(job.messages, images)))
            except ApiError as error:
                job.tell(error)
        while ready:
            inputs = self.prompts.inputs([prompt for _, prompt in ready])
            lengths = inputs["attention_mask"].sum(1).tolist()
            rows = [self._row(job, n) for (job, _), n in zip(ready, lengths, strict=True)]
            if None not in rows:
                self._generate(cast(list[_Row], rows), inputs)
                return
            ready = [one for one, row in zip(ready, rows, strict=True) if row is not None]

    def _row(self, job: Job, length: int) -> _Row | None:
        """A job's row; None, and the job is told so, if the model can't read so much."""
        context, most = self.prompts.context, job.new_tokens or self.limits.new_tokens
        if context is not None:
            room = context - length
            if room < (job.new_tokens or 1):
                said = f"the prompt has {length} tokens" + (
                    f" and {job.new_tokens} are asked for" if job.new_tokens else ""
                )
                job.tell(
                    bad(
                        f"{said}: the model holds {context}, those of the answer included",
                        "messages",
                        "context_length_exceeded",
                    )
                )
                return None
            most = min(most, room)
        tokenizer = self.prompts.tokenizer
        return _Row(
            job,
            length,
            Writer(
                lambda tokens: cast(str, tokenizer.decode(tokens, skip_special_tokens=True)),
                self.prompts.ends,
                most,
                job.stops,
                eager=job.streams,
                rejoins=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
            ),
        )

    def _generate(self, rows: Sequence[_Row], inputs: dict[str, Any]) -> None:
        model, first = self.loaded.model, rows[0].job
        config = first.decoding.config(model, max(row.writer.most for row in rows))
        specs = self.resolve(first.condition)
        with (
            attach(model, *specs, processor=self.loaded.processor) as attached,
            _drawing(first),
        ):
            stops = _Rows(rows, lambda row: self._answer(row, len(rows), attached))
            cast(Any, model).generate(
                **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([stops])
            )

    def _answer(self, row: _Row, batch: int, attached: Attachment) -> Answer:
        told: dict[str, Any] = {"with": row.job.condition.label, "batch": batch}
        if attached.specs:
            report = attached.report()
            told["fired"] = report.fired
            if row.job.report:
                told["specs"] = [cast(Intervention, spec).to_dict() for spec in attached.specs]
                told["report"] = report.to_dict()
        writer = row.writer
        finish = cast(Finish, writer.finish)
        return Answer(writer.text, finish, row.length, len(writer.tokens), told)


class _Rows(StoppingCriteria):
    """Takes each row's tokens, and ends rows that are done or that nobody waits for."""

    def __init__(self, rows: Sequence[_Row], answer: Callable[[_Row], Answer]) -> None:
        self._rows, self._answer = rows, answer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.job.over:
                continue
            if piece := row.writer.add(token):
                row.job.tell(piece)
            if row.writer.finish is not None:
                row.job.tell(self._answer(row))
        return torch.tensor([row.job.over for row in self._rows], device=input_ids.device)


@contextmanager
def _drawing(job: Job) -> Iterator[None]:
    """Draw what a job's seed gives, whatever was drawn before, and leave no trace of it."""
    if not job.decoding.samples:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if job.seed is None:
            torch.seed()
        else:
            torch.manual_seed(job.seed)
        yield


def _failure(error: Exception) -> ApiError:
    """The error that a job gets."""
    if isinstance(error, ApiError):
        return error
    if out_of_memory(error):
        said = "memory ran out: send a shorter prompt, smaller pictures or fewer of them"
        return ApiError(503, said, code="out_of_memory")
    if isinstance(error, ValueError):  # What a method or the model can't do with a prompt.
        return bad(" ".join(str(error).split()))
    _log.error("a batch failed", exc_info=error)
    return ApiError(500, f"the model failed ({type(error).__name__}): see the server's log")
