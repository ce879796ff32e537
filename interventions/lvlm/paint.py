"""PAINT: look at the patches that the vision tower itself found important.

The class token's attention in the picture's own encoder, summed over heads, gives two sets:

    summary tokens U: in the last layer but one, patches above Q3 + 1.5 IQR
    local tokens   W: in the first layer, the highest quarter, less U

and at the row that predicts, on scaled logits z of every head:

    z_j <- z_j + alpha |z_j| on W,  z_j + beta |z_j| on U

"Fixing imbalanced attention", arXiv 2501.12206; hasanar1f/PAINT@2a9e8f8. The paper modulates heads
by their visual sensitivity, the code gives every head the same. ``modulation="heads"``
is our reading of the paper: alpha and beta times the head's attention to the image over the mean of
all heads. The paper's "spatial" tokens are left out: the code ranks patches by row sums of a
softmax, which are all 1. The code's count of U goes through ``int(N * (n / N))``, which loses one
at some numbers of patches; here all n count.

Towers without a class token have no such row. There the mean attention that a patch receives from
all of them takes its place (``scores="received"``), a substitute of ours. Where several patches are
merged into one column of the text tower, their scores are averaged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.handover import Handover
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm, Probe, ProbeForm
from regaze.hooks.passes import Columns, GrowingMask, Pass, Picture, RowPlan, Rows
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches

_CODE = {"alpha": 0.7, "beta": 0.3, "local": 0.25, "scores": "class"}


@register
@dataclass(frozen=True)
class PAINT(Intervention):
    """Raise the logits of the patches that the vision tower attends to.

    Attributes:
        alpha: Share added on local tokens; 0.7 in the code. Results hang on it: at 0.8 the paper's
            captions lose their objects, at 0.9 they break.
        beta: Share added on summary tokens; 0.3 in the code, 0.4 in the paper's best rows.
        local: Share of the patches that are local tokens.
        layers: Layers to edit; by default all but the first two, as in the code (2 to 31 of 32).
        scores: Ranking of patches: by the "class" token's row or by attention "received", see
            above; by default the first where there is a class token.
        modulation: "none" as in the code, or "heads", see above.
    """

    name: ClassVar[str] = "paint"
    summary: ClassVar[str] = "boost patches that the vision tower finds important"
    paper: ClassVar[str] = "arXiv 2501.12206"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {**_CODE, "beta": 0.4},
            "arXiv 2501.12206, the best row of its CHAIR table; layers as in the code",
        ),
        "llava-1.5-7b-code": Preset(_CODE, "hasanar1f/PAINT@2a9e8f8, defaults"),
    }

    alpha: float = 0.7
    beta: float = 0.3
    local: float = 0.25
    layers: tuple[int, ...] | None = None
    scores: Literal["class", "received"] | None = None
    modulation: Literal["none", "heads"] = "none"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("paint", "alpha", self.alpha, low=-1, high=100)
        check_number("paint", "beta", self.beta, low=-1, high=100)
        check_number("paint", "local", self.local, low=0, high=1)
        check_choice("paint", "modulation", self.modulation, ("none", "heads"))
        if self.scores is not None:
            check_choice("paint", "scores", self.scores, ("class", "received"))

    def controls(self) -> Mapping[str, Intervention]:
        """Looking away from the same patches, as far as the shares allow."""
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1) or self.alpha == self.beta == 0:
            return {}
        return {"flipped sign": replace(self, alpha=-self.alpha, beta=-self.beta)}

    def idle(self) -> PAINT:
        """The same with nothing added."""
        return replace(self, alpha=0.0, beta=0.0)

    def resolve(self, host: Host) -> PAINT:
        """Choose the layers, and what ranks patches.

        Raises:
            ValueError: The vision tower isn't known, has no class token to rank by, or its patches
                can't be told from the text tower's columns.
        """
        require_patches("PAINT", host)
        if host.family.grid == "anyres":
            raise ValueError(
                f"PAINT ranks the vision tower's patches, and {host.model_type} cuts and pads "
                "them on their way to the text tower, so that its columns can't be told from them"
            )
        vision = host.eye.vision
        scores = self.scores or ("class" if vision.class_token else "received")
        if scores == "class" and not vision.class_token:
            raise ValueError(
                f"paint: the vision tower of this {host.model_type} has no class token to rank "
                'patches by; take scores="received"'
            )
        n = len(host.sites)
        layers = choose_layers("paint", host, self.layers, range(min(2, n - 1), n))
        return replace(self, layers=layers, scores=scores)

    def bind(self, host: Host) -> tuple[Edit, ...]:
        """Make the vision tower's reader and the edit; no layers if nothing is added."""
        found: Handover[_Seen] = Handover()
        acts = bool(self.layers) and (self.alpha != 0 or self.beta != 0)
        eyes = (0, max(host.eye.n_layers - 2, 0)) if acts else ()
        return _Read(self, eyes, found), _Boost(self, found, acts)

    def literal(self) -> ProbeForm:
        """The formula above, patch by patch, from whole rows of the vision tower."""
        rows: Literal["class", "all"] = "class" if self.scores == "class" else "all"
        return ProbeForm(self._literal, looks_at=rows)

    def _literal(self, seen: Probe) -> MapForm:
        strength: list[float] = []
        patches = sum(one.grid.numel() for one in seen.pictures)
        side = round((patches / max(1, sum(seen.image))) ** 0.5)
        for number, picture in enumerate(seen.pictures):
            maps = []
            for layer in (0, max(seen.eyes - 2, 0)):
                row = seen.seen_by(layer, number).sum(0).mean(0)[picture.grid]
                height, width = row.shape[0] // side, row.shape[1] // side
                blocks = row.view(height, side, width, side).mean((1, 3))
                maps.append(blocks.flatten().tolist())
            first, last = maps
            q1, q3 = (
                torch.tensor(last, dtype=torch.float32, device="cpu")
                .quantile(torch.tensor([0.25, 0.75], dtype=torch.float32, device="cpu"))
                .tolist()
            )
            summary = {j for j, x in enumerate(last) if x > q3 + 1.5 * (q3 - q1)}
            order = sorted(range(len(first)), key=lambda j: -first[j])
            local = set(order[: int(self.local * len(first))]) - summary
            strength += [
                self.beta if j in summary else self.alpha if j in local else 0.0
                for j in range(len(first))
            ]
        share = torch.zeros(len(seen.image), dtype=torch.float32, device="cpu")
        share[torch.tensor(seen.image, device="cpu")] = torch.tensor(
            strength, dtype=torch.float32, device="cpu"
        )

        def edit(z: Tensor, m: Map) -> Tensor:
            added = torch.zeros(z.shape[-1], dtype=torch.float32, device="cpu")
            added[: len(share)] = share
            if self.modulation == "heads":
                a = z.masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)
                mass = (a * m.image).sum(-1, keepdim=True)
                added = added * mass / mass.mean(1, keepdim=True).clamp(min=1e-30)
            return torch.where(m.last & m.image, z + added * z.abs(), z)

        return MapForm(self.layers or (), edit)


# -- tensors ------------------------------------------------------------------------------------


def choose_patches(first: Tensor, last: Tensor, local: float) -> tuple[Tensor, Tensor]:
    """Local and summary tokens, two bool masks "N".

    Args:
        first: Scores "N" of the patches in the first layer.
        last: Scores "N" in the last layer but one.
        local: Share of the patches that are local tokens, before summary tokens are taken out.
    """
    low, high = last.float().quantile(last.new_tensor([0.25, 0.75], dtype=torch.float32))
    summary = last > high + 1.5 * (high - low)
    top = first.topk(int(local * len(first))).indices
    return torch.zeros_like(summary).scatter(0, top, True) & ~summary, summary


def add_shares(logits: Tensor, shares: Tensor) -> Tensor:
    """``z + share |z|``: logits "... K", shares broadcastable to them."""
    return logits + shares * logits.abs()


def merge(scores: Tensor, picture: Picture, side: int) -> Tensor:
    """Scores of a picture's columns, averaged over blocks of patches, in reading order.

    Args:
        scores: "N" of the vision tower's columns.
        picture: The picture.
        side: Patches along each side of a block.
    """
    grid = scores[picture.grid.to(scores.device)]
    return avg_pool2d(grid[None, None], side).flatten()


# -- works --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """Readings of one run of the vision tower: scores "N" by layer and picture."""

    pictures: tuple[Picture, ...]
    scores: dict[tuple[int, int], Tensor]


class _Read(Edit):
    """Reads what patches are worth to the vision tower."""

    tower = "vision"
    reads_only = True

    def __init__(self, spec: PAINT, layers: Sequence[int], found: Handover[_Seen]) -> None:
        super().__init__(layers)
        self.rows: Rows = "class" if spec.scores == "class" else "all"
        self.found = found
        self.seen = _Seen((), {})

    def begin(self, pass_: Pass) -> None:
        self.seen = _Seen(pass_.pictures, {})
        if self.layers:
            self.found.put(self.seen)

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        # Others may look at more rows, or at others.
        acts = plan.acts[self.rows]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        weights = (logits.softmax(-1).float() * valid[:, None, :, None]).sum((1, 2))  # "B K"
        for row, number in enumerate(columns.pictures):
            picture, end = self.seen.pictures[number], columns.offset + weights.shape[-1]
            scores = self.seen.scores.setdefault((layer, number), weights.new_zeros(picture.length))
            scores[columns.offset : min(end, picture.length)] += weights[
                row, : picture.length - columns.offset
            ]


class _Boost(Edit):
    """Raises the logits of what was read."""

    rows = "last"

    def __init__(self, spec: PAINT, found: Handover[_Seen], acts: bool) -> None:
        super().__init__(spec.layers or () if acts else ())
        self.spec, self.found = spec, found
        self.read: list[tuple[int, _Seen]] = []
        """By the column from which on the pictures stand that were read together."""
        self.goes_on = False
        self.shares: GrowingMask | None = None

    def begin(self, pass_: Pass) -> None:
        if pass_.prompt_start:
            self.read, self.shares = [], None
        if not self.layers or pass_.decodes:
            return
        image = pass_.tokens.is_kind(Kind.IMAGE)
        self.read = [(start, seen) for start, seen in self.read if start < pass_.past]
        # `generate` reads all pictures with the first part of a prompt.
        known = bool(self.read) and self.goes_on and not self.found.waits()
        if bool(image[:, pass_.past :].any()) and not known:
            self.read.append((pass_.past, self.found.take()))
        self.goes_on = not pass_.prompt_end
        if self.read and pass_.prompt_end:
            self.shares = GrowingMask(self._place(image)[:, None, None].to(pass_.device))

    def select(self, rows: Tensor) -> _Boost:
        twin = copy.copy(self)
        twin.shares = None if self.shares is None else self.shares.select(rows)
        return twin

    def _place(self, image: Tensor) -> Tensor:
        """The share of each column, "B K"."""
        ends = [start for start, _ in self.read[1:]] + [image.shape[1]]
        parts = [
            self._place_in(image[:, start:end], seen)
            for (start, seen), end in zip(self.read, ends, strict=True)
        ]
        return torch.cat(
            [torch.zeros(len(image), self.read[0][0], dtype=torch.float32, device="cpu"), *parts], 1
        )

    def _place_in(self, image: Tensor, seen: _Seen) -> Tensor:
        """The share of each of the columns whose pictures were read together.

        Raises:
            ValueError: Patches can't be told from columns.
        """
        if not bool(image.any()):  # They were cut off since.
            return torch.zeros(image.shape, dtype=torch.float32, device="cpu")
        patches = sum(picture.grid.numel() for picture in seen.pictures)
        columns = int(image.sum())
        for times in range(1, len(image) + 1):  # Beams, and prompts with one beginning.
            side = math.isqrt(patches * times // max(1, columns))
            if len(image) % times == 0 and side and side**2 * columns == patches * times:
                break
        else:
            raise ValueError(
                f"PAINT can't tell the vision tower's {patches} patches from the {columns} image "
                "columns that they become on this model"
            )
        shares = torch.zeros(image.shape, dtype=torch.float32, device="cpu")
        found = torch.cat([self._of(seen, n, side) for n in range(len(seen.pictures))])
        of_one = shares[::times]
        of_one[image[::times]] = found.cpu()
        return of_one.repeat_interleave(times, 0)

    def _of(self, seen: _Seen, number: int, side: int) -> Tensor:
        """The share of each column of a picture."""
        layers = sorted({layer for layer, _ in seen.scores})
        first, last = (
            merge(seen.scores[layer, number], seen.pictures[number], side)
            for layer in (layers[0], layers[-1])
        )
        local, summary = choose_patches(first, last, self.spec.local)
        return self.spec.alpha * local.float() + self.spec.beta * summary.float()

    def active(self, layer: int, pass_: Pass) -> bool:
        return self.shares is not None

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        if self.shares is None:
            return logits
        shares = columns.of(self.shares).to(logits.device)
        if self.spec.modulation == "heads":
            mass = (logits.softmax(-1) * columns.image).sum(-1, keepdim=True)
            shares = shares * mass / mass.mean(1, keepdim=True).clamp(min=1e-30)
        return torch.where(columns.image, add_shares(logits, shares), logits)
