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

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.edits import Columns, Edit, GrowingMask, Step, TowerInfo
from regaze.hooks.tokens import Kind
from regaze.interventions.base import (
    Intervention,
    check_choice,
    check_indices,
    check_number,
    register,
)
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.sinks import find_sinks, known_sinks, sink_values


@register
@dataclass(frozen=True)
class VAR(Intervention):
    """Redistribute attention from visual sinks within image-centric heads.

    Attributes:
        rho: Threshold of the head test. Paper: 0.8 for general, 0.5 for hallucination and 0.9 for
            vision-centric benchmarks; at 0.5 both senses coincide.
        p: Share taken from sinks (``sense="code"``: share kept). 0.6 in the released settings.
        tau: Sink threshold as a fraction of sqrt(hidden size), the bound of phi. By default what
            20 is at the known models (0.3125 for LLaVA-1.5-7B).
        floor: Least attention a head must give the image.
        sink_dims: Hidden dimensions that mark sinks; known for LLaVA-1.5, Qwen2-VL-7B and
            InternVL2-8B, found from the model's first token otherwise.
        layers: Where; by default 2 to the last but one ("code": to the last).
        sense: "paper" or "code", see above.
    """

    name: ClassVar[str] = "var"
    summary: ClassVar[str] = "move attention from visual sinks to the rest of the image"
    paper: ClassVar[str] = "arXiv 2503.03321"

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
        """What the released code adds to each image weight."""
        return 1e-6 if self.sense == "code" else 0.0

    def resolve(self, tower: TowerInfo) -> VAR:
        """Find the sink dimensions and choose the layers.

        Raises:
            ValueError: The model has no sink dimensions, so VAR could never fire.
        """
        require_patches("VAR", tower)
        profile = known_sinks(tower)
        if self.sink_dims is None and profile is None:
            profile = find_sinks(tower, self.tau)
        dims = self.sink_dims if self.sink_dims is not None else profile and profile.sink_dims
        if not dims:
            raise ValueError(
                f"VAR can't fire on this {tower.model_type}: no hidden dimension of its first "
                "token stands out as a sink's does; give sink_dims=, or a lower tau= (a fraction "
                "of sqrt(hidden size))"
            )
        check_indices("var", "sink_dims", dims, tower.hidden_size, "the hidden state")
        tau = self.tau if self.tau is not None else (profile.tau if profile else 0.3125)
        last = tower.n_layers - (self.sense == "paper")
        layers = choose_layers("var", tower, self.layers, range(min(2, last - 1), last))
        return replace(self, sink_dims=tuple(dims), tau=tau, layers=layers)

    def bind(self, tower: TowerInfo) -> Edit:
        """Make the edit; no layers if sinks keep all."""
        return _VAREdit(self, tower)


class _VAREdit(Edit):
    rows = "text"
    watches_hidden = True

    def __init__(self, spec: VAR, tower: TowerInfo) -> None:
        super().__init__(spec.layers or () if spec.keep != 1 else ())
        self.spec = spec
        self.dims = list(spec.sink_dims or ())
        self.tau = (spec.tau or 0) * tower.hidden_size**0.5
        self.sinks: dict[int, Tensor] = {}
        self.groups: dict[int, GrowingMask] = {}
        self.fires: dict[int, bool] = {}

    def begin(self, step: Step) -> None:
        if step.prompt_start:
            self.sinks, self.groups, self.fires = {}, {}, {}

    def see_hidden(self, layer: int, hidden: Tensor, step: Step) -> None:
        if step.decodes:
            return  # Generated tokens never become sinks.
        prompt = ~step.tokens.is_kind(Kind.PAD, Kind.GENERATED)[:, step.past :]
        if not prompt.any():
            return
        phi = sink_values(hidden, self.dims)
        sinks = phi > self.tau if self.spec.sense == "code" else phi >= self.tau
        sinks = sinks & prompt.to(sinks.device)
        if layer in self.sinks:
            # Since the block before, text may have been generated (or rolled back).
            before = self.sinks[layer][:, : step.past]
            gap = step.past - before.shape[1]
            sinks = torch.cat([torch.nn.functional.pad(before, (0, gap)), sinks], 1)
        self.sinks[layer] = sinks
        image = step.tokens.is_kind(Kind.IMAGE).to(sinks.device)
        self.groups[layer] = GrowingMask(sink_groups(image, sinks))
        self.fires[layer] = bool((sinks & image).any())

    def active(self, layer: int, step: Step) -> bool:
        return self.fires.get(layer, False)

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        groups = columns.of(self.groups[layer])
        if len(groups) < len(logits):
            groups = groups.repeat_interleave(len(logits) // len(groups), 0)  # beams
        spec = self.spec
        return logits + redistribution(
            logits.softmax(-1), groups, spec.keep, spec.least_share, spec.floor, spec.epsilon
        )


def sink_groups(image: Tensor, sinks: Tensor) -> Tensor:
    """The column groups that VAR sums over.

    Args:
        image: Bool "B K".
        sinks: Bool "B K", text and visual.

    Returns:
        Float "B 1 4 K" of 0 and 1: image, image that is no sink, sinks, visual sinks.
    """
    return torch.stack([image, image & ~sinks, sinks, image & sinks], 1)[:, None].float()


def redistribution(
    weights: Tensor,
    groups: Tensor,
    keep: float,
    least_share: float,
    floor: float,
    epsilon: float = 0.0,
) -> Tensor:
    """The logit bias that turns attention weights into VAR's.

    Args:
        weights: "B H R K", float32, rows summing to 1.
        groups: "B 1 4 K" of `sink_groups`.
        keep: Share of a sink's weight that stays.
        least_share: Least share of the image mass that must not be on sinks.
        floor: Least image mass.
        epsilon: Added to each image weight in the denominator of the share; 1e-6 in the released
            code.

    Returns:
        "B H R K"; 0 in heads and rows that are not image-centric.
    """
    on_image, on_rest, on_sinks, _ = (weights @ groups.transpose(-1, -2)).unbind(-1)
    n_image, _, _, n_visual_sinks = groups.sum(-1, keepdim=True).unbind(2)
    share = 1 - (on_image - on_rest) / (on_image + epsilon * n_image)
    centric = (share >= least_share) & (on_image >= floor) & (on_rest > 0) & (n_visual_sinks > 0)
    gain = torch.log1p((1 - keep) * on_sinks / on_rest.clamp_min(1e-30)) * centric
    # exp(-1e4) is 0: all is taken.
    loss = max(math.log(keep), -1e4) if keep > 0 else -1e4
    factors = torch.stack([gain, loss * centric], -1)
    return factors @ groups[:, :, 1:3]
