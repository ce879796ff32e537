"""Work in a thread of its own, followed by who asked for it, who may stop it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.1


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """The work was asked to stop."""


@dataclass(frozen=True)
class News:
    """The progress of work.

    Attributes:
        says: The work under way, in words.
        share: Share of it that is done, 0 to 1.
        answers: The answers so far, by condition.
    """

    says: str
    share: float = 0.0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended(Generic[_T]):
    """The end of work: its result, or what went wrong, in one line."""

    result: _T | None = None
    error: str = ""


class Job:
    """A piece of work under way, as it sees itself.

    Args:
        tell: Takes news.
    """

    def __init__(self, tell: Callable[[News], None] = lambda news: None) -> None:
        self._tell = tell
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask it to stop; it does at its next token, or pass of a denoiser."""
        self._stop.set()

    def check(self) -> None:
        """Go on, unless somebody asked it to stop.

        Raises:
            Stopped: Somebody did.
        """
        if self._stop.is_set():
            raise Stopped

    def tell(self, news: News) -> None:
        """Give news.

        Raises:
            Stopped: It was asked to stop.
        """
        self.check()
        self._tell(news)

    def turn(self, lock: threading.Lock) -> None:
        """Wait for a lock that others may hold for long, and take it.

        Raises:
            Stopped: It was asked to stop meanwhile.
        """
        if lock.acquire(blocking=False):
            return
        self.tell(News("waiting for the run of somebody else on this model"))
        while not lock.acquire(timeout=_LOOK_S):
            self.check()


def follow(work: Callable[[Job], _T], started: Callable[[Job], None]) -> Iterator[News | Ended[_T]]:
    """Do work in a thread, and give its news and, last, how it ended.

    News that nobody fetched before there was newer is left out. Who stops listening stops the work.

    Args:
        work: The work.
        started: Is given the job before it begins, by whoever wants to stop it.
    """
    said: queue.SimpleQueue[News | Ended[_T]] = queue.SimpleQueue()
    job = Job(said.put)
    started(job)

    def run() -> None:
        try:
            said.put(Ended(work(job)))
        except Stopped:
            said.put(Ended(error="stopped"))
        except BaseException as error:  # Whatever it was has to reach who waits for an end.
            said.put(Ended(error=one_line(error)))

    thread = threading.Thread(target=run, name="regaze-play", daemon=True)
    thread.start()
    try:
        while True:
            item = said.get()
            while isinstance(item, News) and not said.empty():
                item = said.get()
            yield item
            if isinstance(item, Ended):
                return
    finally:
        job.stop()
        thread.join()


def one_line(error: BaseException) -> str:
    """An error as its reader should see it."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    if kind in ("MemoryError", "OutOfMemoryError"):
        return (
            f"out of memory: take a smaller picture, a shorter answer or a smaller model ({said})"
        )
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)):
        return said or kind
    return f"{kind}: {said}" if said else kind
