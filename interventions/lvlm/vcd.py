"""VCD: contrast next-token scores with those under a noised picture.

With l the scores of the model as it is and l' those of a second run whose picture has noise on it:

    s = (1 + alpha) l - alpha l',   -inf where l < max l + log beta

Leng et al., arXiv 2311.16922, equations 3 to 5; reference code DAMO-NLP-SG/VCD@d6568ff. The noise
is the code's (`regaze.interventions.lvlm.noise`). The code always samples; here decoding is
``generate``'s own: greedy, beams or sampling, on the scores s.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from regaze.hooks.checks import check_indices, check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_images, require_scores
from regaze.interventions.lvlm.contrasts import (
    CutEdit,
    check_seed,
    contrasted,
    literal_cut,
    require_image,
)
from regaze.interventions.lvlm.noise import STEPS, noised

_CODE = "DAMO-NLP-SG/VCD@d6568ff, experiments"


@register
@dataclass(frozen=True)
class VCD(Intervention):
    """Contrast the picture with itself under noise.

    Attributes:
        alpha: Strength. 0 leaves the cut alone (a control), without a second run.
        beta: Tokens less likely than this share of the likeliest are never chosen; 0 cuts nothing.
            Strength zero is both.
        step: Amount of noise: a diffusion step, 0 to 999 of 1000.
        seed: Seed of the noise, which is drawn once for each picture.
    """

    name: ClassVar[str] = "vcd"
    summary: ClassVar[str] = "contrast scores with those under a noised picture"
    paper: ClassVar[str] = "arXiv 2311.16922"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset({"step": 500, "alpha": 1.0, "beta": 0.1}, f"{_CODE}: defaults"),
        "llava-1.5-7b-pope": Preset(
            {"step": 500, "alpha": 1.0, "beta": 0.2}, f"{_CODE}: LLaVA's shell script for POPE"
        ),
        "instructblip": Preset(
            {"step": 500, "alpha": 0.5, "beta": 0.1},
            f"{_CODE}: the InstructBLIP runner never passes alpha on, so 0.5 is what it ran with",
        ),
    }

    alpha: float = 1.0
    beta: float = 0.1
    step: int = 500
    seed: int = 0

    @property
    def shares_prefix(self) -> bool:
        """True without a second run, which would read whole prompts."""
        return self.alpha == 0

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("vcd", "alpha", self.alpha, low=0, high=100)
        check_number("vcd", "beta", self.beta, low=0, high=1)
        check_indices("vcd", "step", (self.step,), STEPS, "the noise schedule")
        check_seed("vcd", self.seed)

    def controls(self) -> Mapping[str, Intervention]:
        """The cut alone: what is left of the gain comes from what is never chosen."""
        return {"cut only": replace(self, alpha=0.0)} if self.alpha and self.beta else {}

    def idle(self) -> VCD:
        """The same without contrast or cut."""
        return replace(self, alpha=0.0, beta=0.0)

    def literal(self) -> ScoreForm:
        """The formula on probabilities, with a whole run under the noised picture."""

        def edit(scores: Tensor, whole: Whole) -> Tensor:
            if not whole.has_image:
                return scores
            config = whole.host.model.config
            other = whole.after(noised(whole.inputs, config, self.step, self.seed))
            return literal_cut(scores + self.alpha * (scores - other), scores, self.beta)

        return ScoreForm(edit)

    def resolve(self, host: Host) -> VCD:
        """Check that there can be pictures."""
        require_images("VCD", host)
        require_scores("VCD", host)
        return self

    def bind(self, host: Host) -> Edit:
        """Make the edit; no second run if alpha is 0."""
        return _VCDEdit(self, host.model.config) if self.alpha else CutEdit(self.beta)


class _VCDEdit(Edit):
    def __init__(self, spec: VCD, config: Any) -> None:
        super().__init__(())
        combine = functools.partial(contrasted, spec.alpha, spec.beta)
        self.branches = (Branch(functools.partial(_inputs, spec, config), combine),)


def _inputs(spec: VCD, config: Any, given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    require_image("vcd", pass_, "itself under noise")
    return noised(given, config, spec.step, spec.seed)
