"""Proof on the user's own model: every edit against its literal form, and nothing left behind."""

from typing import TYPE_CHECKING

from regaze.hooks.lazy import lazy

if TYPE_CHECKING:
    from regaze.evals.verify.certificate import Certificate as Certificate
    from regaze.evals.verify.certificate import Line as Line
    from regaze.evals.verify.verify import verify as verify
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
