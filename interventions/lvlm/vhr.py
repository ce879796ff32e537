"""VHR: reinforce the attention heads that react to the image.

At the prompt's last position, layer by layer, with A the output of a head before the output
projection and A0 the same head's output with the image removed:

    VHD = ||A - A0||_2
    VHD := 0 where VHD > mean + std over heads  and  ||A0||^2 > mean + std over heads
    heads with VHD > median are multiplied by alpha, then the next layer follows

The chosen heads stay fixed for the sample and every row is scaled, so cached keys and values stay
consistent. The image's rows are scaled too, by heads that the question chose: behind the first
edited layer its keys and values belong to one question, so several can't share them. He et al.,
arXiv 2412.13949, section 4. Both prompts run in one forward pass and are reinforced layer by layer;
the paper leaves open whether the one without image is, and the kind of std.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_flag, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import HeadForm
from regaze.hooks.passes import Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers, require_images
from regaze.interventions.lvlm.heads import choice_controls, random_keys

_SOURCE = "arXiv 2412.13949, settings of the experiments"
_LLAVA: Preset = Preset({"alpha": 2.0, "layers": (1, *range(18, 32))}, _SOURCE)


@register
@dataclass(frozen=True)
class VHR(Intervention):
    """Scale the outputs of the half of the heads that the image moves most.

    Attributes:
        alpha: Factor; 2 in the paper. 1 is a no-op; at 4 and more text breaks down.
        layers: Layers to edit; by default the second and the last 14 of 32 (InstructBLIP: the last
            18), at the same depth in other models.
        null_image: The way to remove the image: "drop" renumbers positions as if its tokens weren't
            there, "mask" hides its columns and keeps positions. The paper doesn't say; "drop" is
            what a prompt without image would be.
        outlier_filter: True if step two of the formula is done.
        unbiased: True if the filter's standard deviation divides by n - 1; the paper doesn't say.
        heads: The half of the heads: "top" is the method, "bottom" and "random" are controls.
    """

    name: ClassVar[str] = "vhr"
    summary: ClassVar[str] = "amplify the heads that react to the image"
    paper: ClassVar[str] = "arXiv 2412.13949"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": _LLAVA,
        "llava-next-7b": _LLAVA,
        "instructblip-7b": Preset({"alpha": 2.0, "layers": range(14, 32)}, _SOURCE),
    }
    needs_image_columns: ClassVar[bool] = False

    alpha: float = 2.0
    layers: tuple[int, ...] | None = None
    null_image: Literal["drop", "mask"] = "drop"
    outlier_filter: bool = True
    unbiased: bool = True
    heads: Literal["top", "bottom", "random"] = "top"

    @property
    def shares_prefix(self) -> bool:
        """False: the image's rows are scaled too, by heads that the question chose."""
        return False

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("vhr", "alpha", self.alpha, low=0, high=100)
        check_flag("vhr", "outlier_filter", self.outlier_filter)
        check_flag("vhr", "unbiased", self.unbiased)
        check_choice("vhr", "null_image", self.null_image, ("drop", "mask"))
        check_choice("vhr", "heads", self.heads, ("top", "bottom", "random"))

    def controls(self) -> Mapping[str, Intervention]:
        """Name the controls: as many heads, random or from the other end."""
        return choice_controls(self)

    def idle(self) -> VHR:
        """The same with chosen heads at their own size."""
        return replace(self, alpha=1.0)

    def literal(self) -> HeadForm | None:
        """The formula above, head by head; None for controls, which aren't the formula's."""
        if self.heads != "top":
            return None
        return HeadForm(self.layers or (), self.literal_factors, self.null_image)

    def literal_factors(self, seen: Tensor, blind: Tensor) -> Tensor:
        """One factor per head, "H", from outputs "H D" with the image and without."""
        deviation = statistics.stdev if self.unbiased else statistics.pstdev
        divergence: list[float] = (seen - blind).norm(dim=-1).tolist()
        activity: list[float] = blind.square().sum(-1).tolist()
        # What rounding makes of heads that the image doesn't reach is no reaction.
        least = (4 * torch.finfo(seen.dtype).eps * seen.norm(dim=-1)).tolist()
        divergence = [d if d > e else 0.0 for d, e in zip(divergence, least, strict=True)]
        if self.outlier_filter:
            far = statistics.mean(divergence) + deviation(divergence)
            loud = statistics.mean(activity) + deviation(activity)
            pairs = zip(divergence, activity, strict=True)
            divergence = [0.0 if d > far and a > loud else d for d, a in pairs]
        median = statistics.median(divergence)
        return torch.tensor(
            [self.alpha if d > median else 1.0 for d in divergence],
            dtype=torch.float32,
            device="cpu",
        )

    def resolve(self, host: Host) -> VHR:
        """Choose the layers.

        Raises:
            ValueError: The image can't be found in the tower's sequence, so it can't be removed
                from it, or a factor on a head would be taken back.
        """
        require_images("VHR", host)
        if not host.family.free_heads:
            raise ValueError(
                f"VHR scales the outputs of heads, but {host.model_type} normalises each head's "
                "output afterwards, which takes the factor back"
            )
        n = len(host.sites)
        if host.model_type.startswith("instructblip"):
            default = list(range(at_depth(14, n), n))
        else:
            default = sorted({min(1, n - 1), *range(at_depth(18, n), n)})
        return replace(self, layers=choose_layers("vhr", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if alpha is 1."""
        return _VHREdit(self)


class _VHREdit(Edit):
    null_prompt = True

    def __init__(self, spec: VHR) -> None:
        super().__init__(spec.layers or () if spec.alpha != 1 else ())
        self.spec = spec
        self.null_positions = spec.null_image
        self.factors: dict[int, Tensor] = {}
        self.has_image = torch.empty(0)

    def begin(self, pass_: Pass) -> None:
        if pass_.prompt_start:
            self.factors = {}
            self.has_image = pass_.tokens.has_image

    def select(self, rows: Tensor) -> _VHREdit:
        twin = copy.copy(self)
        twin.factors = {k: v[rows.to(v.device)] for k, v in self.factors.items()}
        twin.has_image = self.has_image[rows]
        return twin

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass
    ) -> Tensor | None:
        if null is not None:
            last = pass_.last_rows.to(out.device)
            seen = out[torch.arange(len(out), device=out.device), last].float()
            spec, rounding = self.spec, 4 * torch.finfo(out.dtype).eps
            chosen = choose_heads(
                seen, null.float(), spec.outlier_filter, spec.unbiased, spec.heads, rounding
            )
            chosen &= self.has_image[:, None].to(out.device)
            one = torch.ones((), device=out.device, dtype=torch.float32)
            self.factors[layer] = torch.where(chosen, self.spec.alpha, one)
        return self.factors.get(layer)


def choose_heads(
    with_image: Tensor,
    without: Tensor,
    outlier_filter: bool = True,
    unbiased: bool = True,
    heads: str = "top",
    rounding: float = 0.0,
) -> Tensor:
    """Half of the heads by vision-aware head divergence.

    Args:
        with_image: "B H D", head outputs at the last position.
        without: "B H D", head outputs of the prompt without its image.
        outlier_filter: Zero heads that surge both ways: high divergence and high activity
            without image.
        unbiased: True if the filter's std divides by n - 1.
        heads: "top", "bottom" (control: as many, from the other end) or "random" (control: as
            many, drawn with a fixed seed).
        rounding: Relative differences up to this are none. (A sliding window may hide the image
            from a whole layer; then no head reacts, and noise must not choose.)

    Returns:
        Bool "B H".
    """
    divergence = (with_image - without).norm(dim=-1)
    divergence = divergence.masked_fill(divergence <= rounding * with_image.norm(dim=-1), 0)
    if outlier_filter:
        activity = without.square().sum(-1)
        surges = _above_std(divergence, unbiased) & _above_std(activity, unbiased)
        divergence = divergence.masked_fill(surges, 0)
    chosen: Tensor = divergence > divergence.median(-1, keepdim=True).values
    if heads == "top":
        return chosen
    if heads == "random":
        key = random_keys(divergence.shape[-1], divergence.device).expand_as(divergence)
    else:
        key = -divergence
    rank: Tensor = key.argsort(-1, descending=True).argsort(-1)
    picked: Tensor = rank < chosen.sum(-1, keepdim=True)
    return picked


def _above_std(x: Tensor, unbiased: bool) -> Tensor:
    std = x.std(-1, correction=int(unbiased), keepdim=True)
    above: Tensor = x > x.mean(-1, keepdim=True) + std
    return above
