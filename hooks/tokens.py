"""TokenMap: what each key column is, per batch row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

Span = tuple[int, int]
Spans = Mapping[str, Sequence[Span]]


class Kind(IntEnum):
    """What a column holds."""

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
class TokenMap:
    """Kinds of all columns seen so far, and which image each image column belongs to.

    Found from token ids, so several images, newline and row-end tokens, left padding and images
    anywhere in the prompt need no configuration.

    Attributes:
        kinds: "B K" int8 of `Kind`, on the CPU.
        images: "B K" int16: number of the image within its row, -1 for other columns.
    """

    kinds: Tensor
    images: Tensor

    @classmethod
    def from_ids(
        cls,
        ids: Tensor,
        image_ids: Collection[int],
        separator_ids: Collection[int] = (),
        attention_mask: Tensor | None = None,
        columns_per_image: int | None = None,
    ) -> TokenMap:
        """Read the prompt.

        Args:
            ids: "B T" token ids, image placeholders already expanded by the processor.
            image_ids: Ids that stand for image or video features.
            separator_ids: Ids of structure tokens; they count as separators only between image
                columns, and join the runs on both sides into one image.
            attention_mask: "B T", 0 on padding.
            columns_per_image: Length of every image, where images may stand side by side with
                nothing between them.
        """
        ids = ids.cpu()
        image = torch.isin(ids, torch.tensor(sorted(image_ids), dtype=ids.dtype))
        separator = torch.isin(ids, torch.tensor(sorted(separator_ids), dtype=ids.dtype))
        real = torch.ones_like(image) if attention_mask is None else attention_mask.cpu().bool()
        tokens = cls._classify(image & real, separator & real, real)
        if columns_per_image:
            count = tokens.is_kind(Kind.IMAGE).cumsum(1) - 1
            number = (count // columns_per_image).to(torch.int16)
            tokens.images.copy_(torch.where(tokens.images >= 0, number, tokens.images))
        return tokens

    @classmethod
    def from_spans(
        cls, spans: Sequence[Spans], length: int, attention_mask: Tensor | None = None
    ) -> TokenMap:
        """Build the map from the caller's own half-open column ranges, one mapping per batch row.

        Args:
            spans: For each row ``{"image": [(start, end), ...]}``; each range is one image.
                ``"system"`` ranges override what is called system.
            length: Number of columns T.
            attention_mask: "B T", 0 on padding.

        Raises:
            ValueError: An unknown kind, or a range outside the prompt.
        """
        shape = (len(spans), length)
        image = torch.zeros(shape, dtype=torch.bool)
        real = torch.ones(shape, dtype=torch.bool)
        if attention_mask is not None:
            real = attention_mask.cpu().bool()
        for row, given in enumerate(spans):
            for kind, ranges in given.items():
                if kind not in ("image", "system"):
                    raise ValueError(f'spans: unknown kind {kind!r}; use "image" and "system"')
                for start, end in ranges:
                    if not 0 <= start < end <= length:
                        raise ValueError(
                            f"spans: row {row} has {kind} columns [{start}, {end}), but the "
                            f"prompt has {length} columns"
                        )
                    if kind == "image":
                        image[row, start:end] = True
        tokens = cls._classify(image & real, torch.zeros_like(image), real)
        for row, given in enumerate(spans):
            for number, (start, end) in enumerate(given.get("image", ())):
                tokens.images[row, start:end] = number
            for start, end in given.get("system", ()):
                tokens.kinds[row, start:end] = Kind.SYSTEM
        return tokens

    @classmethod
    def _classify(cls, image: Tensor, separator: Tensor, real: Tensor) -> TokenMap:
        after_first = image.cumsum(1) > 0
        before_last = image.flip(1).cumsum(1).flip(1) > 0
        separator = separator & after_first & before_last
        kinds = torch.full(image.shape, int(Kind.SYSTEM), dtype=torch.int8)
        kinds[after_first | ~image.any(1, keepdim=True)] = Kind.QUESTION
        kinds[separator] = Kind.SEPARATOR
        kinds[image] = Kind.IMAGE
        kinds[~real] = Kind.PAD
        # An image is a run of image and separator columns.
        inside = (image | separator).int()
        starts = (inside - torch.nn.functional.pad(inside, (1, 0))[:, :-1]) == 1
        images = torch.where(image, starts.cumsum(1) - 1, -1).to(torch.int16)
        return cls(kinds, images)

    @property
    def length(self) -> int:
        """Number of columns K."""
        return self.kinds.shape[1]

    @property
    def batch(self) -> int:
        """Number of batch rows B."""
        return self.kinds.shape[0]

    def is_kind(self, *kinds: Kind) -> Tensor:
        """Bool "B K": columns of any of the given kinds."""
        return torch.isin(self.kinds, torch.tensor([int(k) for k in kinds], dtype=torch.int8))

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

    def append(self, block: TokenMap) -> TokenMap:
        """Add the columns of the next block of the same prompt (chunked prefill, new turn)."""
        had = self.is_kind(Kind.IMAGE).any(1, keepdim=True)
        has = block.is_kind(Kind.IMAGE).any(1, keepdim=True)
        # Text is before or after the first image only once both blocks are known.
        late = had & (block.kinds == Kind.SYSTEM)
        early = ~had & has & (self.kinds == Kind.QUESTION)
        kinds = torch.where(late, int(Kind.QUESTION), block.kinds).to(torch.int8)
        seen = torch.where(early, int(Kind.SYSTEM), self.kinds).to(torch.int8)
        # A run cut by the block boundary goes on as the same image.
        last = self.images.amax(1, keepdim=True)
        goes_on = (self.images[:, -1:] >= 0) & (block.images[:, :1] >= 0)
        shift = last + 1 - goes_on.to(torch.int16)
        images = torch.where(block.images >= 0, block.images + shift, block.images)
        return TokenMap(
            torch.cat([seen, kinds], 1), torch.cat([self.images, images.to(torch.int16)], 1)
        )

    def grow(self, count: int) -> TokenMap:
        """Add ``count`` generated columns."""
        pad = torch.nn.functional.pad
        return TokenMap(
            pad(self.kinds, (0, count), value=int(Kind.GENERATED)),
            pad(self.images, (0, count), value=-1),
        )

    def crop(self, length: int) -> TokenMap:
        """Forget the columns from ``length`` on (assisted decoding rolls back rejected tokens)."""
        return TokenMap(self.kinds[:, :length], self.images[:, :length])

    def repeat(self, times: int) -> TokenMap:
        """Repeat each batch row in place, as a cache does for beams."""
        return replace(
            self,
            kinds=self.kinds.repeat_interleave(times, 0),
            images=self.images.repeat_interleave(times, 0),
        )
