"""Composition by attention: what PrimeComposer does to calls, as functions of tensors.

With S the subject's tokens, L "N S" the logits of a prior and z those of the generator, rows
written last,

    z[:, S] = L,   then   z[S, :] = L'

L are products of the prior's queries and of its keys, so no logits are kept, nor made: a row
outside of S is attention of its own query to the other keys and of the prior's query to the prior's
keys in one softmax, which is attention of both queries side by side to keys with zeros beside them;
a row of S is attention of the prior's key to the prior's queries. Both on the generator's values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[..., Tensor]


class Subject(NamedTuple):
    """Tokens of a grid.

    Attributes:
        inside: Numbers of those that are the subject's.
        outside: Numbers of the others.
    """

    inside: Tensor
    outside: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Subject:
        """The tokens inside and outside of a mask "N"."""
        return cls(mask.nonzero().flatten(), (~mask).nonzero().flatten())


class Prior(NamedTuple):
    """Queries and keys whose products are the logits that are infused.

    Attributes:
        query: "B H N D".
        key: "B H S D", of the subject's tokens.
    """

    query: Tensor
    key: Tensor


def on_latents(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A mask "H W" on a grid, every so many rows and columns: "N" bool."""
    found = F.interpolate(mask[None, None].float(), tuple(grid[-2:]), mode="nearest")
    return found.flatten() != 0


def correlated(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, subject: Subject
) -> tuple[Tensor, Prior]:
    """Self-attention of the correlation prior.

    Args:
        kernel: The call's.
        query: "2B H N D": first the composites' rows, then the references'.
        key: The same.
        value: The same.
        subject: Tokens of the subject.

    Returns:
        Head outputs of all rows, which the references' queries make of the composites' keys and
        values of the subject, and the prior.
    """
    half = len(query) // 2
    inside, asking = subject.inside, query[half:]
    found = key[:half, :, inside]
    output = kernel(asking, found, value[:half, :, inside])
    return torch.cat([output, output]), Prior(asking, found)


def infused(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, prior: Prior, subject: Subject
) -> Tensor:
    """Self-attention whose logits of the subject's columns and rows are a prior's, "B H N D".

    Args:
        kernel: The call's, which is given no scale: its own must be that of the logits.
        query: "B H N D".
        key: The same.
        value: The same.
        prior: The reading of the same rows and tokens.
        subject: Tokens of the subject.
    """
    inside, outside = subject
    output = torch.empty_like(query)
    own, nothing = key[:, :, outside], torch.zeros_like
    asking = torch.cat([query[:, :, outside], prior.query[:, :, outside]], -1)
    keys = torch.cat(
        [torch.cat([own, nothing(own)], -1), torch.cat([nothing(prior.key), prior.key], -1)], 2
    )
    values = torch.cat([value[:, :, outside], value[:, :, inside]], 2)
    size = query.shape[-1]
    # Values as wide as keys: kernels that make no map ask for that.
    wide = kernel(asking, keys, torch.cat([values, nothing(values)], -1))
    output[:, :, outside] = wide[..., :size]
    output[:, :, inside] = kernel(prior.key, prior.query, value)
    return output


def confined(columns: Tensor, inside: Tensor) -> Tensor:
    """The columns of the text that each row may read, "B 1 N L" bool.

    Args:
        columns: "B L" bool, the subject's words.
        inside: "N" bool, the subject's tokens.
    """
    return (~columns[:, None, :] | inside[None, :, None])[:, None]
