"""Search spaces of tuning: the domain of each field, and where layers may lie.

Ranges enclose the published settings and what the papers sweep, rounded outwards. What decides what
a method *is* (where paper and code differ, random heads, seeds) isn't searched: give it beside the
method's name, as in ``regaze tune var:sense=code``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regaze.interventions.base import Intervention


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, rounded to three digits.

    Attributes:
        low: The least.
        high: The greatest.
        log: True if their logarithms are spread evenly.
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Bands:
    """Layers, as one of `BANDS`; "usual" leaves them to the method."""


BANDS: Mapping[str, tuple[float, float] | None] = {
    "usual": None,
    "all": (0.0, 1.0),
    "first half": (0.0, 0.5),
    "middle half": (0.25, 0.75),
    "last half": (0.5, 1.0),
}
"""Shares of the depth."""

Domain = Range | OneOf | Bands
Space = Mapping[str, Domain]

_BETA = Range(0.01, 0.5, log=True)

SPACES: Mapping[str, Space] = {
    "adaptvis": {"unsure": Range(0.3, 1), "sure": Range(1, 2), "threshold": Range(0.2, 0.95)},
    "adhh": {"threshold": Range(0.2, 0.8)},
    "avar": {
        "image": Range(0.02, 1, log=True),
        "system": Range(0, 0.8),
        "domain": OneOf(("logits", "probs")),
        "layers": Bands(),
    },
    "avisc": {
        "gamma": Range(0.1, 0.9),
        "lam": Range(0, 2),
        "alpha": Range(0.1, 3, log=True),
        "beta": _BETA,
    },
    "carve": {"top": Range(0.1, 0.6), "regions": OneOf((1, 2, 3)), "layers": Bands()},
    "devils": {"alpha": Range(0.1, 1.5, log=True), "layers": Bands()},
    "dola": {
        "candidates": OneOf(("low", "high")),
        "rho": Range(0, 0.5),
        "divergence": OneOf(("mixture", "jsd")),
    },
    "gift": {"alpha": Range(0.5, 12, log=True), "beta": Range(0.5, 2), "layers": Bands()},
    "highlight": {"weight": Range(1.2, 10, log=True), "scale": Range(1, 2)},
    "icd": {"alpha": Range(0.1, 3, log=True), "beta": _BETA, "place": OneOf(("before", "instead"))},
    "ilvad": {"alpha": Range(0.5, 8, log=True), "beta": Range(0.1, 1), "layers": Bands()},
    "m3id": {"rate": Range(0.005, 0.5, log=True), "beta": _BETA},
    "pai": {
        "alpha": Range(0.05, 2, log=True),
        "gamma": OneOf((1.0, 1.1, 1.3, 1.5)),
        "layers": Bands(),
    },
    "paint": {
        "alpha": Range(0.05, 1.5, log=True),
        "beta": Range(0.05, 1, log=True),
        "local": Range(0.05, 0.5),
        "layers": Bands(),
    },
    "pasta": {"alpha": Range(0.001, 0.5, log=True)},
    "scalingvis": {"weight": Range(0.4, 2, log=True), "layers": Bands()},
    "spin": {"keep": Range(0.5, 0.98), "factor": Range(0, 0.9), "layers": Bands()},
    "vaf": {"enhance": Range(1, 1.6), "suppress": Range(0.7, 1), "layers": Bands()},
    "var": {
        "rho": Range(0.1, 0.9),
        "p": Range(0.1, 1),
        "floor": Range(0.05, 0.4),
        "layers": Bands(),
    },
    "vcd": {
        "alpha": Range(0.1, 3, log=True),
        "beta": _BETA,
        "step": OneOf((100, 300, 500, 700, 900)),
    },
    "vhr": {"alpha": Range(1.1, 4, log=True), "layers": Bands()},
    "vicrop": {"base": OneOf((16, 24, 32, 48, 112, 224, 336))},
}
"""By method. AnchorAttention and TidalDecode have none: their aim is speed, at the same answers."""


def space_of(spec: Intervention) -> dict[str, Domain]:
    """The domains of the fields of a method that aren't set.

    A method of one's own gives its class ``domains``, a mapping like those of `SPACES`.

    Args:
        spec: The spec; fields that differ from the defaults stay as they are.

    Raises:
        ValueError: Nothing is known to search, or all of it is set.
    """
    space: Space = getattr(spec, "domains", None) or SPACES.get(spec.name, {})
    if not space:
        raise ValueError(
            f"nothing is known to search in {spec.name}; tunable are {', '.join(SPACES)}, and "
            "methods whose class has `domains` (see regaze.evals.tuning.spaces)"
        )
    free = {field: domain for field, domain in space.items() if field not in set_fields(spec)}
    if not free:
        raise ValueError(f"{spec.label} leaves nothing to search: give fewer fields")
    return free


def some_values(space: Space) -> dict[str, Any]:
    """A value of each field of a space but of layers, for checks before a model is loaded."""
    values = {name: _first(domain) for name, domain in space.items()}
    return {name: value for name, value in values.items() if value is not None}


def _first(domain: Domain) -> Any:
    if isinstance(domain, Range):
        return domain.low
    return domain.values[0] if isinstance(domain, OneOf) else None


def set_fields(spec: Intervention) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    usual = {name: field.default for name, field in spec.__dataclass_fields__.items()}
    return {name: getattr(spec, name) for name in usual if getattr(spec, name) != usual[name]}


def layers_in(band: str, n_layers: int) -> tuple[int, ...] | None:
    """The layers of a band; None where the method chooses."""
    ends = BANDS[band]
    if ends is None:
        return None
    return tuple(range(round(ends[0] * n_layers), round(ends[1] * n_layers)))
