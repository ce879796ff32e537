"""Generic edits: scale or silence heads, bias or scale columns, steer and patch heads' outputs.

Not a paper's methods but what experiments are made of, each about ten lines on the engine. They
act on text rows behind the image ("text") or on the rows that predict ("last"); like all methods
here they leave a prompt without an image alone. By default each does nothing: there is no setting
that is right for everyone. `docs/own-method.md` builds one from scratch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host, find_host, split_target
from regaze.hooks.literal import Map, MapForm, OutputForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention, register
from regaze.interventions.lvlm.common import choose_layers, require_patches

Heads = tuple[tuple[int, int], ...] | Literal["all"]
Vectors = tuple[tuple[float, ...], ...]
_Self = TypeVar("_Self", bound="Tool")
_TINY = 1e-30


@dataclass(frozen=True)
class Tool(Intervention):
    """What the tools share.

    Attributes:
        heads: Query heads as [layer, head] pairs; "all" are those of ``layers``.
        layers: Where; by default the layers of ``heads``, or all of them.
        rows: "text": prompt text behind the image, and what is generated; "last": rows that
            predict.
    """

    paper: ClassVar[str] = "none: a tool for experiments"

    heads: Heads = "all"
    layers: tuple[int, ...] | None = None
    rows: Literal["text", "last"] = "text"

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The heads that are named."""
        return self.heads if isinstance(self.heads, tuple) else ()

    def check(self) -> None:
        """Check the fields' domains."""
        check_choice(self.name, "rows", self.rows, ("text", "last"))
        pairs = self.pairs
        if (
            self.heads != "all"
            and not isinstance(self.heads, tuple)
            or any(not isinstance(pair, tuple) or len(pair) != 2 for pair in pairs)
        ):
            raise ValueError(
                f'{self.name}: heads must be "all" or [layer, head] pairs such as [[4,0],[4,3]], '
                f"got {self.heads!r}"
            )
        if len(set(pairs)) < len(pairs):
            raise ValueError(f"{self.name}: heads names a head twice: {list(map(list, pairs))}")

    def resolve(self: _Self, host: Host) -> _Self:
        """Choose the layers, and check the heads."""
        require_patches(type(self).__name__, host)
        pairs = self.pairs
        named = tuple(dict.fromkeys(layer for layer, _ in pairs))
        given = named if self.layers is None and self.heads != "all" else self.layers
        check_indices(self.name, "layers", named, host.n_layers, f"this {host.model_type}")
        numbers = tuple(dict.fromkeys(head for _, head in pairs))
        check_indices(self.name, "heads", numbers, host.n_heads, f"a layer of {host.model_type}")
        layers = choose_layers(self.name, host, given, range(len(host.sites)))
        return replace(self, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if it changes nothing."""
        edits = _Logits if isinstance(self.literal(), MapForm) else _Outputs
        return edits(self, () if self == self.idle() else self.layers or ())

    def chosen(self, layer: int, like: Tensor) -> Tensor:
        """Which heads of a layer are meant, "H 1 1", given "B H . ." values."""
        heads = range(like.shape[1])
        found = [self.heads == "all" or (layer, head) in self.pairs for head in heads]
        return torch.tensor(found, device=like.device)[:, None, None]

    @abstractmethod
    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """The chosen rows edited in all heads: logits "B H R K", or outputs "B H R D"."""


class _Logits(Edit):
    def __init__(self, spec: Tool, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.spec, self.rows = spec, spec.rows

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        new = self.spec.edit(layer, logits, columns)
        return torch.where(self.spec.chosen(layer, logits), new, logits)


class _Outputs(Edit):
    def __init__(self, spec: Tool, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.spec, self.rows = spec, spec.rows

    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        out = out.transpose(1, 2)  # "B H R D"
        new = self.spec.edit(layer, out, columns)
        return torch.where(self.spec.chosen(layer, out), new, out).transpose(1, 2)


def _rows(spec: Tool, m: Map, x: Tensor) -> Tensor:
    """Where a literal edit acts: the chosen rows of the chosen heads."""
    return spec.chosen(m.layer, x) & (m.text if spec.rows == "text" else m.last)


# -- heads --------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class HeadScale(Tool):
    """Multiply the outputs of chosen heads.

    Attributes:
        factor: Factor; 1 is a no-op, 0 silences.
    """

    name: ClassVar[str] = "headscale"
    summary: ClassVar[str] = "tool: scale the outputs of chosen heads"

    factor: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "factor", self.factor, -100, 100)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Scale."""
        return self.factor * values

    def idle(self) -> HeadScale:
        """The factor is 1."""
        return replace(self, factor=1.0)

    def literal(self) -> OutputForm:
        """``factor * o`` in the chosen heads and rows."""
        return OutputForm(
            self.layers or (), lambda o, m: torch.where(_rows(self, m, o), self.factor * o, o)
        )


@register
@dataclass(frozen=True)
class HeadAblate(Tool):
    """Take chosen heads out, to see what they are for.

    Attributes:
        to: "zero": they put out nothing. "uniform": they attend to all that they see alike, which
            keeps the size of what they put out (a milder change than zero).
        heads: As in all tools, but none by default.
    """

    name: ClassVar[str] = "headablate"
    summary: ClassVar[str] = "tool: take chosen heads out"

    heads: Heads = ()
    to: Literal["zero", "uniform"] = "zero"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_choice(self.name, "to", self.to, ("zero", "uniform"))

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Outputs, or logits, of zero."""
        return torch.zeros_like(values)

    def idle(self) -> HeadAblate:
        """No heads."""
        return replace(self, heads=())

    def literal(self) -> MapForm | OutputForm:
        """``o = 0``, or the same logit for all columns that are seen."""
        form = MapForm if self.to == "uniform" else OutputForm
        return form(self.layers or (), lambda x, m: x.masked_fill(_rows(self, m, x), 0.0))


# -- columns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ColumnTool(Tool):
    """A tool for the logits of some columns.

    Attributes:
        columns: "image", "system" (text before the first image) or "rest" (all others).
    """

    columns: Literal["image", "system", "rest"] = "image"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_choice(self.name, "columns", self.columns, ("image", "system", "rest"))

    def at(self, of: Columns | Map) -> Tensor:
        """The columns among those of a call."""
        named = {"image": of.image, "system": of.system, "rest": ~(of.image | of.system)}
        return named[self.columns]


@register
@dataclass(frozen=True)
class LogitBias(_ColumnTool):
    """Add a number to the logits of some columns.

    Attributes:
        bias: What is added to scaled logits; 0 is a no-op.
    """

    name: ClassVar[str] = "logitbias"
    summary: ClassVar[str] = "tool: add to the logits of some columns"

    bias: float = 0.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "bias", self.bias, -1000, 1000)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add."""
        return values + self.bias * self.at(columns)

    def idle(self) -> LogitBias:
        """Nothing is added."""
        return replace(self, bias=0.0)

    def literal(self) -> MapForm:
        """``z + bias`` on the columns."""

        def edit(z: Tensor, m: Map) -> Tensor:
            return torch.where(_rows(self, m, z) & self.at(m), z + self.bias, z)

        return MapForm(self.layers or (), edit)


@register
@dataclass(frozen=True)
class ColumnScale(_ColumnTool):
    """Multiply the attention weights of some columns, and make rows sum to 1 again.

    Attributes:
        factor: Factor of the weights; 1 is a no-op, 0 hides the columns (from a row that sees
            no others it hides nothing).
    """

    name: ClassVar[str] = "columnscale"
    summary: ClassVar[str] = "tool: scale the weights of some columns"

    factor: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "factor", self.factor, 0, 1e6)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add the factor's logarithm to the logits."""
        return values + math.log(max(self.factor, _TINY)) * self.at(columns)

    def idle(self) -> ColumnScale:
        """The factor is 1."""
        return replace(self, factor=1.0)

    def literal(self) -> MapForm:
        """``a_j = factor a_j`` on the columns, divided by the row's sum."""

        def edit(z: Tensor, m: Map) -> Tensor:
            a = z.double().masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)
            a = torch.where(self.at(m), max(self.factor, _TINY) * a, a)
            scaled = (a / a.sum(-1, keepdim=True)).log().float()
            return torch.where(_rows(self, m, z), scaled, z)

        return MapForm(self.layers or (), edit)


# -- vectors ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _VectorTool(Tool):
    """A tool that puts vectors into heads' outputs.

    Attributes:
        vectors: One for each of ``heads``, in their order, or one for all of them; each as long as
            a head's output. None is a no-op. `head_outputs` reads them off a run.
    """

    vectors: Vectors = ()

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        rows = self.vectors if isinstance(self.vectors, tuple) else (None,)
        if any(not isinstance(row, tuple) for row in rows) or len({len(r) for r in rows if r}) > 1:
            raise ValueError(f"{self.name}: vectors must be lists of numbers, of one length")
        for number in (x for row in rows if row is not None for x in row):
            check_number(self.name, "vectors", number)
        pairs = len(self.heads) if isinstance(self.heads, tuple) else 1
        if len(rows) not in (0, 1, pairs):
            raise ValueError(
                f"{self.name}: there are {len(rows)} vectors for {pairs} heads; give one for each, "
                "or one for all"
            )

    def vector(self, layer: int, like: Tensor) -> Tensor:
        """The heads' vectors "H 1 D", given outputs "B H R D"; zeros for heads that have none.

        Raises:
            ValueError: They are of another length than a head's output.
        """
        if (size := len(self.vectors[0])) != like.shape[-1]:
            raise ValueError(
                f"{self.name}: vectors have {size} numbers, but a head's output has "
                f"{like.shape[-1]} here"
            )
        if len(self.vectors) == 1:
            return like.new_tensor(self.vectors)
        found = like.new_zeros(like.shape[1], 1, size)
        for (at, head), row in zip(self.pairs, self.vectors, strict=True):
            if at == layer:
                found[head, 0] = like.new_tensor(row)
        return found


@register
@dataclass(frozen=True)
class Steer(_VectorTool):
    """Add a vector to the outputs of chosen heads.

    Attributes:
        strength: Factor of the vectors; 0 is a no-op.
    """

    name: ClassVar[str] = "steer"
    summary: ClassVar[str] = "tool: add a vector to the outputs of chosen heads"

    strength: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "strength", self.strength, -1000, 1000)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if nothing is added."""
        acts = self.vectors and self.strength
        return _Outputs(self, self.layers or () if acts else ())

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add."""
        return values + self.strength * self.vector(layer, values)

    def idle(self) -> Steer:
        """Strength zero."""
        return replace(self, strength=0.0)

    def literal(self) -> OutputForm:
        """``o + strength * v`` in the chosen heads and rows."""

        def edit(o: Tensor, m: Map) -> Tensor:
            return torch.where(_rows(self, m, o), o + self.strength * self.vector(m.layer, o), o)

        return OutputForm(self.layers or () if self.vectors else (), edit)


@register
@dataclass(frozen=True)
class Patch(_VectorTool):
    """Put outputs of another run into chosen heads: at every edited row the same ones.

    To see what one row is good for, take ``rows="last"`` and look at the next token alone.
    """

    name: ClassVar[str] = "patch"
    summary: ClassVar[str] = "tool: put another run's outputs into chosen heads"

    rows: Literal["text", "last"] = "last"

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Replace."""
        return self.vector(layer, values).expand_as(values)

    def idle(self) -> Patch:
        """No vectors."""
        return replace(self, vectors=())

    def literal(self) -> OutputForm:
        """``o = v`` in the chosen heads and rows."""

        def edit(o: Tensor, m: Map) -> Tensor:
            return torch.where(_rows(self, m, o), self.vector(m.layer, o), o)

        return OutputForm(self.layers or () if self.vectors else (), edit)


class _Reading(Edit):
    rows = "last"

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.found: dict[int, Tensor] = {}

    def fork(self) -> Edit:
        return self

    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        self.found[layer] = out[0, -1].detach().cpu()
        return out


@torch.no_grad()
def head_outputs(
    model: Any, inputs: Any, heads: Sequence[tuple[int, int]], processor: Any = None
) -> Vectors:
    """What heads put out at the last row of a prompt with a picture: `Patch`'s ``vectors``.

    Args:
        model: The model.
        inputs: One prompt, as for its ``forward``.
        heads: [layer, head] pairs.
        processor: The model's processor, where `regaze.attach` needs it.

    Raises:
        ValueError: The prompt has no image, or a head doesn't exist.
    """
    model, processor = split_target(model, processor)
    host = find_host(model, processor)
    layers = sorted({int(layer) for layer, _ in heads})
    check_indices("head_outputs", "heads", tuple(layers), host.n_layers, "the model")
    with Capturing(seat_of(host), reading := _Reading(layers), reading):
        model(**inputs)
    if not reading.found:
        raise ValueError("the prompt has no image, so there is no row to read")
    return tuple(tuple(reading.found[layer][head].tolist()) for layer, head in heads)
