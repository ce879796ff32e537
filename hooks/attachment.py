"""The handle that `attach` gives: what every kind of host lets one do with what is attached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

from regaze.hooks.report import Report
from regaze.hooks.specs import Spec

_Self = TypeVar("_Self", bound="Attachment")


class Detachable(ABC):
    """Something on a host, until `detach` or the end of the ``with`` block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @abstractmethod
    def detach(self) -> None:
        """Take it off; what others attached stays.

        A second call takes off nothing else; it finishes what an interrupt left undone.
        """


class Attachment(Detachable):
    """Interventions on a host, until `detach` or the end of the ``with`` block.

    Attributes:
        specs: The interventions with every field filled in, in the order in which they act.
    """

    def __init__(self, specs: Sequence[Spec[Any, Any]]) -> None:
        self.specs = tuple(specs)

    def __enter__(self: _Self) -> _Self:
        return self

    @abstractmethod
    def report(self) -> Report:
        """Report what fired, where, how often and how strongly, since attachment."""

    @abstractmethod
    def partial_prompt(self) -> AbstractContextManager[None]:
        """Forward passes of this thread inside are parts of a prompt that goes on.

        Raises:
            TypeError: The host reads whole prompts only.
        """


class NothingAttached(Attachment):
    """The attachment of no interventions: the baseline of a comparison, on any model."""

    def __init__(self) -> None:
        super().__init__(())

    def detach(self) -> None:
        """Do nothing."""

    def report(self) -> Report:
        """Report no interventions."""
        return Report(())

    def partial_prompt(self) -> AbstractContextManager[None]:
        """Do nothing: nobody asks which row is a prompt's last."""
        return nullcontext()
