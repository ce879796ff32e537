"""ILVAD: look again at patches that came into view from layer to layer in a first, short answer.

The plain model says up to T tokens. From its attention a at each of them but the first, with V the
image's columns and "best half" the half of a layer's heads that the sum named there is largest in:

    m_l = mean over tokens of the mean over heads (best half: sum over V of a) of a
    b_l = m_l > tau mean(m_l)
    s   = number of layers at which b goes from 0 to 1, where the mean of m over layers exceeds its
          mean over V, else 0; clamped to mean +- 3 std, then scaled to [0, 1]
    M   = exp(alpha s)

Then the answer begins anew. At each row that predicts, with T the text after the image:

    ground = sum over all layers of the mean over heads (best half: sum over V of a log M, divided
             by sum over V of a) of the sum over V of a log M
    a_j <- a_j M_j on V, in those heads                           } in the layers to edit, where
    a_j <- a_j g_j on T, in heads (best half: sum over T of a)    } rows are divided by their sums

with g_j = (G_j - min G) / (max G - min G) + beta, of the ground G_j of T's rows, clamped to mean
+- 3 std. arXiv 2605.20965; ytx-ML/ILVAD@2109091. There the prompt is read twice, with all maps
kept; here its last row alone is run again (`regaze.hooks.again`).

In the code, the ground of the prompt's last row and of generated tokens is used one column too
late, the prompt's last row has none in its own place, layers that edit while the prompt is read see
sums up to themselves, and clamped sums go on from each of them. ``sense="code"`` does that;
by default each token has its own ground, as soon as its row is done: a row's own column isn't
scaled. Answers of one token, and such as show no patch coming into view, give NaN there; here the
prompt is then left as it is. The code's batch of one is any batch here, and beams have a ground
each.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.handover import Handover
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm, Probe, ProbeForm
from regaze.hooks.passes import Columns, GrowingMask, Pass, RowPlan
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers, require_again, require_patches
from regaze.interventions.lvlm.gift_gaze import normalise

_SOURCE = "ytx-ML/ILVAD@2109091, scripts for LLaVA-1.5-7B"
_TINY = 1e-30
_ALIKE = 1e-4  # Heads whose sums differ by less count as alike.
_EVERY = range(sys.maxsize)  # All layers.


@register
@dataclass(frozen=True)
class ILVAD(Intervention):
    """Raise attention to patches that a first answer came to see, and to text grounded in them.

    Attributes:
        alpha: Strength; weights are multiplied by up to exp(alpha). 0 is a no-op.
        beta: What the factor of text is besides its ground: 1 for POPE, 0.3 for CHAIR, 0.2 for
            LLaVA-Bench.
        layers: Layers to edit; by default 0 to 30 of 32 (POPE), at the same depth in other models.
            The ground is read in all layers.
        tokens: T, how long the first answer may be.
        tau: How many times a layer's mean a patch must have to be in view.
        sense: "own" or "code", see above.
        patches: Where M stands: as "found", or as a control "shuffled" over the image.
    """

    name: ClassVar[str] = "ilvad"
    summary: ClassVar[str] = "boost patches that came into view in a first, short answer"
    paper: ClassVar[str] = "arXiv 2605.20965"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b-pope": Preset(
            {"alpha": 5.0, "beta": 1.0, "layers": range(31)}, f"{_SOURCE}, POPE"
        ),
        "llava-1.5-7b-chair": Preset(
            {"alpha": 5.0, "beta": 0.3, "layers": range(5, 26)}, f"{_SOURCE}, CHAIR"
        ),
        "llava-1.5-7b-llava-bench": Preset(
            {"alpha": 4.0, "beta": 0.2, "layers": range(5, 26)}, f"{_SOURCE}, LLaVA-Bench"
        ),
    }

    alpha: float = 5.0
    beta: float = 1.0
    layers: tuple[int, ...] | None = None
    tokens: int = 10
    tau: float = 5.0
    sense: Literal["own", "code"] = "own"
    patches: Literal["found", "shuffled"] = "found"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("ilvad", "alpha", self.alpha, low=0, high=50)
        check_number("ilvad", "beta", self.beta, low=0, high=100)
        check_number("ilvad", "tau", self.tau, low=0, high=1e6)
        if type(self.tokens) is not int or not 2 <= self.tokens <= 1000:
            raise ValueError(
                "ilvad: tokens must be a whole number from 2 to 1000 (the first one shows nothing "
                f"yet), got {self.tokens!r}"
            )
        check_choice("ilvad", "sense", self.sense, ("own", "code"))
        check_choice("ilvad", "patches", self.patches, ("found", "shuffled"))

    def controls(self) -> Mapping[str, Intervention]:
        """The same factors, on patches drawn at random."""
        if self.patches != "found":
            return {}
        return {"shuffled patches": replace(self, patches="shuffled")}

    def idle(self) -> ILVAD:
        """Nothing is raised."""
        return replace(self, alpha=0.0)

    def resolve(self, host: Host) -> ILVAD:
        """Choose the layers.

        Raises:
            ValueError: A layer doesn't exist, or the last row of this model's prompts can't be run
                again alone.
        """
        require_patches("ILVAD", host)
        require_again("ILVAD", host)
        default = range(max(1, at_depth(31, len(host.sites))))
        return replace(self, layers=choose_layers("ilvad", host, self.layers, default))

    def bind(self, host: Host) -> tuple[Edit, ...]:
        """Make the reader of the prompt and the edit; no layers if nothing is raised."""
        every = [site.layer for site in host.sites] if self.alpha and self.layers else []
        found: Handover[list[_Rows]] = Handover()
        return _Read(every, found), _Ground(self, every, found)

    def literal(self) -> ProbeForm | None:
        """The formula above, row by row and head by head; None for the control."""
        if self.patches != "found":
            return None
        return ProbeForm(self._literal, _EVERY, looks_ahead=self.tokens)

    def _literal(self, seen: Probe) -> MapForm:
        image = torch.tensor(seen.image)
        layers = sorted(seen.weights)
        m = {}
        for layer in layers:
            rows = []
            for number, step in enumerate(seen.ahead):
                a = step[layer][0, :, 0].cpu()
                a = pad(a, (len(image) + number + 1 - a.shape[-1], 0))[:, : len(image)][:, image]
                rows.append(a[_best(a.sum(-1))].mean(0))
            m[layer] = torch.stack(rows).mean(0) if rows else torch.zeros(int(image.sum()))
        views = [m[layer] > self.tau * m[layer].mean() for layer in layers]
        came = sum(
            ((now & ~before).float() for before, now in zip(views, views[1:], strict=False)),
            torch.zeros(int(image.sum())),
        )
        mean = torch.stack([m[layer] for layer in layers]).mean(0)
        s = came * (mean > mean.mean())
        if not seen.ahead or s.max() == s.min():
            return MapForm(())
        s = s.clamp(s.mean() - 3 * s.std(), s.mean() + 3 * s.std())
        log_m = torch.zeros(len(image))
        log_m[image] = self.alpha * (s - s.min()) / (s.max() - s.min())

        def heads_of(a: Tensor) -> tuple[list[int], float]:
            """Which heads of one row "H K" look at M, and what that makes of its ground."""
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
                    known = asked if self.sense == "code" else [at for at in asked if at != row]
                    ground = dict.fromkeys(known, 0.0)
                    if self.sense == "own":
                        ground = {at: sum(parts[l][at] for l in layers) for at in known}  # noqa: E741
                else:
                    ground[row if self.sense == "code" else row - 1] = total
                total = 0.0
            if self.sense == "code" and columns == z.shape[-2]:
                for at in ground:
                    ground[at] += parts[m.layer][at] if at != row else 0.0
            a = z.masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)[0, :, -1].cpu()
            sees, more = heads_of(a)
            total += more
            if m.layer not in (self.layers or ()):
                return z
            new = a.clone()
            for head in sees:
                new[head, : len(log_m)] *= log_m.exp()
            text = torch.ones(columns, dtype=torch.bool)
            text[: len(image)] = False
            text[asked] = True
            held = torch.tensor(list(ground.values()))
            low, high = held.aminmax() if len(held) else (held, held)
            if len(held) > 1 and high > low:
                held = held.clamp(held.mean() - 3 * held.std(), held.mean() + 3 * held.std())
                if self.sense == "code":
                    ground = dict(zip(ground, held.tolist(), strict=True))
                g = (held - low) / (high - low) + self.beta
                for head in _best(a[:, text].sum(-1)):
                    new[head, list(ground)] *= g.clamp(min=_TINY)
            new = (new / new.sum(-1, keepdim=True)).to(z.device)
            return torch.where(m.last, new[None, :, None].log(), z)

        return MapForm(_EVERY, edit)


def _best(sums: Tensor) -> list[int]:
    """The half of the heads with the largest sums "H"."""
    marks = [round(float(one) / _ALIKE) for one in sums]
    return sorted(range(len(marks)), key=lambda head: -marks[head])[: len(marks) // 2]


def _whole(weights: Tensor, columns: int, row: int) -> Tensor:
    """One row "H K" of a layer's map "1 H Q K'", over all columns."""
    return pad(weights[0, :, row].cpu(), (columns - weights.shape[-1], 0))


# -- tensors ------------------------------------------------------------------------------------


def best_half(sums: Tensor) -> Tensor:
    """Which heads are in the half with the largest sums: "B H R" of 0 and 1.

    Among heads alike (in a window that shows nothing but text, all of them) the first ones are.
    """
    order = (sums / _ALIKE).round().argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(sums).scatter(1, order[:, : sums.shape[1] // 2], 1.0)


def seen_patches(weights: Tensor) -> Tensor:
    """What the half of the heads that look at the image most see of it: "B H R J" to "B R J"."""
    heads = best_half(weights.sum(-1))
    return (weights * heads[..., None]).sum(1) / (weights.shape[1] // 2)


def came_into_view(means: Tensor, tau: float) -> Tensor:
    """S of each patch.

    Args:
        means: m of each layer, "L J".
        tau: See `ILVAD`.

    Returns:
        "J", in [0, 1]; zeros if no patch came into view more often than another.
    """
    view = means > tau * means.mean(-1, keepdim=True)
    came = (view[1:] & ~view[:-1]).sum(0).float()
    mean = means.mean(0)
    return normalise(came * (mean > mean.mean()))


def look(weights: Tensor, log_m: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Which heads look at M, "B H R" of 0 and 1, and what a layer adds to the ground, "B R".

    Args:
        weights: "B H R K".
        log_m: log M on the image, 0 elsewhere; broadcastable.
        image: Bool, likewise.
    """
    gain = (weights * log_m).sum(-1)
    heads = best_half(gain / ((weights * image).sum(-1) + 1e-8))
    return heads, (gain * heads).sum(1) / (weights.shape[1] // 2)


def text_factors(ground: Tensor, known: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The factor g of each text column, 1 where there is none, and the clamped ground: "B K" each.

    Args:
        ground: "B K".
        known: Bool "B K": the columns that have one.
        beta: See `ILVAD`.
    """
    count = known.sum(-1, keepdim=True)
    low = ground.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
    high = ground.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
    mean = (ground * known).sum(-1, keepdim=True) / count.clamp(min=1)
    spread = ((ground - mean) * known).square().sum(-1, keepdim=True)
    std = (spread / (count - 1).clamp(min=1)).sqrt()
    held = torch.maximum(torch.minimum(ground, mean + 3 * std), mean - 3 * std)
    acts = known & (high > low)
    factors = torch.where(acts, (held - low) / (high - low) + beta, 1.0)
    return factors, torch.where(acts, held, ground)


# -- works --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What rows of the question see of the image at one layer.

    Attributes:
        layer: The layer.
        at: "B R", their columns; -1 where there is none.
        columns: "J", columns that are the image's in some sample.
        weights: "B H R J", 0 where they aren't in this one.
    """

    layer: int
    at: Tensor
    columns: Tensor
    weights: Tensor


@dataclass
class _Ahead:
    """What the first answer sees, step by step; shared by all copies of the work in a pass.

    Attributes:
        speaking: Bool "B" of each step: which answers go on.
        maps: Of each step and layer, "B K", 0 off the image.
    """

    speaking: list[Tensor] = field(default_factory=list)
    maps: list[dict[int, Tensor]] = field(default_factory=list)


class _Read(Edit):
    """Reads what the question sees of the image."""

    rows = "question"
    reads_only = True

    def __init__(self, layers: Sequence[int], found: Handover[list[_Rows]]) -> None:
        super().__init__(layers)
        self.found = found
        self.seen: list[_Rows] = []
        self.past = 0

    def begin(self, pass_: Pass) -> None:
        self.past = pass_.past
        if pass_.prompt_start or pass_.decodes:
            self.seen = []
        if self.layers and not pass_.decodes and bool(pass_.tokens.has_image.any()):
            _refuse(pass_)
            # What was rolled back is forgotten.
            old = (replace(s, at=s.at.masked_fill(s.at >= pass_.past, -1)) for s in self.seen)
            self.seen = list(old)
            self.found.put(self.seen)

    def select(self, rows: Tensor) -> _Read:
        twin = copy.copy(self)
        twin.seen = [
            replace(s, at=s.at[rows], weights=s.weights[rows.to(s.weights.device)])
            for s in self.seen
        ]
        return twin

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        acts = plan.acts["question"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        at = torch.where(valid, plan.rows + self.past, -1)
        patches = columns.image.any(0).flatten().nonzero()[:, 0]
        weights = (logits.softmax(-1) * columns.image)[..., patches]
        self.seen.append(_Rows(layer, at, patches + columns.offset, weights))


def _refuse(pass_: Pass) -> None:
    """Check that a block is (a part of) a prompt that ILVAD can read.

    Raises:
        NotImplementedError: It isn't.
    """
    if pass_.n_last > 1:
        raise NotImplementedError(
            "ILVAD weighs each token by what the rows before it were grounded in, so candidates of "
            "assisted decoding can't be checked in one pass: leave the assistant out"
        )
    if pass_.tokens.generated:
        raise NotImplementedError(
            "ILVAD begins each answer with a look at the whole prompt, and this one goes on behind "
            "an answer that is in its cache: begin anew with the whole conversation"
        )


class _Ground(Edit):
    """Looks ahead, then edits; see `ILVAD`."""

    rows = "last"

    def __init__(self, spec: ILVAD, every: Sequence[int], found: Handover[list[_Rows]]) -> None:
        super().__init__(every)
        self.spec, self.found = spec, found
        self.reads = self.layers - frozenset(spec.layers or ())
        self.looks_ahead = spec.tokens - 1
        self.ahead = _Ahead()
        self.looking = self.again = False
        self.log_m: GrowingMask | None = None
        self.rest = GrowingMask(torch.empty(0))
        self.ground, self.known = torch.empty(0), torch.empty(0)
        self.parts: dict[int, Tensor] = {}
        self.row: dict[int, Tensor] = {}
        self.at, self.end = torch.empty(0), 0
        self.factors: GrowingMask | None = None

    def begin(self, pass_: Pass) -> None:
        self.looking, self.factors = pass_.ahead is not None, None
        if pass_.ahead is not None:
            self.ahead.speaking.append(pass_.ahead)
            self.ahead.maps.append({})
            return
        self.again, self.parts = False, {}
        if not pass_.decodes:
            if self.layers and bool(pass_.tokens.has_image.any()):
                _refuse(pass_)
            self.log_m, self.row, self.ahead = None, {}, _Ahead()
            return
        if self.log_m is not None:
            self._take_row(pass_.past)
            self.at = torch.full_like(self.at, pass_.past)
            self.end = pass_.past + 1

    def _take_row(self, past: int) -> None:
        """The ground of the row before; what was rolled back is forgotten."""
        late = self.spec.sense == "code"
        size = past + late
        grow = (0, max(0, size - self.ground.shape[1]))
        self.ground = pad(self.ground, grow)[:, :size]
        self.known = pad(self.known, grow)[:, :size]
        if self.row and self.end <= past:
            at = torch.full_like(self.at, past) if late else self.at
            total = torch.stack([one.to(self.ground) for one in self.row.values()]).sum(0)
            self.ground = self.ground.scatter(1, at[:, None], total[:, None])
            self.known = self.known.scatter(1, at[:, None], True)
        self.row = {}

    def select(self, rows: Tensor) -> _Ground:
        twin = copy.copy(self)
        twin.factors = None
        if self.log_m is not None:
            twin.log_m, twin.rest = self.log_m.select(rows), self.rest.select(rows)
            twin.row = {layer: one[rows.to(one.device)] for layer, one in self.row.items()}
            here = rows.to(self.ground.device)
            twin.ground, twin.known, twin.at = self.ground[here], self.known[here], self.at[here]
        return twin

    def active(self, layer: int, pass_: Pass) -> bool:
        return pass_.ahead is not None or (
            self.log_m is not None and (pass_.again or pass_.decodes)
        )

    def look_back(self, scores: Tensor, pass_: Pass) -> Tensor | None:
        read, ahead = self.found.take(), self.ahead
        self.ahead, self.again = _Ahead(), True
        tokens, device = pass_.tokens, pass_.device
        image = tokens.is_kind(Kind.IMAGE)
        log_m = torch.zeros(tokens.batch, tokens.length)
        for row in range(tokens.batch):
            steps = [n for n, speaking in enumerate(ahead.speaking) if bool(speaking[row])]
            if not steps or not bool(image[row].any()):
                continue
            patches = image[row].nonzero()[:, 0]
            means = torch.stack(
                [
                    torch.stack([ahead.maps[n][layer][row].cpu()[patches] for n in steps]).mean(0)
                    for layer in sorted(self.layers)
                ]
            )
            s = came_into_view(means, self.spec.tau)
            if self.spec.patches == "shuffled":
                s = s[torch.randperm(len(s), generator=torch.Generator().manual_seed(0))]
            log_m[row, patches] = self.spec.alpha * s
        acts = log_m.any(-1)
        if not bool(acts.any()):
            return None
        log_m = log_m.to(device)
        self.log_m = GrowingMask(log_m[:, None, None])
        rest = tokens.is_kind(Kind.PAD, Kind.SYSTEM, Kind.IMAGE, Kind.SEPARATOR)
        self.rest = GrowingMask(rest[:, None, None].to(device))
        self.at, self.end = (pass_.last_rows + pass_.past).to(device), pass_.past + pass_.length
        self._read_prompt(read, log_m)
        return acts

    def _read_prompt(self, read: Sequence[_Rows], log_m: Tensor) -> None:
        """The ground of the question's rows but the last, which is run again."""
        self.ground, self.known = torch.zeros_like(log_m), log_m.new_zeros(log_m.shape).bool()
        for rows in read:
            patches = log_m.to(rows.weights.device)[:, rows.columns][:, None, None]
            _, more = look(rows.weights, patches, torch.ones_like(patches))
            at = rows.at.to(more.device)
            last = at == self.at.to(at.device)[:, None]
            ground = torch.zeros(at.shape[0], log_m.shape[1] + 1, device=at.device)
            known = ground.bool()
            index = torch.where(at < 0, log_m.shape[1], at)  # A column for rows that are none.
            ground = ground.scatter(1, index, more.masked_fill(last, 0.0))[:, :-1].to(log_m)
            late = self.spec.sense == "code"
            known = known.scatter(1, index, ~last | late)[:, :-1].to(log_m.device)
            if late:
                before = self.parts.get(rows.layer)
                self.parts[rows.layer] = ground if before is None else before + ground
            else:
                self.ground = self.ground + ground
            self.known = self.known | known

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        weights = logits.softmax(-1)
        if self.looking:
            seen = seen_patches(weights * columns.image)[:, 0]
            self.ahead.maps[-1][layer] = pad(seen, (columns.offset, 0))
            return logits
        if self.log_m is None:
            return logits
        log_m = columns.of(self.log_m).to(logits.device)
        heads, more = look(weights, log_m, columns.image)
        self.row[layer] = more[:, 0]
        if self.again and layer in self.parts:
            self.ground = self.ground + self.parts[layer]
        if layer not in (self.spec.layers or ()):
            return logits
        text = ~columns.of(self.rest).to(logits.device)
        reads = best_half((weights * text).sum(-1))
        log_g = columns.of(self._text_factors()).to(logits.device)
        return logits + heads[..., None] * log_m + reads[..., None] * log_g

    def _text_factors(self) -> GrowingMask:
        """Logarithms of g "B 1 1 K"; in the code's sense anew at each layer."""
        late = self.spec.sense == "code"
        if self.factors is None or late:
            factors, held = text_factors(self.ground, self.known, self.spec.beta)
            self.ground = held if late else self.ground
            self.factors = GrowingMask(factors.clamp(min=_TINY).log()[:, None, None])
        return self.factors
