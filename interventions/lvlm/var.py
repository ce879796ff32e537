"""VAR: take attention from visual sinks and give it to the rest of the image.

Sink value of a token entering layer l: phi(x) = max over sink dimensions d of |x_d| / RMS(x).
Sinks of the layer: phi >= tau. For a text row i after the image and a head h, with s_V the mass
on the image and r the share of s_V that is on image tokens that aren't sinks: if s_V >= floor
and r >= rho the head is image-centric, and

    a'_j = (1 - p) a_j           on every sink j, text or visual
    a'_j = a_j (1 + B / s_N)     on the other image tokens, B = p * (mass on sinks)

Row sums stay 1, so this is the logit bias log(1 - p) and log(1 + B / s_N). A layer where no image
token is a sink is left alone. Kang et al., arXiv 2503.03321; seilk/VisAttnSink@98e62d6.

Paper and released code differ: in the code rho bounds the *sink* share from above, p is the share
that is *kept*, the test is phi > tau, and the last layer is edited too. ``sense`` selects; the
default is the paper's, which is what the names mean.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns, GrowingMask, Pass
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.sinks import find_sinks, known_sinks, sink_values

LEAST = 1e-30
"""Least mass off the sinks that a head must have for a row to be edited."""
_NOTES = "arXiv 2503.03321, as notes on the paper give it"


def _published(hidden_size: int, *dims: int) -> Preset:
    """The paper's settings for general benchmarks; its threshold of 20 as a fraction."""
    fields = {"sink_dims": dims, "tau": 20 / hidden_size**0.5, "rho": 0.8, "p": 0.6}
    return Preset(fields, f"{_NOTES}; rho for general benchmarks")


@register
@dataclass(frozen=True)
class VAR(Intervention):
    """Redistribute attention from visual sinks within image-centric heads.

    Attributes:
        rho: Threshold of the head test. Paper: 0.8 for general, 0.5 for hallucination and 0.9 for
            vision-centric benchmarks; at 0.5 both senses coincide.
        p: Share taken from sinks (``sense="code"``: share kept). 0.6 in the released settings.
        tau: Sink threshold as a fraction of sqrt(hidden size), the bound of phi. By default the
            paper's 20 as such a fraction, 0.3125 for LLaVA-1.5-7B.
        floor: Least attention a head must give the image.
        sink_dims: Hidden dimensions that mark sinks; known for LLaVA-1.5, Qwen2-VL-7B and
            InternVL2-8B, found from the model's first token otherwise.
        layers: Layers to edit; by default 2 to the last but one ("code": to the last).
        sense: "paper" or "code", see above.
    """

    name: ClassVar[str] = "var"
    summary: ClassVar[str] = "move attention from visual sinks to the rest of the image"
    paper: ClassVar[str] = "arXiv 2503.03321"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": _published(4096, 1415, 2533),
        "llava-1.5-13b": _published(5120, 2100, 4743),
        "qwen2-vl-7b": _published(3584, 458, 2570),
        "internvl2-8b": _published(4096, 3584),
        "hallucination": Preset({"rho": 0.5, "p": 0.6}, _NOTES),
        "vision-centric": Preset({"rho": 0.9, "p": 0.6}, _NOTES),
        "llava-1.5-7b-code": Preset(
            {"sink_dims": (1415, 2533), "tau": 0.3125, "rho": 0.5, "p": 0.6, "sense": "code"},
            "seilk/VisAttnSink@98e62d6, README; there p is the share that is kept",
        ),
    }

    rho: float = 0.5
    p: float = 0.6
    tau: float | None = None
    floor: float = 0.2
    sink_dims: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    sense: Literal["paper", "code"] = "paper"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("var", "rho", self.rho, 0, 1)
        check_number("var", "p", self.p, 0, 1)
        check_number("var", "floor", self.floor, 0, 1)
        if self.tau is not None:
            check_number("var", "tau", self.tau, 0, 1, "a fraction of sqrt(hidden size)")
        check_choice("var", "sense", self.sense, ("paper", "code"))

    @property
    def keep(self) -> float:
        """Share of a sink's attention that stays."""
        return self.p if self.sense == "code" else 1 - self.p

    @property
    def least_share(self) -> float:
        """Least share of the image mass that an image-centric head has off the sinks."""
        return 1 - self.rho if self.sense == "code" else self.rho

    @property
    def epsilon(self) -> float:
        """Constant that the released code adds to each image weight."""
        return 1e-6 if self.sense == "code" else 0.0

    def idle(self) -> VAR:
        """The same with sinks that keep all their weight."""
        return replace(self, p=1.0 if self.sense == "code" else 0.0)

    def literal(self) -> MapForm:
        """The weights a' of the formula above, row by row and head by head."""
        return MapForm(self.layers or (), self._literal)

    def _literal(self, z: Tensor, m: Map) -> Tensor:
        sinks = self.literal_sinks(m.hidden)[:, None, None] & m.prompt
        if not (sinks & m.image).any():
            return z
        a = z.masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)

        def mass(columns: Tensor) -> Tensor:
            return (a * columns).sum(-1, keepdim=True)

        on_image, on_sinks, on_rest = mass(m.image), mass(sinks), mass(m.image & ~sinks)
        if self.sense == "code":
            centric = mass(m.image & sinks) / (on_image + self.epsilon * m.image.sum()) <= self.rho
            taken = (1 - self.p) * on_sinks
            left = self.p
        else:
            centric = on_rest / on_image >= self.rho
            taken = self.p * on_sinks
            left = 1 - self.p
        moved = m.text & centric & (on_image >= self.floor) & (on_rest > 0)
        # a' = a * factor; the rows' sums stay 1, so the factor's logarithm adds to the logit.
        factor = torch.where(m.image & ~sinks, 1 + taken / on_rest, torch.where(sinks, left, 1.0))
        return torch.where(moved, z + factor.clamp(min=1e-30).log(), z)

    def literal_sinks(self, hidden: Tensor) -> Tensor:
        """The tokens of the residual stream "B K E" that carry a sink dimension strongly enough."""
        x = hidden.double()
        rms = x.square().mean(-1).sqrt()
        phi = x[..., list(self.sink_dims or ())].abs().amax(-1) / rms
        tau = (self.tau or 0) * hidden.shape[-1] ** 0.5
        sinks: Tensor = phi > tau if self.sense == "code" else phi >= tau
        return sinks

    def resolve(self, host: Host) -> VAR:
        """Find the sink dimensions and choose the layers.

        Raises:
            ValueError: The model has no sink dimensions, so VAR could never fire.
        """
        require_patches("VAR", host)
        if not host.family.one_stream:
            raise ValueError(
                f"VAR finds sinks in the residual stream, but the layers of {host.model_type} pass "
                "on several streams side by side"
            )
        profile = known_sinks(host)
        if self.sink_dims is None and profile is None:
            profile = find_sinks(host, self.tau)
        dims = self.sink_dims if self.sink_dims is not None else profile and profile.sink_dims
        if not dims:
            everywhere = profile.everywhere if profile is not None else ()
            raise ValueError(
                f"VAR can't fire on this {host.model_type}: {_why_not(everywhere, host)}"
            )
        check_indices("var", "sink_dims", dims, host.hidden_size, "the hidden state")
        tau = self.tau if self.tau is not None else (profile.tau if profile else 0.3125)
        last = len(host.sites) - (self.sense == "paper")
        layers = choose_layers("var", host, self.layers, range(min(2, last - 1), last))
        return replace(self, sink_dims=tuple(dims), tau=tau, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if sinks keep all."""
        return _VAREdit(self, host)


def _why_not(everywhere: Sequence[tuple[int, float, float]], host: Host) -> str:
    """Explain a search that found no sink dimensions, and the way out."""
    if not everywhere:
        return (
            "no hidden dimension of its first token stands out as a sink's does; give sink_dims=, "
            "or a lower tau= (a fraction of sqrt(hidden size))"
        )
    dim, first, others = everywhere[0]
    between = (first + others) / 2 / host.hidden_size**0.5
    return (
        f"dimension {dim} stands out on its first token (phi {first:.1f}), but on the median token "
        f"too ({others:.1f}), so every token would count as a sink; give sink_dims= or a higher "
        f"tau= (a fraction of sqrt(hidden size); {between:.2f} lies between the two)"
    )


@dataclass
class _Seen:
    """Counts of sinks among image tokens, by layer; one object for all copies of an edit."""

    sinks: dict[int, tuple[int, int]] = field(default_factory=dict)
    lowest: float = math.inf
    highest: float = 0.0
    told: bool = False

    def add(self, layer: int, phi: Tensor, sinks: int) -> None:
        """Count a prompt's image tokens.

        Args:
            layer: The layer.
            phi: "n", at least one.
            sinks: Number of sinks among them.
        """
        before = self.sinks.get(layer, (0, 0))
        self.sinks[layer] = before[0] + sinks, before[1] + len(phi)
        low, high = torch.stack(phi.aminmax()).tolist()
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)

    def says(self, tau: float) -> str:
        """The reason why nothing can be moved, in words; "" where something can."""
        counts = list(self.sinks.values())
        if not counts or any(0 < sinks < n for sinks, n in counts):
            return ""
        full = sum(sinks > 0 for sinks, _ in counts)
        found = f"phi {self.lowest:.1f} to {self.highest:.1f}, threshold {tau:.1f}"
        if not full:
            return f"no visual sinks: no image token reaches the threshold ({found})"
        rest = "" if full == len(counts) else ", none in the others"
        return f"all image tokens are sinks in {full} of {len(counts)} layers{rest} ({found})"


class _VAREdit(Edit):
    rows = "text"
    keeps_masked = reads_again = True

    def __init__(self, spec: VAR, host: Host) -> None:
        super().__init__(spec.layers or () if spec.keep != 1 else ())
        self.spec = spec
        self.dims = list(spec.sink_dims or ())
        self.tau = (spec.tau or 0) * host.hidden_size**0.5
        self.sinks: dict[int, Tensor] = {}
        self.sums: dict[int, tuple[GrowingMask, Tensor]] = {}
        self.prompt: Tensor | None = None
        self.image = torch.empty(0)
        self.seen = _Seen()

    def told(self) -> str:
        return self.seen.says(self.tau)

    def begin(self, pass_: Pass) -> None:
        if (pass_.decodes or pass_.prompt_start) and self.seen.sinks and not self.seen.told:
            self.seen.told = True  # The first prompt is over.
            if said := self.told():
                warnings.warn(f"VAR has nothing to move: {said}", stacklevel=2)
        if pass_.prompt_start:
            self.sinks, self.sums = {}, {}
        if not pass_.decodes:
            # Generated tokens never become sinks.
            prompt = ~pass_.tokens.is_kind(Kind.PAD, Kind.GENERATED)[:, pass_.past :]
            self.prompt = prompt.to(pass_.device) if prompt.any() else None
            self.image = pass_.tokens.is_kind(Kind.IMAGE).to(pass_.device)

    def select(self, rows: Tensor) -> _VAREdit:
        twin = copy.copy(self)
        twin.sinks = {k: v[rows.to(v.device)] for k, v in self.sinks.items()}
        twin.sums = {
            k: (sums.select(rows), bounds[rows.to(bounds.device)])
            for k, (sums, bounds) in self.sums.items()
        }
        return twin

    def see_hidden(self, layer: int, hidden: Tensor, pass_: Pass) -> None:
        if self.prompt is None:
            return
        phi = sink_values(hidden, self.dims)
        sinks = phi > self.tau if self.spec.sense == "code" else phi >= self.tau
        prompt = self.prompt.to(sinks.device)
        if pass_.again:
            rows = pass_.scored(pass_.length).to(sinks.device)
            before = self.sinks[layer]
            sinks = before.scatter(1, rows + pass_.past, sinks & prompt.gather(1, rows))
            self._keep(layer, sinks)
            return
        sinks = sinks & prompt
        self._look(layer, phi, sinks, pass_)
        if layer in self.sinks:
            # Since the block before, text may have been generated (or rolled back).
            before = self.sinks[layer][:, : pass_.past]
            gap = pass_.past - before.shape[1]
            sinks = torch.cat([torch.nn.functional.pad(before, (0, gap)), sinks], 1)
        self._keep(layer, sinks)

    def _keep(self, layer: int, sinks: Tensor) -> None:
        """Keep a layer's sinks "B K", and what its rows sum over."""
        self.sinks[layer] = sinks
        image = self.image.to(sinks.device)
        self.sums.pop(layer, None)
        if (sinks & image).any():
            sums, bounds = sums_and_bounds(image, sinks, self.spec)
            self.sums[layer] = GrowingMask(sums), bounds

    def _look(self, layer: int, phi: Tensor, sinks: Tensor, pass_: Pass) -> None:
        """Count what is new of the image."""
        image = self.image[:, pass_.past :].to(phi.device)
        if torch.compiler.is_compiling() or not image.any():
            return
        self.seen.add(layer, phi[image], int((sinks & image).sum()))

    def active(self, layer: int, pass_: Pass) -> bool:
        return layer in self.sums

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        known, bounds = self.sums[layer]
        change = redistribution(logits.softmax(-1), columns.of(known), bounds)
        return logits + (1 + change).clamp(min=LEAST).log()

    def move_weights(self, layer: int, weights: Tensor, columns: Columns) -> Tensor:
        known, bounds = self.sums[layer]
        return torch.addcmul(weights, weights, redistribution(weights, columns.of(known), bounds))


def sums_and_bounds(image: Tensor, sinks: Tensor, spec: VAR) -> tuple[Tensor, Tensor]:
    """Columns that VAR sums a row's weights over, and the bounds that make a head image-centric.

    With s the mass on the image and t the part of it on sinks, the share test
    ``1 - t / (s + n epsilon) >= r`` is ``(1 - r) s - t >= -(1 - r) n epsilon``: a bound on a sum.

    Args:
        image: Bool "B K".
        sinks: Bool "B K", text and visual.
        spec: The method; r is its ``least_share``, epsilon is added to each of n image weights.

    Returns:
        Coefficients "B 6 K": of the sums on sinks, on the rest of the image, of the share test and
        on the image, and of two changes, 1 - keep on the rest and keep - 1 on sinks. And lower
        bounds "B 1 4" of the sums, of which the first is none. A sample without visual sinks has a
        bound that nothing reaches.
    """
    taken, most = 1 - spec.keep, 1 - spec.least_share
    visual = image & sinks
    on_image, on_sinks, on_rest = image.float(), sinks.float(), (image & ~sinks).float()
    test = most * on_image - visual.float()
    rows = [on_sinks, on_rest, test, on_image, taken * on_rest, -taken * on_sinks]
    slack = -most * spec.epsilon * on_image.sum(1)
    none = torch.full_like(slack, -torch.inf)
    smallest = (-none).masked_fill(visual.any(1), LEAST)
    bounds = torch.stack([none, smallest, slack, torch.full_like(slack, spec.floor)], -1)
    return torch.stack(rows, 1), bounds[:, None]


def redistribution(weights: Tensor, sums: Tensor, bounds: Tensor) -> Tensor:
    """The relative change x of each weight, a' = a (1 + x).

    With s and r the mass on sinks and on the rest of the image and c 1 in image-centric heads,
    x is c (1 - keep) s / r on the rest and -c (1 - keep) r / r on sinks.

    Args:
        weights: "B H R K", float32, rows summing to 1.
        sums: "B 6 K" of `sums_and_bounds`.
        bounds: "B 1 4".

    Returns:
        "B H R K"; 0 in heads and rows that are not image-centric.
    """
    mass = weights.flatten(1, 2) @ sums[:, :4].transpose(1, 2)
    centric = (mass >= bounds).all(-1, keepdim=True)
    # r / r is 1 to the last bit, so all that a sink has can be taken. Where it isn't used, a
    # quotient must not be 0 / 0 either: its gradient would be NaN.
    shares = mass[..., :2] / mass[..., 1:2].clamp(min=LEAST) * centric
    return (shares @ sums[:, 4:]).view_as(weights)
