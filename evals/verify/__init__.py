"""Proof on the user's own model: every edit against its literal form, and nothing left behind."""

from regaze.evals.verify.certificate import Certificate, Line
from regaze.evals.verify.verify import verify

__all__ = ["Certificate", "Line", "verify"]
