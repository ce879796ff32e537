"""The interface of a method's settings that a seat needs."""

from __future__ import annotations

from typing import Protocol, TypeVar

HostT = TypeVar("HostT", contravariant=True)
WorkT = TypeVar("WorkT", covariant=True)


class Spec(Protocol[HostT, WorkT]):
    """A method with its settings, for one kind of host."""

    @property
    def label(self) -> str:
        """Short text for reports."""

    @property
    def acts_on(self) -> str:
        """The kind of host that the method can be attached to."""

    def resolve(self, host: HostT, /) -> Spec[HostT, WorkT]:
        """Fill in what depends on the host; raise if it can't act there."""

    def bind(self, host: HostT, /) -> WorkT:
        """Make the work that a seat runs; on a language model also a tuple of works."""
