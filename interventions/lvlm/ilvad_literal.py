"""ILVAD as its formula reads, on explicit maps; what its fast form is held against."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from regaze.hooks.literal import Map, MapForm, Probe, reweighed
from regaze.interventions.lvlm.ilvad_maps import ALIKE

if TYPE_CHECKING:
    from regaze.interventions.lvlm.ilvad import ILVAD

EVERY = range(sys.maxsize)  # All layers.
_TINY = 1e-30


def literal(spec: ILVAD, seen: Probe) -> MapForm:
    """The formula of `ilvad`, row by row and head by head."""
    image = torch.tensor(seen.image, device="cpu")
    layers = sorted(seen.weights)
    m = {}
    for layer in layers:
        rows = []
        for number, step in enumerate(seen.ahead):
            a = step[layer][0, :, 0].cpu()
            a = pad(a, (len(image) + number + 1 - a.shape[-1], 0))[:, : len(image)][:, image]
            rows.append(a[_best(a.sum(-1))].mean(0))
        m[layer] = (
            torch.stack(rows).mean(0)
            if rows
            else torch.zeros(int(image.sum()), dtype=torch.float32, device="cpu")
        )
    views = [m[layer] > spec.tau * m[layer].mean() for layer in layers]
    came = sum(
        ((now & ~before).float() for before, now in zip(views, views[1:], strict=False)),
        torch.zeros(int(image.sum()), dtype=torch.float32, device="cpu"),
    )
    mean = torch.stack([m[layer] for layer in layers]).mean(0)
    s = came * (mean > mean.mean())
    if not seen.ahead or s.max() == s.min():
        return MapForm(())
    s = s.clamp(s.mean() - 3 * s.std(), s.mean() + 3 * s.std())
    log_m = torch.zeros(len(image), dtype=torch.float32, device="cpu")
    log_m[image] = spec.alpha * (s - s.min()) / (s.max() - s.min())

    def heads_of(a: Tensor) -> tuple[list[int], float]:
        """The heads of one row "H K" that look at M, and what they add to its ground."""
        gain = (a[:, : len(log_m)] * log_m).sum(-1)
        chosen = _best(gain / (a[:, : len(image)][:, image].sum(-1) + 1e-8))
        return chosen, float(gain[chosen].mean())

    first = seen.image.index(True)
    asked = [
        at
        for at, here in enumerate(seen.image)
        if at > first and not here and not seen.structure[at]
    ]
    parts = {
        layer: {at: heads_of(_whole(seen.weights[layer], len(image), at))[1] for at in asked}
        for layer in layers
    }
    ground: dict[int, float] = {}
    total = 0.0

    def edit(z: Tensor, m: Map) -> Tensor:
        nonlocal ground, total
        columns = z.shape[-1]
        row = columns - 1
        if m.layer == layers[0]:  # A block begins.
            if columns == z.shape[-2]:
                known = asked if spec.sense == "code" else [at for at in asked if at != row]
                ground = dict.fromkeys(known, 0.0)
                if spec.sense == "own":
                    ground = {at: sum(parts[l][at] for l in layers) for at in known}  # noqa: E741
            else:
                ground[row if spec.sense == "code" else row - 1] = total
            total = 0.0
        if spec.sense == "code" and columns == z.shape[-2]:
            for at in ground:
                ground[at] += parts[m.layer][at] if at != row else 0.0
        a = z.masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)[0, :, -1].cpu()
        sees, more = heads_of(a)
        total += more
        if m.layer not in (spec.layers or ()):
            return z
        new = a.clone()
        for head in sees:
            new[head, : len(log_m)] *= log_m.exp()
        text = torch.ones(columns, dtype=torch.bool, device="cpu")
        text[: len(image)] = False
        text[asked] = True
        held = torch.tensor(list(ground.values()), dtype=torch.float32, device="cpu")
        low, high = held.aminmax() if len(held) else (held, held)
        if len(held) > 1 and high > low:
            held = held.clamp(held.mean() - 3 * held.std(), held.mean() + 3 * held.std())
            if spec.sense == "code":
                ground = dict(zip(ground, held.tolist(), strict=True))
            g = (held - low) / (high - low) + spec.beta
            for head in _best(a[:, text].sum(-1)):
                new[head, list(ground)] *= g.clamp(min=_TINY)
        old, new = (one[None, :, None].to(z.device) for one in (a, new))
        return torch.where(m.last, reweighed(z, old, new), z)

    return MapForm(EVERY, edit)


def _best(sums: Tensor) -> list[int]:
    """The half of the heads with the largest sums "H"."""
    marks = [round(float(one) / ALIKE) for one in sums]
    return sorted(range(len(marks)), key=lambda head: -marks[head])[: len(marks) // 2]


def _whole(weights: Tensor, columns: int, row: int) -> Tensor:
    """One row "H K" of a layer's map "1 H Q K'", over all columns."""
    return pad(weights[0, :, row].cpu(), (columns - weights.shape[-1], 0))
