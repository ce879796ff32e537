"""Base of the tools for experiments: which heads, rows, columns and vectors.

The tools are not a paper's methods but what experiments are made of, each about ten lines on the
engine. They act on text rows behind the image ("text") or on the rows that predict ("last"); like
all methods here they leave a prompt without an image alone. By default each does nothing, as no
setting is right for everyone: commands ask for one, `regaze.attach` takes the no-op as it is.
`docs/own-method.md` builds a tool from scratch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention
from regaze.interventions.lvlm.common import choose_layers, require_patches

Heads = tuple[tuple[int, int], ...] | Literal["all"]
Vectors = tuple[tuple[float, ...], ...]
HEADS = "heads to [layer, head] pairs such as [[4,0],[4,3]], or to all"
_Self = TypeVar("_Self", bound="Tool")


@dataclass(frozen=True)
class Tool(Intervention):
    """Fields that all tools share.

    Attributes:
        heads: Query heads as [layer, head] pairs; "all" are those of ``layers``.
        layers: Layers to edit; by default the layers of ``heads``, or all of them.
        rows: "text": prompt text behind the image, and what is generated; "last": rows that
            predict.
    """

    wants: ClassVar[str] = "its strength"
    """The field without which a tool does nothing, and values for it, as an error asks for them."""

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

    def check_given(self) -> None:
        """Check that the settings change something."""
        wants = self.wants if self.heads else HEADS
        if not (self.heads and self.given):
            raise ValueError(f"{self.name} changes nothing as it is given: set {wants}")

    @property
    def given(self) -> bool:
        """True if the field that `wants` names is set."""
        return self != self.idle()

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
        edits = _EditLogits if isinstance(self.literal(), MapForm) else EditOutputs
        return edits(self, () if self == self.idle() else self.layers or ())

    def chosen(self, layer: int, like: Tensor) -> Tensor:
        """The heads of a layer that are meant, bool "H 1 1", given "B H . ." values."""
        heads = range(like.shape[1])
        found = [self.heads == "all" or (layer, head) in self.pairs for head in heads]
        return torch.tensor(found, device=like.device)[:, None, None]

    @abstractmethod
    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """The chosen rows edited in all heads: logits "B H R K", or outputs "B H R D"."""


class _EditLogits(Edit):
    def __init__(self, spec: Tool, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.spec, self.rows = spec, spec.rows

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        new = self.spec.edit(layer, logits, columns)
        return torch.where(self.spec.chosen(layer, logits), new, logits)


class EditOutputs(Edit):
    """The edit of a tool for heads' outputs."""

    def __init__(self, spec: Tool, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.spec, self.rows = spec, spec.rows

    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        """Edit the chosen heads."""
        out = out.transpose(1, 2)  # "B H R D"
        new = self.spec.edit(layer, out, columns)
        return torch.where(self.spec.chosen(layer, out), new, out).transpose(1, 2)


@dataclass(frozen=True)
class ColumnTool(Tool):
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


@dataclass(frozen=True)
class VectorTool(Tool):
    """A tool that puts vectors into heads' outputs.

    Attributes:
        vectors: One for each of ``heads``, in their order, or one for all of them; each as long as
            a head's output. None is a no-op. `head_outputs` reads them off a run.
    """

    wants: ClassVar[str] = "vectors to lists of numbers, each as long as a head's output"

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

    @property
    def given(self) -> bool:
        """True if there are vectors, be they added at strength zero."""
        return bool(self.vectors)

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


def acted_on(spec: Tool, m: Map, x: Tensor) -> Tensor:
    """Mask of a literal edit: the chosen rows of the chosen heads."""
    return spec.chosen(m.layer, x) & (m.text if spec.rows == "text" else m.last)
