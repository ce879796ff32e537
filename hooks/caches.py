"""Finding a model's cache of keys and values among a call's arguments, whatever its name there.

transformers renamed ``past_key_values`` to ``cache`` in 5.24 and takes both for a while; models
from elsewhere have names of their own. So a cache is known by what it can do, and handed to a model
under the name in its signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")
"""Names of the cache argument, in the order in which transformers prefers them."""


def find_cache(given: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, or a model's outputs, by name; None without one.

    Raises:
        ValueError: There are two, and which of them counts isn't known.
    """
    found: Any = None
    for name, value in given.items():
        if not hasattr(value, "get_seq_length") or value is found:
            continue
        if found is not None:
            first = next(one for one, held in given.items() if held is found)
            raise ValueError(
                f"a model was given two caches, {first!r} and {name!r}, so which one holds the "
                f"prompt can't be told: leave {name!r} out"
            )
        found = value
    return found


def cache_name(model: nn.Module) -> str:
    """The name under which a model takes its cache: its own, or that of the first part with one.

    Raises:
        ValueError: None of them takes one under a name that is known.
    """
    for module in model.modules():
        parameters = inspect.signature(type(module).forward).parameters
        for name in NAMES:
            if name in parameters:
                return name
    raise ValueError(
        f"{type(model).__name__} takes no cache that is known: its forward has no argument "
        f"{' or '.join(NAMES)}"
    )


def with_cache(given: Mapping[str, Any], cache: Any, model: nn.Module) -> dict[str, Any]:
    """A model's arguments with this cache: in the place of the one there, or under its own name."""
    known = find_cache(given)
    names = [name for name, value in given.items() if known is not None and value is known]
    kept = {k: v for k, v in given.items() if k not in (*NAMES, *names)}
    return kept | {(names or [cache_name(model)])[0]: cache}
