"""The fields that say where and when a method acts on a denoiser: checks, choice of layers."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.hooks.checks import check_number, shown
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.sites import PERTURBED, Kind, Site, choose
from regaze.interventions.base import Intervention


class ByLayers(Intervention):
    """A method with a field ``layers``, where a single layer stands for a list of it."""

    layers: tuple[str | int, ...] | None

    def __post_init__(self) -> None:
        if isinstance(self.layers, (str, int)):
            object.__setattr__(self, "layers", (self.layers,))
        super().__post_init__()


def check_where(
    method: str,
    layers: tuple[str | int, ...] | None,
    start: float,
    stop: float,
    *,
    empty: bool = False,
) -> None:
    """Check the fields that say in which layers and steps a method acts.

    Args:
        method: Name of the method.
        layers: Numbers or parts of paths; None for the method's own choice.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends.
        empty: True if the method is idle with an empty list.

    Raises:
        ValueError: The steps are none, or something else than layers is listed.
    """
    check_number(method, "start", start, low=0, high=1)
    check_number(method, "stop", stop, low=0, high=1)
    if start >= stop:
        raise ValueError(f"{method}: start={start} isn't before stop={stop}; it would never act")
    if layers is not None and not isinstance(layers, tuple):
        raise ValueError(f'{method}: layers must be a list such as [1,"mid"], got {shown(layers)}')
    if layers == () and not empty:
        raise ValueError(f"{method}: layers is empty; leave it out, or name layers to act in")
    for layer in layers or ():
        blank = isinstance(layer, str) and not layer.strip()
        if blank or isinstance(layer, bool) or not isinstance(layer, (str, int)):
            raise ValueError(
                f"{method}: layers holds {layer!r}; give numbers or parts of module paths"
            )


def chosen(
    method: str,
    denoiser: Host,
    wanted: Sequence[str | int],
    kinds: tuple[Kind, ...] = PERTURBED,
) -> list[Site]:
    """The layers of a model that are asked for.

    Raises:
        ValueError: One names no layer of this model of these kinds.
    """
    try:
        return choose(denoiser.sites, wanted, kinds)
    except ValueError as error:
        raise ValueError(f"{method}: {error}") from None
