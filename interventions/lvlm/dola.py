"""DoLa: contrast next-token scores with those of an early exit of the same model.

With P_L the model's probabilities and P_c those that its output layer makes of the residual stream
after c layers, of the candidates c the one that is furthest from P_L in this step is taken:

    d_c = (KL(M || P_L) + KL(M || P_c)) / 2,   M = (P_L + P_c) / 2
    s = log P_L - log P_c,   -inf where P_L < rho max P_L

Chuang et al., arXiv 2309.03883, section 2; reference code voidism/DoLa@805230e. The paper's
divergence is Jensen and Shannon's, whose terms run the other way, KL(P || M): ``divergence="jsd"``.
The code feeds the output layer without the final norm, and chooses one layer for a whole batch.
With rho = 0 it contrasts raw scores, uncut.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regaze.hooks.checks import check_choice, check_flag, check_indices, check_number, unknown
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_scores
from regaze.interventions.lvlm.contrasts import cut

Divergence = Literal["mixture", "jsd"]
_FARTHEST = 20
# Fields of a config with which scores aren't the output layer's product.
_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_CODE = "voidism/DoLa@805230e, README"


def _low(depth: int) -> Preset:
    candidates = list(range(0, min(depth // 2, 20), 2))
    return Preset({"candidates": candidates}, f"{_CODE}: FACTOR, GSM8K, StrategyQA, chat")


def _high(first: int, depth: int) -> Preset:
    fields = {"candidates": list(range(first, depth, 2)), "rho": 0.0}
    return Preset(fields, f"{_CODE}: TruthfulQA-MC")


@register
@dataclass(frozen=True)
class DoLa(Intervention):
    """Contrast the last layer with the earlier one that disagrees most.

    Attributes:
        candidates: Numbers c of layers run before an exit: "low" (even ones from 0, from 2 where
            input and output embeddings are tied, to half the depth), "high" (even ones from there
            on), both at most 20 layers wide, or a list; one alone is the static mode.
        rho: Tokens less likely than this share of the likeliest are never chosen; 0 contrasts raw
            scores instead of log-probabilities, uncut.
        divergence: "mixture" is the code's, "jsd" the paper's.
        per_sample: True if each sample has a layer of its own; the code has one for a batch.
        norm: True if the final norm stands before the output layer; it doesn't in the code.
    """

    name: ClassVar[str] = "dola"
    summary: ClassVar[str] = "contrast scores with those of an early exit"
    paper: ClassVar[str] = "arXiv 2309.03883"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llama-7b": _low(32),
        "llama-7b-truthfulqa": _high(16, 32),
        "llama-13b": _low(40),
        "llama-13b-truthfulqa": _high(20, 40),
        "llama-30b": _low(60),
        "llama-30b-truthfulqa": _high(40, 60),
        "llama-65b": _low(80),
        "llama-65b-truthfulqa": _high(60, 80),
    }

    candidates: Literal["low", "high"] | tuple[int, ...] = "low"
    rho: float = 0.1
    divergence: Divergence = "mixture"
    per_sample: bool = True
    norm: bool = False

    def check(self) -> None:
        """Check the fields' domains."""
        if isinstance(self.candidates, str):
            if self.candidates not in ("low", "high"):
                raise ValueError(
                    f"dola: {unknown('candidates', self.candidates, ('low', 'high'))}"
                    ", or a list of layers"
                )
        elif not isinstance(self.candidates, tuple) or not self.candidates:
            raise ValueError(
                'dola: candidates must be "low", "high" or a list of layers such as [0,2,4], got '
                f"{self.candidates!r}"
            )
        check_number("dola", "rho", self.rho, low=0, high=1)
        check_choice("dola", "divergence", self.divergence, ("mixture", "jsd"))
        check_flag("dola", "per_sample", self.per_sample)
        check_flag("dola", "norm", self.norm)

    def literal(self) -> ScoreForm:
        """The formula, on the residual streams of the main run."""

        def edit(scores: Tensor, whole: Whole) -> Tensor:
            exits = {}
            for c in self.candidates:
                hidden = whole.hidden[int(c)][:, -1]
                exits[c] = _exit(whole.host, hidden, self.norm).float()
            # Logarithms, because exits without the final norm hold probabilities of 0 in float32.
            log_p, left = scores.double().log_softmax(-1), scores.isfinite()

            def distance(c: int | str) -> float:
                log_q = exits[c].double().log_softmax(-1)
                log_m = torch.logaddexp(log_p, log_q) - math.log(2)
                pairs = ((log_m, log_p), (log_m, log_q))
                if self.divergence == "jsd":
                    pairs = ((log_p, log_m), (log_q, log_m))
                return sum(float((a.exp() * (a - b))[left].sum()) for a, b in pairs)

            other = exits[max(self.candidates, key=distance)]
            if not self.rho:
                return scores - other
            mixed = scores.log_softmax(-1) - other.log_softmax(-1)
            p = scores.softmax(-1)
            return mixed.masked_fill(p < self.rho * p.amax(-1, keepdim=True), -torch.inf)

        return ScoreForm(edit)

    def resolve(self, host: Host) -> DoLa:
        """Choose the candidates.

        Raises:
            ValueError: The model's early exits aren't known.
        """
        require_scores("DoLa", host)
        if not host.family.one_stream:
            raise ValueError(
                f"dola reads the residual stream, and layers of this {host.model_type} pass on "
                "several streams side by side"
            )
        head = _head(host)
        if changed := changes_scores(host):
            raise ValueError(
                f"dola takes scores for the output layer's product, and this {host.model_type} "
                f"changes them ({changed})"
            )
        if self.norm and not isinstance(getattr(host.tower, "norm", None), nn.Module):
            raise ValueError(f"dola: the final norm of this {host.model_type} isn't known")
        if not isinstance(self.candidates, str):
            check_indices(
                "dola", "candidates", self.candidates, host.n_layers, f"this {host.model_type}"
            )
            found = tuple(host.site(c).layer for c in sorted(self.candidates))
            return replace(self, candidates=found)
        tower: Any = host.tower
        tied = getattr(head, "weight", None) is tower.get_input_embeddings().weight
        wanted = _bucket(self.candidates, host.n_layers, tied)
        attending = [site.layer for site in host.sites]
        found = tuple(c for c in wanted if c in attending) or tuple(attending[-1:])
        return replace(self, candidates=found)

    def bind(self, host: Host) -> Edit:
        """Make the edit."""
        return _DoLaEdit(self, host)


def changes_scores(host: Host) -> str:
    """The setting by which a model scales or caps its output layer's product; empty if none."""
    configs: list[Any] = [host.model.config, host.tower.config]
    found = (n for n in _CHANGES for c in configs if getattr(c, n, None) not in (None, 1, 1.0))
    return next(found, "")


def _bucket(name: str, n_layers: int, tied: bool) -> Sequence[int]:
    half = n_layers // 2
    if name == "high":
        return range(max(half, n_layers - _FARTHEST), n_layers, 2)
    # With tied embeddings an exit before the first layer repeats the token that was given.
    return range(2 * tied, max(min(half, _FARTHEST), 2 * tied + 1), 2)


def _head(host: Host) -> Any:
    # Some models leave the question to the language model inside.
    for model in host.model.modules():
        asked = getattr(model, "get_output_embeddings", None)
        if asked is not None and any(part is host.tower for part in model.modules()):
            head = asked()
            if head is not None:
                break
    else:
        raise ValueError(
            f"dola needs the output layer, and {type(host.model).__name__} has none: attach to the "
            "whole model (...ForConditionalGeneration)"
        )
    return head


def _exit(host: Host, hidden: Tensor, norm: bool) -> Tensor:
    tower: Any = host.tower
    head = _head(host)
    hidden = tower.norm(hidden.to(tower.norm.weight.device)) if norm else hidden
    weight = getattr(head, "weight", None)
    # A quantised layer's weight may be a method, or integers.
    if isinstance(weight, Tensor) and weight.is_floating_point():
        hidden = hidden.to(weight)
    found: Tensor = head(hidden)
    return found


def distances(mature: Tensor, exits: Tensor, divergence: Divergence) -> Tensor:
    """The distance of each candidate's probabilities from the model's, "C ...".

    Args:
        mature: The model's scores, "... V"; tokens that were cut before (-inf) don't count.
        exits: The candidates', "C ... V".
        divergence: The direction of its terms.
    """
    log_p, log_q = mature.log_softmax(-1).expand_as(exits), exits.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)

    def towards(a: Tensor, b: Tensor) -> Tensor:
        terms: Tensor = a.exp() * (a - b)
        return terms.masked_fill(log_p == -torch.inf, 0).sum(-1)

    if divergence == "mixture":
        return 0.5 * (towards(log_m, log_p) + towards(log_m, log_q))
    return 0.5 * (towards(log_p, log_m) + towards(log_q, log_m))


def choose_exits(
    mature: Tensor, exits: Tensor, divergence: Divergence, per_sample: bool = True
) -> Tensor:
    """The number of the furthest candidate, "B R".

    Args:
        mature: "B R V".
        exits: "C B R V".
        divergence: The measure of distance, as in `distances`.
        per_sample: Otherwise samples agree on the one that is furthest in their mean.
    """
    found = distances(mature, exits, divergence)
    if not per_sample:
        found = found.mean(1, keepdim=True).expand_as(found)
    return found.argmax(0)


def difference(mature: Tensor, other: Tensor, rho: float) -> Tensor:
    """The contrast of scores "... V", cut."""
    if rho == 0:
        return mature - other
    log_p = mature.log_softmax(-1)
    return cut(log_p - other.log_softmax(-1), log_p, rho)


def score_answer(
    mature: Tensor, other: Tensor, answer: Tensor, rho: float, softmax: bool = True
) -> Tensor:
    """Score of a given answer, as the code ranks choices, "B".

    Unlikely tokens count -1000 each; with rho = 0 log-probabilities are contrasted all the same.

    Args:
        mature: The model's scores at the rows before each answer token, "B R V".
        other: The chosen early exits' there.
        answer: "R" token ids.
        rho: Plausibility threshold, as in `DoLa`.
        softmax: True if the difference is made log-probabilities first.
    """
    log_p = mature.log_softmax(-1)
    mixed = log_p - other.log_softmax(-1)
    mixed = mixed.log_softmax(-1) if softmax else mixed
    mixed = mixed.masked_fill(cut(mixed, log_p, rho) == -torch.inf, -1000.0)
    return mixed.gather(-1, answer.expand(len(mixed), -1)[..., None])[..., 0].sum(-1)


class _DoLaEdit(Edit):
    sees_decoding = True

    def __init__(self, spec: DoLa, host: Host) -> None:
        super().__init__([c for c in spec.candidates if not isinstance(c, str)])
        self.spec, self.host = spec, host
        self.hidden: dict[int, Tensor] = {}

    def select(self, rows: Tensor) -> Edit:
        """Forget what the last pass read."""
        twin = copy.copy(self)
        twin.hidden = {}
        return twin

    def begin(self, pass_: Pass) -> None:
        self.hidden = {}

    def see_hidden(self, layer: int, hidden: Tensor, pass_: Pass) -> None:
        if pass_.again:
            self.hidden[layer] = hidden
        elif pass_.prompt_end:
            rows = pass_.scored(pass_.length).to(hidden.device)[..., None]
            self.hidden[layer] = hidden.gather(1, rows.expand(-1, -1, hidden.shape[-1]))

    def edit_scores(self, scores: Tensor, pass_: Pass) -> Tensor:
        spec, count = self.spec, scores.shape[1]
        seen = [self.hidden[layer][:, -count:] for layer in sorted(self.hidden)]
        exits = torch.stack([_exit(self.host, one, spec.norm).to(scores) for one in seen])
        chosen = choose_exits(scores, exits, spec.divergence, spec.per_sample)
        other = exits.gather(0, chosen[None, ..., None].expand(1, *scores.shape))[0]
        return difference(scores, other, spec.rho)
