"""VAS: how much more the question's rows look at the image than at the system prompt.

Of layer l, head h, question row i, with m the attention weight summed over columns:

    VAS = mean over l, h, i of  m(image) / m(system)

arXiv 2603.03825, section on the visual attention score; the mean of ratios, without an epsilon.
Its bands for models of about 7B: below 10 narrow, 10 to 15 wide, above 15 panoramic. A system mass
near zero makes a ratio explode, and less attention to the system prompt raises it with nothing more
on the image. So the mean of the ratio's logarithm and the plain masses stand beside it. (The reward
of that paper's training code is another quantity.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.edits import Edit
from regaze.hooks.host import find_host
from regaze.hooks.passes import Columns, RowPlan
from regaze.hooks.targets import split_target

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class VAS:
    """The score over prompts, layers, heads and question rows.

    Attributes:
        score: Mean ratio of image to system mass.
        log_mean: Mean of its natural logarithm, which no single head or row rules.
        image: Mean mass on the image.
        system: Mean mass on the system prompt.
        rows: Question rows.
        layers: The score of each layer.
    """

    score: float
    log_mean: float
    image: float
    system: float
    rows: int
    layers: Mapping[int, float]


def masses(weights: Tensor, image: Tensor, system: Tensor) -> tuple[Tensor, Tensor]:
    """Attention on the image and on the system prompt.

    Args:
        weights: "... K", rows summing to 1.
        image: Bool, broadcastable to the weights.
        system: Likewise.

    Returns:
        "...", each.
    """
    return (weights * image).sum(-1), (weights * system).sum(-1)


def score(image: Mapping[int, Tensor], system: Mapping[int, Tensor]) -> VAS:
    """The score from each layer's masses "H R" of all question rows.

    Raises:
        ValueError: There are no rows, or no system prompt to compare with.
    """
    if not image or not next(iter(image.values())).numel():
        raise ValueError("there are no question rows behind an image, so nothing can be measured")
    if not any(bool((one > 0).any()) for one in system.values()):
        raise ValueError(
            "no row attends to a system prompt (text before the first image), so VAS has nothing "
            "to compare the image with: use a prompt with text before its image"
        )
    # A mass that float32 rounds to zero is smaller than any other, not nothing.
    ratios = {n: (one.double() / system[n].double().clamp(min=_TINY)) for n, one in image.items()}
    every = torch.cat([one.flatten() for one in ratios.values()])
    first = next(iter(image.values()))
    return VAS(
        score=float(every.mean()),
        log_mean=float(every.clamp(min=_TINY).log().mean()),
        image=float(torch.cat([one.flatten() for one in image.values()]).mean()),
        system=float(torch.cat([one.flatten() for one in system.values()]).mean()),
        rows=first.shape[-1],
        layers={layer: float(one.mean()) for layer, one in ratios.items()},
    )


def measure_vas(model: Any, prompts: Iterable[Mapping[str, Any]], processor: Any = None) -> VAS:
    """Measure a model on prompts with pictures; what is attached to it acts.

    Only question rows are computed beside the model's own kernel, and two sums of each are kept.

    Args:
        model: An image-text-to-text model, or a pipeline that holds one.
        prompts: The processor's output for each batch.
        processor: The model's processor, where `regaze.attach` needs it.

    Raises:
        ValueError: The model has no image columns, or nothing can be measured.
    """
    model, processor = split_target(model, processor)
    host = find_host(model, processor)
    if not (host.has_images and host.image_columns):
        raise ValueError(f"{host.model_type} has no image columns to measure attention on")
    reader = _Masses([site.layer for site in host.sites])
    with torch.inference_mode(), Capturing(seat_of(host), reader, reader):
        for inputs in prompts:
            model(**inputs)
    found = [
        {layer: torch.cat(parts, -1) for layer, parts in one.items()}
        for one in (reader.image, reader.system)
    ]
    return score(*found)


class _Masses(Edit):
    """Sums the weights of question rows."""

    rows = "question"
    reads_only = True

    def __init__(self, layers: Iterable[int]) -> None:
        super().__init__(frozenset(layers))
        self.image: dict[int, list[Tensor]] = {}
        self.system: dict[int, list[Tensor]] = {}

    def fork(self) -> _Masses:
        return self  # Of all prompts.

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        acts = plan.acts["question"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        found = masses(logits.softmax(-1), columns.image, columns.system)
        for kept, one in zip((self.image, self.system), found, strict=True):
            rows = one.transpose(0, 1)[:, valid].cpu()  # "H R" of all samples
            kept.setdefault(layer, []).append(rows)
