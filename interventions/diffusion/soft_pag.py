"""SoftPAG: PAG of any strength, away from any simple target, down to single heads.

In the perturbed branch the chosen heads' map is ``A' = (1 - u) A + u T`` with T one of

    identity      every token attends to itself                     (u = 1 on all heads: PAG)
    uniform       every token attends to all alike
    query_mean    every token attends as the mean query does        (u = 1: SEG of infinite blur)
    temperature   softmax(log A / tau)

over the whole joint sequence in models that attend to text and image at once. The other heads keep
A. Ahn et al., arXiv 2506.10978, section 3; released code cvlab-kaist/HeadHunter@3828d1c.

The guidance is the code's, ``eps_cfg + scale (eps_cond - eps_perturbed)``. Its ``temperature``
*multiplies* logits; the paper's tau, used here, divides. Its ``perturb_heads=None`` perturbs
nothing; here ``heads=None`` means all heads of ``layers``, and an empty list nothing. Layers are
numbered as in the paper, SD3's blocks from L0, FLUX's 19 double blocks before its 38 single ones;
a U-Net's self-attention layers in the order in which they run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.perturb import as_query_heads, blend, mean_query
from regaze.hooks.diffusion.sites import choose, only_heads
from regaze.hooks.diffusion.works import Guidance
from regaze.interventions.base import from_dict, register
from regaze.interventions.diffusion.guided import Guided

TARGETS = ("identity", "uniform", "query_mean", "temperature")
_HEAD = re.compile(r"[Ll](\d+)[Hh](\d+)(?:\*([0-9.eE+-]+?))?")


@register
@dataclass(frozen=True)
class SoftPAG(Guided):
    """Soft perturbed-attention guidance on chosen heads.

    Attributes:
        u: Strength of the perturbation, in [0, 1]; 0 is a no-op. The paper's figures use 0.2 to 1;
            it recommends 0.5 for heads that were found with 1.
        target: The map that heads are perturbed towards.
        heads: The heads: ``{"L18": [11], "L0": [17]}``, or in the paper's notation
            ``"L18H11+L0H17"``, which is how it is kept. ``{"L18": {"11": 0.3}}`` and
            ``"L18H11*0.3"`` give a head its own u. All heads of ``layers`` by default.
        tau: Temperature, with ``target="temperature"``: above 1 flattens, below 1 sharpens.
    """

    name: ClassVar[str] = "softpag"
    summary: ClassVar[str] = "PAG of any strength on single heads"
    paper: ClassVar[str] = "arXiv 2506.10978"

    u: float = 0.5
    target: str = "identity"
    heads: Any = None
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.heads is not None:
            object.__setattr__(self, "heads", _canonical(self.heads))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number("softpag", "u", self.u, low=0, high=1)
        check_choice("softpag", "target", self.target, TARGETS)
        if (self.tau is None) == (self.target == "temperature"):
            raise ValueError('softpag: tau and target="temperature" go together')
        if self.tau is not None:
            check_number("softpag", "tau", self.tau, low=1e-6)
        if self.heads is not None and self.layers is not None:
            raise ValueError("softpag: give layers (all their heads) or heads, not both")

    @classmethod
    def from_file(cls, path: str | Path) -> SoftPAG:
        """Read a spec such as a head search writes: a JSON object of fields, name included or not.

        Raises:
            ValueError: It isn't one, or a field is wrong.
        """
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{path}: expected a JSON object with softpag's fields")
        spec = from_dict({"name": "softpag", **found})
        if not isinstance(spec, cls):
            raise ValueError(f"{path} holds {spec.name}, not softpag")
        return spec

    def literal(self) -> GuidanceForm:
        """A whole second pass with ``A' = (1 - u) A + u T`` in the heads chosen."""
        if self.heads is None:
            return super().literal()
        layers = dict.fromkeys(f"L{layer}" for layer, _, _ in _parsed(self.heads))
        return replace(super().literal(), layers=tuple(layers))

    def literal_map(self, m: Map) -> Tensor:
        """``(1 - u) A + u T``, head by head."""
        u = torch.full(
            (m.weights.shape[1], 1, 1),
            self.u if self.heads is None else 0.0,
            dtype=torch.float32,
            device="cpu",
        )
        for layer, head, own in _parsed(self.heads or ""):
            if layer == m.site.layer:
                u[head] = self.u if own is None else own
        u = u.to(m.weights)
        return (1 - u) * m.weights + u * self._literal_target(m)

    def _literal_target(self, m: Map) -> Tensor:
        if self.target == "identity":
            return m.identity.expand_as(m.weights)
        if self.target == "uniform":
            return (torch.zeros_like(m.weights) + m.bias).softmax(-1)
        if self.target == "temperature":
            return ((m.logits + m.bias) / (self.tau or 1)).softmax(-1)
        seen = (m.bias > torch.finfo(m.bias.dtype).min / 2).expand_as(m.weights)[:, :1, :1]
        seen = seen.transpose(-1, -2).to(m.query) if m.bias.ndim > 1 else m.query.new_ones(1)
        mean = (m.query * seen).sum(2, keepdim=True) / (seen + 0 * m.query).sum(2, keepdim=True)
        logits = mean @ m.key.transpose(-1, -2) * m.scale
        return (logits + m.bias).softmax(-1).expand_as(m.weights)

    def resolve(self, host: Host) -> SoftPAG:
        """Choose the layers, if no heads are given, and check the heads."""
        if self.heads is None:
            return super().resolve(host)
        self._strengths(host)
        return self

    def bind(self, host: Host) -> Guidance:
        """Make the guidance; without heads, or with every u at 0, it is a no-op."""
        strengths = {n: u for n, u in self._strengths(host).items() if u.any()}
        sites = tuple(site for site in host.sites if site.name in strengths)
        return Guidance.away_from(
            sites, lambda call: self._perturb(call, strengths), **self.window()
        )

    def _strengths(self, denoiser: Host) -> dict[str, Tensor]:
        """Strength per head, "H 1 1", by layer name.

        Raises:
            ValueError: A layer or head doesn't exist.
        """
        if self.heads is None:
            return {
                s.name: torch.full((s.heads, 1, 1), self.u, dtype=torch.float32, device="cpu")
                for s in self.sites(denoiser)
            }
        found: dict[str, Tensor] = {}
        for layer, head, u in _parsed(self.heads):
            try:
                site = choose(denoiser.sites, [layer])[0]
                only_heads(site, [head])
            except ValueError as error:
                raise ValueError(f"softpag: {error}") from None
            table = found.setdefault(
                site.name, torch.zeros(site.heads, 1, 1, dtype=torch.float32, device="cpu")
            )
            table[head] = self.u if u is None else u
        return found

    def _perturb(self, call: Call, strengths: Mapping[str, Tensor]) -> Tensor:
        u = strengths[call.site.name].to(call.query.device, call.query.dtype)
        target = _target(call, self.target, self.tau)
        if bool((strengths[call.site.name] == 1).all()):
            return target.expand_as(call.query) if target.shape[2] == 1 else target
        return blend(call.output, target, u)


def _target(call: Call, target: str, tau: float | None) -> Tensor:
    """The head outputs under T, broadcastable to "B H N D"."""
    heads = call.query.shape[1]
    # A mask of one row hides the same columns from every row, so one query stands for all.
    one_row = call.mask is None or call.mask.shape[-2] == 1
    if target == "identity":
        return as_query_heads(call.own, heads)
    if target == "uniform":
        if call.mask is None:
            return as_query_heads(call.value.mean(2, keepdim=True), heads)
        query = torch.zeros_like(call.query)
        return call.kernel(query[:, :, :1] if one_row else query, call.key, call.value)
    if target == "query_mean":
        query = mean_query(call.query, call.visible())
        return call.kernel(query if one_row else query.expand_as(call.query), call.key, call.value)
    return call.at_temperature(tau or 1.0)


def _canonical(heads: object) -> str:
    """Any form of a head list as ``L0H17+L18H11*0.3``, sorted.

    Raises:
        ValueError: It is no head list, or names a head twice.
    """
    listed = _parsed(heads) if isinstance(heads, str) else _listed(heads)
    found = sorted(listed, key=lambda one: one[:2])
    places = [(layer, head) for layer, head, _ in found]
    if len(set(places)) < len(places):
        raise ValueError(f"softpag: heads names a head twice: {heads!r}")
    return "+".join(f"L{n}H{h}" + ("" if u is None else f"*{u!r}") for n, h, u in found)


def _parsed(text: str) -> list[tuple[int, int, float | None]]:
    parts = [part.strip() for part in text.split("+")] if text.strip() else []
    matches = [_HEAD.fullmatch(part) for part in parts]
    if not all(matches):
        raise ValueError(_shape(text))
    return [(int(m[1]), int(m[2]), _strength(m[3])) for m in matches if m]


def _listed(heads: object) -> Iterable[tuple[int, int, float | None]]:
    if not isinstance(heads, Mapping):
        raise ValueError(_shape(heads))
    for layer, chosen in heads.items():
        match = re.fullmatch(r"[Ll]?(\d+)", str(layer))
        if match is None or not isinstance(chosen, (list, tuple, Mapping)):
            raise ValueError(_shape(heads))
        strengths = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
        if len(strengths) < len(chosen):
            raise ValueError(f"softpag: heads names a head twice in {layer}: {chosen}")
        for head, u in strengths.items():
            if not re.fullmatch(r"\d+", str(head)):
                raise ValueError(_shape(heads))
            yield int(match[1]), int(head), _strength(u)


def _strength(u: object) -> float | None:
    if u is None:
        return None
    try:
        value = float(u)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"softpag: a head's own u must be a number, got {u!r}") from None
    check_number("softpag", "a head's own u", value, low=0, high=1)
    return value


def _shape(heads: object) -> str:
    example = '{"L18": [11], "L0": [17]} or "L18H11+L0H17"'
    return f"softpag: heads must look like {example}, got {heads!r}"
