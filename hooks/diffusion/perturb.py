"""The perturbed attentions as pure tensor functions, none of which builds the N x N map.

A perturbation replaces a head's map A = softmax(QK'/sqrt d + M) by (1-u) A + u T. The output A V is
linear in A, so the head's output becomes (1-u) A V + u T V, and T V is cheap for every target:

    identity      V                                    PAG, arXiv 2403.17377
    uniform       mean_j V_j                           this and the next two: arXiv 2506.10978
    query_mean    attention of one query, the mean of all, for every row
    temperature   attention with logits divided by tau: softmax(log A / tau)
    blur          attention of blurred queries         SEG, arXiv 2408.00760
    image block   image rows see themselves and the text; by log-sum-exp, without a mask

Shapes: query "B H N D", key and value "B G N D" with H a multiple of G, outputs "B H N D".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[..., Tensor]
"""The stock kernel of a call with its mask and scale bound: ``kernel(query, key, value)``."""


def blend(output: Tensor, target: Tensor, u: Tensor) -> Tensor:
    """``(1-u) output + u target``; heads with u = 0 keep the output bit for bit.

    Args:
        output: "B H N D", the unperturbed heads.
        target: Broadcastable to it.
        u: "H 1 1", strength per head.
    """
    return torch.where(u == 0, output, torch.lerp(output, target.to(output.dtype), u))


def as_query_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values of grouped heads, "B G N D", repeated to "B H N D"."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def mean_query(query: Tensor, visible: Tensor | None = None) -> Tensor:
    """The mean of all queries, "B H 1 D".

    Args:
        query: "B H N D".
        visible: "B 1 N 1" bool, tokens that aren't padding; the mean is over them.
    """
    if visible is None:
        return query.mean(2, keepdim=True)
    # where, not a product: what padding holds may be anything, also NaN.
    kept = torch.where(visible, query.float(), 0.0).sum(2, keepdim=True)
    return (kept / visible.sum(2, keepdim=True).clamp(min=1)).to(query.dtype)


def blur_queries(query: Tensor, grid: tuple[int, ...], sigma: float) -> Tensor:
    """Blur queries over the image's token grid, which blurs the logits along the query axis.

    The released code's kernel (SusungHong/SEG-SDXL@cf8256d, pipeline_seg.py): of odd side
    ``ceil(6 sigma) + 1``, as long as the grid's side at most (one more if that is even), separable,
    edges reflected. There the grid is square; here each side bounds its own kernel, and the frames
    of a video blur apart.

    Args:
        query: "B H N D" of the image tokens alone.
        grid: (rows, columns) or (frames, rows, columns), with product N.
        sigma: Standard deviation in tokens, positive.
    """
    batch, heads, tokens, size = query.shape
    rows, columns = grid[-2:]
    x = query.reshape(batch * heads, -1, rows, columns, size).movedim(-1, 2)
    x = x.reshape(-1, 1, rows, columns)
    for axis, side in ((-2, rows), (-1, columns)):
        kernel = gaussian(sigma, side).to(x)
        half = len(kernel) // 2
        if half == 0:
            continue
        pad = (0, 0, half, half) if axis == -2 else (half, half, 0, 0)
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        x = F.conv2d(F.pad(x, pad, mode="reflect"), kernel.reshape(shape))
    x = x.reshape(batch * heads, -1, size, rows, columns).movedim(2, -1)
    return x.reshape(batch, heads, tokens, size)


def gaussian(sigma: float, side: int) -> Tensor:
    """SEG's kernel for a grid side, float32, summing to 1."""
    length = math.ceil(6 * sigma) + 1
    length = min(length - 1 + length % 2, side + 1 - side % 2)
    x = torch.linspace(
        -(length - 1) / 2, (length - 1) / 2, length, dtype=torch.float32, device="cpu"
    )
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def image_block_identity(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    image: slice,
    kernel: Kernel,
    mask: Tensor | None = None,
) -> Tensor:
    """Let image tokens see themselves and the text, no other image token; other rows are unchanged.

    With s_i the logit of token i on itself and (O_i, lse_i) its attention to the text,
    ``g_i = sigmoid(s_i - lse_i)`` and the output is ``g_i v_i + (1 - g_i) O_i``: diffusers' SD3
    variant of PAG (0.42.1, PAGJointAttnProcessor2_0), which builds an N x N mask for it.

    Args:
        query: "B H N D".
        key: "B H K D"; the rows are the last of the columns.
        value: "B H K D".
        scale: Factor of the logits.
        image: Place of the image tokens among the N rows; the others are text.
        kernel: The call's kernel.
        mask: The call's mask, as the kernel has it.
    """
    first, rows = key.shape[2] - query.shape[2], query.shape[2]
    start, stop, _ = image.indices(rows)
    columns = slice(first + start, first + stop)
    text = [slice(0, columns.start), slice(columns.stop, key.shape[2])]
    text_key = torch.cat([key[:, :, part] for part in text], 2)
    text_value = torch.cat([value[:, :, part] for part in text], 2)
    queries = query[:, :, start:stop].float()
    # Text is short: this is N x text, as in cross-attention, never N x N.
    logits = queries @ text_key.float().transpose(-1, -2) * scale
    own = (queries * key[:, :, columns].float()).sum(-1) * scale
    if mask is not None:
        bias = mask_as_numbers(mask)
        bias = bias if bias.shape[-2] == 1 else bias[..., start:stop, :]
        logits = logits + torch.cat([bias[..., part] for part in text], -1)
        seen = bias[..., columns]
        own = own + (seen[..., 0, :] if seen.shape[-2] == 1 else seen.diagonal(dim1=-2, dim2=-1))
    gate = torch.sigmoid(own - logits.logsumexp(-1))[..., None]
    mixed = logits.softmax(-1) @ text_value.float()
    image_out = gate * value[:, :, columns].float() + (1 - gate) * mixed
    out = []
    for part in (slice(0, start), slice(stop, rows)):
        if part.start < part.stop:
            named = {} if mask is None or mask.shape[-2] == 1 else {"attn_mask": mask[..., part, :]}
            out.append(kernel(query[:, :, part], key, value, **named))
    out.insert(1 if start > 0 else 0, image_out.to(query.dtype))
    return torch.cat(out, 2)


def mask_as_numbers(mask: Tensor) -> Tensor:
    """A kernel's mask as numbers to add to logits, "B 1 N K" or "B 1 1 K" or the like."""
    mask = mask if mask.ndim == 4 else mask[:, None]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device, dtype=torch.float32).masked_fill(
            ~mask, -torch.inf
        )
    return mask.float()
