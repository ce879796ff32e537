"""The models of a playground: which there are, and those that are open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regaze.evals import devices, sandbox
from regaze.evals.asking.models import Loaded
from regaze.evals.pictures.pipelines import LoadedPipeline, is_pipeline
from regaze.evals.sandbox.painting import PAINTERS
from regaze.interventions.base import Intervention, get, names

BUILT_IN = (*sandbox.MODELS, *PAINTERS)
LANGUAGE, PAINTING = Intervention.acts_on, "diffusers pipelines"


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that is ready.

    Attributes:
        name: The name in the request.
        loaded: The model.
        lock: Held by the run that uses it: two that attach other methods would meet in it.
    """

    name: str
    loaded: Loaded | LoadedPipeline
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def paints(self) -> bool:
        """True for a pipeline."""
        return isinstance(self.loaded, LoadedPipeline)


class Shelf:
    """Models by name; the ones used last stay in memory.

    Args:
        offered: Names to choose from, first.
        any_model: Allow other folders and Hub ids, too.
        keep: Number that stay in memory.
        dtype: The models' precision. Default: their own.
        device: The models' device. Default: the first GPU, else the CPU.

    Raises:
        ValueError: No such dtype, or no such device here.
    """

    def __init__(
        self,
        offered: Sequence[str] = BUILT_IN,
        *,
        any_model: bool = True,
        keep: int = 2,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        # Here, as the first model may be opened by the first click only.
        if dtype is not None:
            devices.dtype(dtype)
        devices.device(device)
        self.offered = tuple(offered)
        self.any_model = any_model
        self._keep = keep
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._kinds: dict[str, bool] = {}

    def paints(self, name: str) -> bool:
        """Tell a pipeline's name from a language model's; nothing is loaded.

        Raises:
            ValueError: It may not be opened.
        """
        self._check(name)
        if name not in self._kinds:
            self._kinds[name] = is_pipeline(name)
        return self._kinds[name]

    def open(self, name: str) -> Opened:
        """A model, loaded if it isn't.

        Raises:
            ValueError: It may not be opened, or can't be loaded.
        """
        paints = self.paints(name)
        with self._lock:
            if name not in self._opened:
                while len(self._opened) >= self._keep:
                    self._opened.popitem(last=False)
                self._opened[name] = Opened(name, self._load(name, paints))
            self._opened.move_to_end(name)
            return self._opened[name]

    def _load(self, name: str, paints: bool) -> Loaded | LoadedPipeline:
        from regaze.evals.asking import models
        from regaze.evals.pictures import pipelines

        load: Callable[..., Loaded | LoadedPipeline] = pipelines.load if paints else models.load
        return load(name, **self._options)

    def _check(self, name: str) -> None:
        if not name.strip():
            raise ValueError("choose a model: a built-in one, a folder or a Hub id")
        if not self.any_model and name not in self.offered:
            raise ValueError(
                f"this page opens only {', '.join(self.offered)}; whoever started it can offer "
                "more by --model"
            )


def methods(paints: bool) -> tuple[str, ...]:
    """Names of the methods for a kind of model; those that can't be loaded are left out."""
    found = []
    for name in names():
        try:
            acts_on = get(name).acts_on
        except ImportError:
            continue
        if acts_on == (PAINTING if paints else LANGUAGE):
            found.append(name)
    return tuple(found)


def local(name: str) -> bool:
    """True for models on this machine: built-in ones and folders."""
    return name in BUILT_IN or Path(name).is_dir()
