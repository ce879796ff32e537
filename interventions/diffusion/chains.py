"""A call's rows where its batch holds sources and their edits: one number of the chain at a time.

Sources are used where they lie, so that only what edits take is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.interventions.diffusion.edit_words import check_pairs


@dataclass(frozen=True)
class Chains:
    """The rows of a call by their number: 0 are the sources, 1 their edits, 2 the edits of those.

    Attributes:
        call: The call.
        split: Parts of its batch, from the outermost: branches of guidance R, groups of a source
            and its edits G, numbers, and images (and frames) of each I.
    """

    call: Call
    split: tuple[int, int, int, int]

    @classmethod
    def of(cls, call: Call, length: int) -> Chains:
        """The chains of a call.

        Args:
            call: The call.
            length: Rows of each chain: the source and its edits.

        Raises:
            ValueError: Its prompts aren't whole chains.
        """
        who = call.samples()
        check_pairs(who.prompts, length)
        images = who.images * who.frames
        return cls(call, (who.branches, who.prompts // length, length, images))

    def rows(self, number: int) -> list[Tensor]:
        """Queries, keys and values of a number, "R G I H N D", as the call has them."""
        call = self.call
        return [
            x.unflatten(0, self.split)[:, :, number] for x in (call.query, call.key, call.value)
        ]

    def attend(self, number: int, rows: Sequence[Tensor], branches: slice = slice(None)) -> Tensor:
        """Head outputs of a number's rows, "R G I H N D".

        Args:
            number: The number, by which the call's mask is read.
            rows: Queries, keys and values "R G I H N D".
            branches: The branches of guidance to make.
        """
        named, mask = {}, self.call.mask
        if mask is not None and len(mask) > 1:
            named = {"attn_mask": mask.unflatten(0, self.split)[branches, :, number].flatten(0, 2)}
        some = [x[branches] for x in rows]
        flat = self.call.kernel(*(x.flatten(0, 2) for x in some), **named)
        made: Tensor = flat.unflatten(0, some[0].shape[:3])
        return made


def taken(source: Tensor, own: Tensor, image: slice, preserve: Tensor | bool) -> Tensor:
    """An edit's queries, keys or values with its source's in rows of the picture.

    Args:
        source: "... N D".
        own: The edit's own, likewise.
        image: The picture's rows.
        preserve: Which of them are taken, broadcastable to "... I 1"; True: all, False: none.
    """
    if preserve is False:
        return own
    inner = source[..., image, :]
    if preserve is not True:
        inner = torch.where(preserve, inner, own[..., image, :])
    return torch.cat([own[..., : image.start, :], inner, own[..., image.stop :, :]], -2)
