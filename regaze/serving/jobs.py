"""Requests on their way from the event loop, where they arrive, to the thread that answers."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regaze.evals.asking.decoding import Decoding
from regaze.evals.runs.conditions import Condition
from regaze.serving.asked import Message
from regaze.serving.errors import ApiError
from regaze.serving.pictures import Picture
from regaze.serving.writing import Finish


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: Without what ended it.
        finish: Reason why it ended.
        prompt_tokens: Columns of the prompt, those of its pictures included.
        new_tokens: Tokens generated, the end token included.
        regaze: The response's part about the interventions.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    regaze: Mapping[str, Any]


Event = str | Answer | ApiError
"""A piece of an answer, and how it ends."""


@dataclass(eq=False)
class Job:
    """One request, checked.

    Attributes:
        messages: The conversation.
        pictures: Pictures of the conversation, in order.
        condition: Interventions.
        decoding: The way tokens are chosen.
        seed: Seed of the sampling; None draws differently each time.
        new_tokens: Most tokens; None: as many as the server gives and the model's context holds.
        stops: Texts that end the answer.
        streams: Send pieces as they come.
        report: Asks for a report of the interventions.
        events: News of it, for the event loop that it came from.
        gone: Set when nobody waits for the answer any more.
        together: May go through the model with others.
        begun: A piece of its answer was sent.
        ended: True if its answer, or an error, was sent.
    """

    messages: Sequence[Message]
    pictures: Sequence[Picture]
    condition: Condition
    decoding: Decoding = field(default_factory=Decoding)
    seed: int | None = None
    new_tokens: int | None = None
    stops: Sequence[str] = ()
    streams: bool = False
    report: bool = False
    together: bool = True
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    gone: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    begun: bool = False
    ended: bool = False

    @property
    def key(self) -> object:
        """Jobs with an equal key may go through the model together."""
        if not self.together or self.report or self.seed is not None:
            # What is drawn, and what is counted, is then this request's alone.
            return self
        return self.condition.label, self.decoding, bool(self.pictures)

    @property
    def over(self) -> bool:
        """True if nothing is left to do for it."""
        return self.ended or self.gone.is_set()

    def tell(self, event: Event) -> None:
        """Hand an event over to the event loop."""
        self.begun = True
        self.ended = not isinstance(event, str)
        if not self.gone.is_set() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Waiting:
    """The jobs that wait, for any number of threads.

    Args:
        most: Jobs that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            ApiError: Too many do, or the server is going down.
        """
        with self._changed:
            if self._closed:
                raise ApiError(503, "the server is going down", code="unavailable")
            self._forget()
            if len(self._jobs) >= self._most:
                raise ApiError(
                    429, f"{self._most} requests wait already: try again later", code="queue_full"
                )
            self._jobs.append(job)
            self._changed.notify()

    def take(self, most: int) -> list[Job]:
        """The job that waits longest, and others like it; none once closed.

        Args:
            most: Jobs to take.
        """
        with self._changed:
            while True:
                self._forget()
                if self._jobs or self._closed:
                    break
                self._changed.wait()
            if not self._jobs:
                return []
            key = self._jobs[0].key
            taken = [job for job in self._jobs if job.key == key][:most]
            self._jobs = deque(job for job in self._jobs if job not in taken)
            return taken

    def _forget(self) -> None:
        """Drop the jobs that nobody waits for any more."""
        self._jobs = deque(job for job in self._jobs if not job.gone.is_set())

    def close(self) -> list[Job]:
        """Let no more jobs wait, and give those that did."""
        with self._changed:
            self._closed = True
            left, self._jobs = list(self._jobs), deque()
            self._changed.notify_all()
            return left
