"""TokenMap: the kind of each key column, per batch row."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.checks import shown

Span = tuple[int, int]
Spans = Mapping[str, Sequence[Span]]


class Kind(IntEnum):
    """The kinds of columns."""

    PAD = 0
    SYSTEM = 1
    """Text before the first image: BOS, system prompt, chat template."""
    IMAGE = 2
    SEPARATOR = 3
    """Structure between the patches of images: row ends, tile marks."""
    QUESTION = 4
    """Prompt text after the first image, or all of it if there is no image."""
    GENERATED = 5


@dataclass(frozen=True)
class ImageTokens:
    """Token ids by which images are recognised in a prompt.

    Attributes:
        image: Ids that stand for image or video features.
        inside: Structure between the patches of one image: row ends, tile marks.
        breaks: Line breaks; part of an image's structure where they stand beside ``inside``.
        fence: Tile mark that stands twice in a row only where one image ends and another begins.
        first_tile: Mark of an image's first tile.
        per_image: Columns of every image, where images may stand side by side with nothing
            between them.
    """

    image: frozenset[int]
    inside: frozenset[int] = frozenset()
    breaks: frozenset[int] = frozenset()
    fence: int | None = None
    first_tile: int | None = None
    per_image: int | None = None

    def is_structure(self, gap: Sequence[int]) -> bool:
        """Return whether the tokens between two runs of image columns are structure, not text."""
        return not self.inside.isdisjoint(gap) and self.inside.union(self.breaks).issuperset(gap)

    def starts_image(self, gap: Sequence[int]) -> bool:
        """Return whether a new image begins after these tokens."""
        if not self.is_structure(gap) or self.first_tile in gap:
            return True
        return any(a == b == self.fence for a, b in zip(gap, gap[1:], strict=False))


def check_spans(spans: Any) -> None:
    """Check the form of what a caller says of where images are.

    Raises:
        TypeError: It is no mapping of kinds to ranges of columns, nor a list of such mappings.
    """
    rows = [spans] if isinstance(spans, Mapping) else spans
    try:
        columns = [e for row in rows for ranges in row.values() for pair in ranges for e in pair]
        fits = len(rows) > 0 and [operator.index(column) for column in columns] == columns
        fits &= all(len(pair) == 2 for row in rows for ranges in row.values() for pair in ranges)
    except (AttributeError, TypeError):
        fits = False
    if not fits:
        raise TypeError(
            'spans must look like {"image": [(start, end), ...]}, or be a list of such mappings, '
            f"one per row of the batch; got {shown(spans)}"
        )


@dataclass(frozen=True)
class TokenMap:
    """Kinds of all columns seen so far, and the image of each image column.

    Found from token ids, so several images, newline and row-end tokens, left padding and images
    anywhere in the prompt need no configuration.

    Attributes:
        kinds: "B P" int8 of `Kind`, on the CPU, of the P columns that were read.
        images: "B P" int16: number of the image within its row, -1 for other columns.
        generated: Generated columns after those, which needn't be read.
    """

    kinds: Tensor
    images: Tensor
    generated: int = 0

    @classmethod
    def from_ids(
        cls, ids: Tensor, tokens: ImageTokens, attention_mask: Tensor | None = None
    ) -> TokenMap:
        """Read the prompt.

        Args:
            ids: "B T" token ids, image placeholders already expanded by the processor.
            tokens: Token ids by which images are recognised.
            attention_mask: "B T", 0 on padding.
        """
        ids = ids.cpu()
        image = torch.isin(ids, torch.tensor(sorted(tokens.image), dtype=ids.dtype, device="cpu"))
        real = torch.ones_like(image) if attention_mask is None else attention_mask.cpu().bool()
        image &= real
        separator = torch.zeros_like(image)
        number = torch.full(image.shape, -1, dtype=torch.int16, device="cpu")
        for row in range(len(ids)):
            last, run, current, numbers = -1, 0, -1, []
            said = ids[row].tolist()
            for column in image[row].nonzero().flatten().tolist():
                gap = said[last + 1 : column]
                starts = tokens.starts_image(gap) if gap else run == tokens.per_image
                if last < 0 or starts:
                    current, run = current + 1, 0
                if last >= 0 and gap and tokens.is_structure(gap):
                    separator[row, last + 1 : column] = True
                numbers.append(current)
                last, run = column, run + 1
            number[row, image[row]] = torch.tensor(numbers, dtype=torch.int16, device="cpu")
        return cls._classify(image, separator & real, real, number)

    @classmethod
    def from_spans(
        cls,
        spans: Sequence[Spans],
        length: int,
        attention_mask: Tensor | None = None,
        partial: bool = False,
    ) -> TokenMap:
        """Build the map from the caller's own half-open column ranges, one mapping per batch row.

        Args:
            spans: For each row ``{"image": [(start, end), ...]}``; each range is one image.
                ``"system"`` ranges override what is called system.
            length: Number of columns T.
            attention_mask: "B T", 0 on padding.
            partial: The prompt goes on, so ranges may lie further on.

        Raises:
            ValueError: An unknown kind, or a range outside the prompt.
        """
        shape = (len(spans), length)
        image = torch.zeros(shape, dtype=torch.bool, device="cpu")
        number = torch.full(shape, -1, dtype=torch.int16, device="cpu")
        real = torch.ones(shape, dtype=torch.bool, device="cpu")
        if attention_mask is not None:
            real = attention_mask.cpu().bool()
        for row, given in enumerate(spans):
            for kind, ranges in given.items():
                if kind not in ("image", "system"):
                    raise ValueError(f'spans: unknown kind {kind!r}; use "image" and "system"')
                for index, (start, end) in enumerate(ranges):
                    if not 0 <= start < end or (end > length and not partial):
                        raise ValueError(
                            f"spans: row {row} has {kind} columns [{start}, {end}), but the "
                            f"prompt has {length} columns"
                        )
                    if kind == "image":
                        image[row, start:end] = True
                        number[row, start:end] = index
        image &= real
        tokens = cls._classify(image, torch.zeros_like(image), real, number)
        for row, given in enumerate(spans):
            for start, end in given.get("system", ()):
                tokens.kinds[row, start:end] = Kind.SYSTEM
        return tokens

    @classmethod
    def _classify(cls, image: Tensor, separator: Tensor, real: Tensor, number: Tensor) -> TokenMap:
        kinds = torch.full(image.shape, int(Kind.SYSTEM), dtype=torch.int8, device="cpu")
        kinds[(image.cumsum(1) > 0) | ~image.any(1, keepdim=True)] = Kind.QUESTION
        kinds[separator] = Kind.SEPARATOR
        kinds[image] = Kind.IMAGE
        kinds[~real] = Kind.PAD
        return cls(kinds, torch.where(image, number, -1))

    @property
    def length(self) -> int:
        """Number of columns K."""
        return self.kinds.shape[1] + self.generated

    @property
    def batch(self) -> int:
        """Number of batch rows B."""
        return self.kinds.shape[0]

    def is_kind(self, *kinds: Kind) -> Tensor:
        """Bool "B K": columns of any of the given kinds."""
        found = torch.isin(
            self.kinds, torch.tensor([int(k) for k in kinds], dtype=torch.int8, device="cpu")
        )
        grown = Kind.GENERATED in kinds
        return torch.nn.functional.pad(found, (0, self.generated), value=grown)

    @property
    def has_image(self) -> Tensor:
        """Bool "B": rows with image columns."""
        return (self.kinds == Kind.IMAGE).any(1)

    @property
    def after_image(self) -> Tensor:
        """Bool "B K": text columns that come after image columns; the rows most methods edit."""
        seen = self.is_kind(Kind.IMAGE).cumsum(1) > 0
        return seen & self.is_kind(Kind.QUESTION, Kind.GENERATED)

    def image_columns(self, sample: int, image: int) -> Tensor:
        """Column indices of one image of one batch row, in order."""
        return (self.images[sample] == image).nonzero().flatten()

    def n_images(self, sample: int) -> int:
        """Number of images in one batch row."""
        return int(self.images[sample].max()) + 1

    def mark_generated(self, generated: Tensor) -> TokenMap:
        """The same columns, with those in the mask "B K" known to be generated."""
        return replace(self, kinds=self.kinds.masked_fill(generated, int(Kind.GENERATED)))

    def grow(self, count: int) -> TokenMap:
        """Add ``count`` generated columns."""
        return TokenMap(self.kinds, self.images, self.generated + count)

    def crop(self, length: int) -> TokenMap:
        """Forget the columns from ``length`` on (assisted decoding rolls back rejected tokens)."""
        read = min(length, self.kinds.shape[1])
        return TokenMap(self.kinds[:, :read], self.images[:, :read], length - read)

    def select(self, rows: Tensor) -> TokenMap:
        """Some batch rows, in the order of their indices."""
        return replace(self, kinds=self.kinds[rows], images=self.images[rows])
