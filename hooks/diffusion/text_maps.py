"""Attention of each place of the image to each token of the text, read in chosen layers.

Only the columns of the text are ever formed. Of cross-attention these are the whole map, image x
text. Of joint attention a row's softmax runs over image and text, so its text columns are

    A_text = softmax(z_text) * m,   m = the row's share on text = exp(lse(z_text) - lse(z))

and m is what the stock kernel gives for values that are 1 on text and 0 on the image: exact, with
gradients, without the map of all tokens on all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.perturb import as_query_heads, mask_as_numbers
from regaze.hooks.diffusion.sites import Site


class Enough(Exception):  # noqa: N818 (no error: it ends a pass early)
    """Raised once every map that was wanted has been read: the rest of the pass isn't needed."""


class Reader:
    """Sums text maps over heads and layers while a pass of the denoiser runs.

    Args:
        sites: The layers, in the order in which they run.
        stop: End the pass with `Enough` after the last layer.
    """

    def __init__(self, sites: Sequence[Site], stop: bool) -> None:
        self._sites, self._stop = sites, stop
        self._waiting = {site.name for site in sites}
        self._sum: Tensor | None = None
        self._heads = 0
        self._tokens = 0
        self._samples = 0
        self._grid: tuple[int, ...] | None = None

    def read(self, call: Call) -> Tensor:
        """Read a call's map, of the conditional rows; the call stays as it is.

        Raises:
            Enough: It was the last one.
            RuntimeError: The call holds a part of the pass's rows only.
            ValueError: Layers differ in resolution.
        """
        batch = len(call.query)
        rows, samples = slice(0, batch), batch
        if call.pass_ is not None:
            frames = call.samples().frames
            cond = call.pass_.rows.cond or slice(0, call.pass_.rows.batch)
            rows, samples = slice(cond.start * frames, cond.stop * frames), cond.stop - cond.start
        self._samples = samples
        if call.site.kind != "cross" and call.layout.segments and not _rows_of_image(call):
            return call.output
        grouped = text_map(call, rows)
        if self._tokens not in (0, grouped.shape[2]):
            raise ValueError(
                f"{call.site.name} has {grouped.shape[2]} places and layers before it "
                f"{self._tokens}; choose layers of one resolution"
            )
        self._tokens = grouped.shape[2]
        self._grid = call.layout.grid(call.site, self._tokens)
        self._heads += grouped.shape[1]
        summed = grouped.sum(1)
        self._sum = summed if self._sum is None else self._sum + summed
        self._waiting.discard(call.site.name)
        if self._stop and not self._waiting:
            raise Enough
        return call.output

    def maps(self) -> Tensor:
        """The mean over layers and heads, "B F R C T": samples, frames, rows, columns, tokens.

        Raises:
            ValueError: The grid of the image's tokens isn't known.
        """
        grid = self._grid
        if self._sum is None or grid is None:
            raise ValueError(
                f"the {self._tokens} image tokens of {self._sites[0].name} have a grid that isn't "
                "known for this model, which concept maps need"
            )
        return (self._sum / self._heads).reshape(self._samples, -1, *grid[-2:], self._sum.shape[-1])


def text_map(call: Call, rows: slice) -> Tensor:
    """The text columns of a call's maps, "B H N T" float32, N image and T text tokens.

    Args:
        call: A call of cross- or joint attention.
        rows: Rows of the batch to read.

    Raises:
        ValueError: The call's keys aren't the text's, or its order of streams isn't known.
    """
    heads = call.query.shape[1]
    query = call.query[rows].float()
    key = as_query_heads(call.key[rows], heads).float()
    cross = call.site.kind == "cross"
    if cross and key.shape[2] != call.layout.n_text:
        raise ValueError(
            f"{call.site.name} has {key.shape[2]} keys for {call.layout.n_text} tokens of text; "
            "which of them are which words isn't known"
        )
    if cross:
        return _softmax(query, key, _bias(call, rows, slice(None)), call.scale)
    image, text = call.image(), call.text()
    bias = _bias(call, rows, image)
    on_text = torch.zeros_like(key)
    on_text[:, :, text, 0] = 1
    # A mask of the kernel's must be of its type.
    mask = {} if call.mask is None else {"attn_mask": bias}
    share = call.kernel(query[:, :, image], key, on_text, **mask)[..., :1]
    columns = bias if bias is None else bias[..., text]
    return _softmax(query[:, :, image], key[:, :, text], columns, call.scale) * share


def _rows_of_image(call: Call) -> int:
    image = call.image()
    return int(image.stop) - int(image.start)


def _softmax(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = query @ key.transpose(-1, -2) * scale
    return (logits if bias is None else logits + bias).softmax(-1)


def _bias(call: Call, rows: slice, image: slice) -> Tensor | None:
    """The mask as numbers to add to the image's logits, "B 1 1 K" or "B 1 N K"."""
    if call.mask is None:
        return None
    bias = mask_as_numbers(call.mask)
    bias = bias[rows] if bias.shape[0] > 1 else bias
    return bias if bias.shape[-2] == 1 else bias[..., image, :]
