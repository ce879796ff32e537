"""Counters of a work on a denoiser: calls and changes per site, steps, and how it ran."""

from __future__ import annotations

from collections.abc import Callable

from regaze.hooks import tally


class Tally(tally.Tally[str]):
    """Counters of one work; runs are the sampling steps in which it acted.

    Attributes:
        note: Remark on how it ran, if that needs saying; may be made when it is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.note: str | Callable[[], str] = ""
