"""The base of all interventions: a frozen, JSON-able spec that can bind itself to a model."""

from __future__ import annotations

import dataclasses
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from regaze.hooks.checks import check_flag, shown, unknown
from regaze.interventions import plugins
from regaze.interventions.shipped import outlines

_REGISTRY: dict[str, type[Intervention]] = {}
_T = TypeVar("_T", bound="type[Intervention]")
_I = TypeVar("_I", bound="Intervention")


@dataclass(frozen=True)
class Preset:
    """Settings that somebody published.

    Attributes:
        fields: The fields that they set; others keep their defaults.
        source: Their source: arXiv id and section or table, or a repository's file.
    """

    fields: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Intervention(ABC):
    """Base of all methods. A subclass is a frozen dataclass whose fields are the method's settings.

    The config *is* the value: two specs are the same intervention iff they compare equal, and
    ``from_dict(spec.to_dict()) == spec``. Fields left at ``None`` are filled in by `resolve`, so
    that a run's record holds every number that was used.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    acts_on: ClassVar[str] = "vision-language models"
    needs_image_columns: ClassVar[bool] = True
    stage: ClassVar[Literal["attention", "question"]] = "attention"
    """The stage it acts at: "attention" is attached to a model; "question" changes what is asked,
    and is run by `regaze eval` or by a function of its own, not by `regaze.attach`."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Published settings by name, such as ``llava-1.5-7b``; see `preset`."""

    @classmethod
    def preset(cls: type[_I], name: str, /, **fields: Any) -> _I:
        """The method as somebody published it, maybe with some fields set otherwise.

        Args:
            name: One of `presets`.
            fields: Settings that replace the preset's.

        Raises:
            ValueError: No such preset; the message names the nearest ones. Or an unknown field, or
                a value out of its domain.
        """
        if not cls.presets:
            raise ValueError(f"{cls.name} has no presets, so none named {name!r}")
        if name not in cls.presets:
            raise ValueError(unknown(f"preset of {cls.name}", name, cls.presets))
        return cls.from_fields({**cls.presets[name].fields, **fields})

    @classmethod
    def from_fields(cls: type[_I], fields: Mapping[str, Any]) -> _I:
        """The method with some fields, all of them checked.

        Raises:
            ValueError: An unknown field; the message names the nearest ones. Or a value out of its
                domain.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for field in fields:
            if field not in known:
                raise ValueError(unknown(f"field of {cls.name}", field, known))
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"{cls.name}: a field has the wrong type: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{cls.name}: a field is nested too deeply") from error

    @property
    def shares_prefix(self) -> bool:
        """True if questions about one image may share its cached prefix.

        False if what the method does to the image's columns, or shows of it, depends on the
        question, or if a second run reads whole prompts.
        """
        return True

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = _plain(getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            if _kind(f) == "bool":
                check_flag(self.name, f.name, value)
            elif str(f.type).startswith("tuple[") and not isinstance(value, tuple | None):
                raise ValueError(
                    f"{self.name}: {f.name} must be a list such as [1,2], got {shown(value)}"
                )
        self.check()
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if _kind(f) in ("int", "float") and not number:
                raise ValueError(f"{self.name}: {f.name} must be a number, got {shown(value)}")

    def check(self) -> None:  # noqa: B027 (a method without fields has nothing to check)
        """Check the fields' domains.

        Raises:
            ValueError: A value is out of its domain; the message names the field and the domain.
        """

    def check_given(self) -> None:  # noqa: B027 (most methods have defaults for all fields)
        """Check that fields without a usable default are set, for commands that load a model next.

        Raises:
            ValueError: One isn't, so the method could act on no model; the message names the field.
        """

    @abstractmethod
    def resolve(self, host: Any) -> Intervention:
        """Fill in every field that depends on the model.

        Args:
            host: The model's description: `regaze.hooks.Host` or `regaze.hooks.diffusion.Host`.

        Raises:
            ValueError: The method can't act on this model, or a field doesn't fit it.
        """

    @abstractmethod
    def bind(self, host: Any) -> Any:
        """Make the work that a seat runs; call it on a resolved spec.

        On a vision-language model it may be a tuple of works, one that reads the picture in the
        vision tower, say, and one that edits the text; see `regaze.hooks.Handover`.
        """

    def literal(self) -> Any:
        """The resolved spec on explicit attention maps, written as its formula reads.

        What `regaze verify` compares the fused form with: a `MapForm` or `HeadForm` of
        `regaze.hooks.literal`, a `GuidanceForm`, `AttendForm` or `LatentForm` of
        `regaze.hooks.diffusion.literal`. None says that there is none; `regaze verify` then reports
        "no literal form" and proves nothing about the method's formula.
        """
        return None

    def idle(self) -> Intervention | None:
        """The same at strength zero, where it must change nothing; None if it has no strength."""
        return None

    def controls(self) -> Mapping[str, Intervention]:
        """Variants that should not help if the method works for the reason it gives, by name.

        For instance as many heads drawn at random, or the same edit with its sign flipped. Empty
        for a method that has none, and for a spec that is a control itself. All are of this class.
        """
        return {}

    @property
    def extra_prompts(self) -> tuple[str, ...]:
        """Prompts that a question-stage method asks about each image beside its questions."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able values: ``{"name": ..., field: value, ...}``."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"name": self.name, **json.loads(json.dumps(fields))}

    @property
    def label(self) -> str:
        """Short text such as ``vhr:alpha=3``: the name and the fields that aren't defaults."""
        changed = [
            f"{f.name}={json.dumps(value, separators=(',', ':'))}".replace('"', "")
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != f.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")


def _kind(field: dataclasses.Field[Any]) -> str:
    """A field's type as it is written, with ``from __future__ import annotations`` or without."""
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")


def register(cls: _T) -> _T:
    """Make a method known by its name to `get`, `parse`, ``from_dict`` and the command line.

    Raises:
        TypeError: It isn't a subclass of `Intervention` with a name.
        ValueError: Another one has that name.
    """
    if not (isinstance(cls, type) and issubclass(cls, Intervention)):
        raise TypeError(f"register takes a subclass of Intervention, got {shown(cls)}")
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f'{cls.__name__} needs a name: name: ClassVar[str] = "my_method"')
    shipped = outlines().get(cls.name)
    if cls.name in _REGISTRY or (shipped and shipped.module != cls.__module__):
        raise ValueError(f"an intervention named {cls.name!r} is already registered")
    _REGISTRY[cls.name] = cls
    return cls


def names(acts_on: str | None = None) -> list[str]:
    """Names of all methods, sorted: shipped, registered, and offered by installed packages.

    Args:
        acts_on: Only those for this, as in `Intervention.acts_on`; loads them all.

    Raises:
        ImportError: With ``acts_on``, an installed package's method can't be loaded.
    """
    known = sorted({*outlines(), *_REGISTRY, *plugins.offered(plugins.METHODS)})
    return [name for name in known if acts_on is None or get(name).acts_on == acts_on]


def get(name: str) -> type[Intervention]:
    """Look a method up by name, and import it if it isn't yet.

    Raises:
        ValueError: No such method; the message names the nearest ones.
        ImportError: An installed package offers it, but it can't be loaded.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name in outlines():
        importlib.import_module(outlines()[name].module)
    elif point := plugins.offered(plugins.METHODS).get(name):
        plugins.load(point)
        if name not in _REGISTRY:
            raise ImportError(f"{point.value} registers no intervention named {name!r}")
    else:
        raise ValueError(unknown("intervention", name, names()))
    return _REGISTRY[name]


def describe(name: str) -> tuple[str, str]:
    """Return a method's summary and paper, without importing a shipped one.

    Raises:
        ValueError: No such method; the message names the nearest ones.
        ImportError: An installed package offers it, but it can't be loaded.
    """
    known = outlines().get(name) or get(name)
    return known.summary, known.paper


def presets(name: str) -> tuple[str, ...]:
    """Names of a method's published settings, without importing a shipped one.

    Raises:
        ValueError: No such method; the message names the nearest ones.
        ImportError: An installed package offers it, but it can't be loaded.
    """
    known = outlines().get(name)
    return tuple(get(name).presets) if known is None else known.presets


def from_dict(spec: Mapping[str, Any]) -> Intervention:
    """Rebuild a spec from `Intervention.to_dict`'s result.

    Raises:
        ValueError: Unknown name or field, or a value out of its domain.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(
            f'a spec is a mapping such as {{"name": "vhr"}}, got a {type(spec).__name__}'
        )
    fields = dict(spec)
    if "name" not in fields:
        raise ValueError(f'an intervention needs a "name": one of {", ".join(names())}')
    return get(str(fields.pop("name"))).from_fields(fields)


def _plain(value: Any) -> Any:
    """Lists, ranges, arrays and their scalars as the tuples and numbers that specs hold."""
    if isinstance(value, (list, tuple, range)):
        return tuple(_plain(v) for v in value)
    if not isinstance(value, (int, float, str)) and hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
