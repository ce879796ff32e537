"""Every method for vision-language models that can act on one, and why the others can't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.evals.asking.models import Loaded
from regaze.hooks.attach import attach
from regaze.hooks.host import find_host
from regaze.interventions.base import Intervention, get, names
from regaze.interventions.lvlm.tool import Tool

WORKING: Mapping[str, Mapping[str, Any]] = {"highlight": {"spans": ("<image>",)}}
"""Settings of methods that have no defaults which work, where some serve every model: the picture
is the one part of a prompt that all have. A list of heads serves one model only."""


@dataclass(frozen=True)
class Every:
    """All methods, on one model.

    Attributes:
        specs: Methods that can act on it, with their defaults or `WORKING` settings, by name.
        left_out: Why each of the others can't, in one line, by name.
    """

    specs: Sequence[Intervention]
    left_out: Mapping[str, str]


def every_method(loaded: Loaded) -> Every:
    """Try all registered methods but tools, which do nothing by default.

    Args:
        loaded: The model; left as it was found.
    """
    specs, left_out = [], {}
    for name in names():
        try:
            cls = get(name)
        except ImportError as error:
            left_out[name] = str(error)
            continue
        if cls.acts_on != Intervention.acts_on or issubclass(cls, Tool):
            continue
        try:
            spec = cls(**WORKING.get(name, {}))
            _try(spec, loaded)
        except (TypeError, ValueError) as error:
            left_out[name] = " ".join(str(error).split())
        else:
            specs.append(spec)
    return Every(specs, left_out)


def _try(spec: Intervention, loaded: Loaded) -> None:
    """Resolve a method on a model.

    Raises:
        ValueError: It can't act there.
    """
    if spec.stage == "question":
        spec.resolve(find_host(loaded.model, loaded.processor))
        return
    with attach(loaded.model, spec, processor=loaded.processor):
        pass
