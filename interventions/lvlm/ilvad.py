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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import ProbeForm
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers, require_again, require_patches
from regaze.interventions.lvlm.ilvad_literal import EVERY, literal
from regaze.interventions.lvlm.ilvad_works import works

_SOURCE = "ytx-ML/ILVAD@2109091, scripts for LLaVA-1.5-7B"


@register
@dataclass(frozen=True)
class ILVAD(Intervention):
    """Raise attention to patches that a first answer came to see, and to text grounded in them.

    Attributes:
        alpha: Strength; weights are multiplied by up to exp(alpha). 0 is a no-op.
        beta: Part of the text's factor that doesn't depend on grounding: 1 for POPE, 0.3 for
            CHAIR, 0.2 for LLaVA-Bench.
        layers: Layers to edit; by default 0 to 30 of 32 (POPE), at the same depth in other models.
            The ground is read in all layers.
        tokens: T, how long the first answer may be.
        tau: The multiple of a layer's mean that a patch needs to be in view.
        sense: "own" or "code", see above.
        patches: Place of M: as "found", or as a control "shuffled" over the image.
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
        """The same with nothing raised."""
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
        return works(self, every)

    def literal(self) -> ProbeForm | None:
        """The formula above, row by row and head by head; None for the control."""
        if self.patches != "found":
            return None
        return ProbeForm(partial(literal, self), EVERY, looks_ahead=self.tokens, again=True)
