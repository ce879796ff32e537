"""NLTK without scipy.stats, which it imports for one measure that nothing here asks for.

That import takes three times as long as the rest of NLTK, and as all of `regaze show`.
"""

from __future__ import annotations

import sys
from typing import Any

_HEAVY = "scipy.stats"


def import_nltk() -> None:
    """Import NLTK; scipy.stats stays out until Fisher's test is called, which works as ever."""
    if "nltk" in sys.modules or _HEAVY in sys.modules:
        return
    # None says that there is no such module; NLTK then takes a stand-in for its one function.
    sys.modules[_HEAVY] = None  # type: ignore[assignment]
    try:
        from nltk.metrics import association
    finally:
        del sys.modules[_HEAVY]
    association.fisher_exact = _fisher_exact


def _fisher_exact(*args: Any, **options: Any) -> Any:
    from scipy.stats import fisher_exact

    return fisher_exact(*args, **options)
