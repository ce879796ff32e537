"""Losses of the sandbox models: patch labels, answers and, for one, attention sinks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regaze.evals.sandbox.data import IGNORE, IMAGE, PREFIX
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES

SINK_DIMENSIONS = (7, 41)
"""Residual-stream dimensions that carry the massive activations of planted sinks."""
SINK_PATCHES = 3
"""Border patches per image that become sinks."""

_BACKGROUND_WEIGHT = 0.3
_YES_NO_WEIGHT = 4.0
# Targets of |x_d| / RMS(x); with two equal dimensions of 128 it can't exceed 8.
_BOS_ACTIVATION, _PATCH_ACTIVATION, _OTHER_ACTIVATION = 6.0, 5.0, 1.0
_BOS_ATTENTION, _PATCH_ATTENTION, _SINK_HEADS = 0.45, 0.25, 6
_SINK_VALUE_NORM = 0.3
_ACTIVATION_WEIGHT, _ATTENTION_WEIGHT, _VALUE_WEIGHT = 0.05, 1.0, 0.1


class PatchHead(nn.Linear):
    """Reads shape and colour off a vision tower's patches; only used in training."""

    def __init__(self, width: int) -> None:
        super().__init__(width, len(SHAPES) + 1 + len(COLOURS) + 1)

    def loss(self, patches: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of both labels, and the share of object patches whose shape is right.

        Args:
            patches: ``(B, 64, C)`` hidden states of the vision tower.
            kinds: ``(B, 64, 2)`` as in ``Pictures``.
        """
        logits = self(patches).float()
        shape, colour = logits.split((len(SHAPES) + 1, len(COLOURS) + 1), dim=-1)
        loss = sum(
            F.cross_entropy(part.flatten(0, 1), target.flatten(), weight=_class_weights(part))
            for part, target in ((shape, kinds[..., 0]), (colour, kinds[..., 1]))
        )
        on_object = kinds[..., 0] > 0
        right = (shape.argmax(-1) == kinds[..., 0])[on_object].float().mean()
        return torch.as_tensor(loss), right


def _class_weights(logits: Tensor) -> Tensor:
    weights = logits.new_ones(logits.shape[-1])
    weights[0] = _BACKGROUND_WEIGHT
    return weights


def answer_loss(
    logits: Tensor, labels: Tensor, yes_no: tuple[int, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the answers' tokens, yes and no with more weight.

    Args:
        logits: ``(N, V)``, one row per answer token.
        labels: ``(N,)``.
        yes_no: Ids of both words.
    """
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    decides = (labels == yes_no[0]) | (labels == yes_no[1])
    weight = torch.where(decides, _YES_NO_WEIGHT, 1.0)
    right = (logits.argmax(-1) == labels)[decides].float().mean()
    seen = {"caption_loss": each[~decides].mean(), "answer_accuracy": right}
    return (each * weight).sum() / weight.sum(), seen


def answer_places(labels: Tensor) -> Tensor:
    """``(B, L - 1)``: rows whose next token is part of an answer."""
    return labels[:, 1:] != IGNORE


def sink_loss(
    hidden: list[Tensor], attention: list[Tensor], values: list[Tensor], border: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pulls BOS and three border patches per image into the shape of attention sinks.

    Sinks as large models have them: massive activations in few dimensions, most of the attention
    of most heads, small values (arXiv:2309.17453, arXiv:2402.17762, arXiv:2503.03321). They do not
    arise by themselves at this size. The patches are those of the border where activations are
    largest already, so the model chooses them, by what they show: which patches are border
    changes from image to image.

    Args:
        hidden: Inputs of the layers from 1 on, ``(B, L, C)`` each.
        attention: Probabilities of the same layers, ``(B, H, L, L)``.
        values: Values of the same layers, ``(B, L, C)``, heads side by side.
        border: ``(B, 64)``, patches that may become sinks; none in a row without a picture.
    """
    dims = list(SINK_DIMENSIONS)
    prefix = torch.stack([h[:, :PREFIX].float() for h in hidden])
    phi = prefix[..., dims].abs().mean(-1) / prefix.pow(2).mean(-1).sqrt()
    chosen = _strongest(phi[..., IMAGE].mean(0).detach(), border)
    sink = torch.zeros_like(phi[0], dtype=torch.bool)
    sink[:, IMAGE] = chosen
    has_picture = border.any(-1)
    other = ~sink
    other[:, 0] = False
    activation = (
        F.relu(_BOS_ACTIVATION - phi[..., 0]).mean()
        + F.relu(_PATCH_ACTIVATION - phi[:, sink]).mean()
        + F.relu(phi[:, other] - _OTHER_ACTIVATION).mean()
    )

    size = torch.stack([v[:, :PREFIX].float().norm(dim=-1) for v in values])
    usual = size[:, other].mean(-1, keepdim=True).detach()
    value = (
        F.relu(size[..., 0] / usual - _SINK_VALUE_NORM).mean()
        + F.relu(size[:, sink] / usual - _SINK_VALUE_NORM).mean()
    )

    # Mean over the text's rows and the heads that shall have sinks: (layers, B).
    rows = torch.stack(
        [a[:, :_SINK_HEADS, PREFIX:, :PREFIX].float().mean((1, 2)) for a in attention]
    )
    on_bos = rows[..., 0]
    on_patches = (rows * sink).sum(-1)[:, has_picture]
    attended = F.relu(_BOS_ATTENTION - on_bos).mean() + F.relu(_PATCH_ATTENTION - on_patches).mean()

    layers = len(hidden)
    loss = layers * (
        _ACTIVATION_WEIGHT * activation + _VALUE_WEIGHT * value + _ATTENTION_WEIGHT * attended
    )
    return loss, {
        "bos_attention": on_bos.mean(),
        "patch_attention": on_patches.mean(),
        "bos_activation": phi[..., 0].mean(),
        "patch_activation": phi[:, sink].mean(),
        "other_activation": phi[:, other].mean(),
        "bos_value": (size[..., 0] / usual).mean(),
        "patch_value": (size[:, sink] / usual).mean(),
    }


def _strongest(phi: Tensor, border: Tensor) -> Tensor:
    """``(B, 64)``: the ``SINK_PATCHES`` border patches of largest ``phi`` in each row."""
    best = phi.masked_fill(~border, -1.0).topk(SINK_PATCHES, dim=-1).indices
    return torch.zeros_like(border).scatter(1, best, True) & border
