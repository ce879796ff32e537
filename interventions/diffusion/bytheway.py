"""ByTheWay (BroadWay): temporal attention led by the first decoder block's, with more energy.

In the first steps, each temporal self-attention map A "F F" (per place and head) of the decoder
becomes, with A_1 the map of the corresponding module in up_blocks.1, resized to its grid:

    A  <- A + alpha (A_1 - A)                              temporal self-guidance
    A' <- rows renormalised of the inverse FFT of (low band + beta high band)      Fourier motion

along the keys' axis, where the high band are frequencies F/2 - tau ... F/2 + tau. The energy is
E(A) = mean over places, heads and rows of sum_j A_ij^2, and beta is at least what restores it:

    beta <- max(beta, sqrt((E_before - E_low) / E_high))

with E_low and E_high of the guided map's bands. arXiv 2410.06241; code Bujiazi/ByTheWay@1ae7294
(functions in its README). Energies are those of conditional rows; both branches are edited alike.

With 16 frames and tau = 7, the published setting, the band is all but the constant, and rows sum to
1, so that A' = beta A + (1 - beta) / F and E_low = 1 / F: no transform is made then.

Not said anywhere, and chosen here: A_1 is resized bilinearly over the places; "corresponding" is
the same position in its block. The code has one beta for a batch; here each sample has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.checks import check_number, shown
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.perturb import as_query_heads
from regaze.hooks.diffusion.sites import TEMPORAL, Site
from regaze.hooks.diffusion.works import Attend
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.temporal import places
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_FIRST = "up_blocks.1"
_SOURCE = "arXiv 2410.06241, code Bujiazi/ByTheWay@1ae7294, README"


@register
@dataclass(frozen=True)
class ByTheWay(ByLayers):
    """Temporal self-guidance and Fourier motion enhancement.

    Attributes:
        alpha: Share of up_blocks.1's map; 0 leaves that out.
        beta: Factor of the high band; 1 leaves it to the energy alone.
        tau: Half width of the high band; a clip must have 2 tau + 2 frames.
        layers: Temporal self-attention to edit; by default all of it in up_blocks.1, 2 and 3.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends: the first fifth, as in the code.
    """

    name: ClassVar[str] = "bytheway"
    summary: ClassVar[str] = "lead a video's temporal attention by its first decoder block's"
    paper: ClassVar[str] = "arXiv 2410.06241"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[Mapping[str, Preset]] = {
        "animatediff": Preset({"tau": 7, "alpha": 0.6, "beta": 1.5}, _SOURCE),
        "videocrafter2": Preset({"tau": 7, "alpha": 0.1, "beta": 10.0}, _SOURCE),
    }

    alpha: float = 0.6
    beta: float = 1.5
    tau: int = 7
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 0.2

    def check(self) -> None:
        """Check the fields' domains."""
        check_number(self.name, "alpha", self.alpha, low=0, high=1)
        check_number(self.name, "beta", self.beta, low=0)
        if isinstance(self.tau, bool) or not isinstance(self.tau, int) or self.tau < 0:
            raise ValueError(
                f"bytheway: tau must be a whole number of 0 or more, got {shown(self.tau)}"
            )
        check_where(self.name, self.layers, self.start, self.stop)

    def idle(self) -> ByTheWay:
        """The same without guidance, and with a factor of 1."""
        return replace(self, alpha=0.0, beta=1.0)

    def literal(self) -> AttendForm:
        """The maps by whole transforms, call by call."""
        seen: dict[str, tuple[Tensor, tuple[int, int]]] = {}
        return AttendForm(
            self.layers or (), lambda m: self._literal(m, seen), self.start, self.stop
        )

    def resolve(self, host: Host) -> ByTheWay:
        """Choose the layers, by their full names.

        Raises:
            ValueError: The model isn't temporal, or a layer has no counterpart in up_blocks.1.
        """
        return replace(self, layers=tuple(site.name for site in self._sites(host)))

    def bind(self, host: Host) -> Attend:
        """Make the edit; with ``alpha=0`` and ``beta=1`` it is a no-op."""
        sites = self._sites(host) if self.alpha or self.beta != 1 else []
        return Attend(tuple(sites), self.start, self.stop, self._attend)

    def _sites(self, host: Host) -> list[Site]:
        decoder = [s.name for s in host.sites if s.kind == "temporal" and _level(s.name) > 0]
        if not decoder:
            raise ValueError(
                f"bytheway: {host.model} has no temporal attention in up_blocks.1 or later; it "
                "acts on U-Nets with motion modules or temporal layers (AnimateDiff, ModelScope)"
            )
        found = chosen(self.name, host, self.layers or decoder, TEMPORAL)
        names = {site.name for site in found}
        for site in found:
            first = counterpart(site.name)
            if _level(site.name) < 1 or (self.alpha and first not in names):
                raise ValueError(
                    f"bytheway: {site.name} is led by {first or _FIRST}, which "
                    f"{'comes after it' if _level(site.name) < 1 else 'is not among the layers'}; "
                    "choose layers of up_blocks.1 and later ones with their counterparts"
                )
        return found

    def _attend(self, call: Call) -> Tensor:
        pass_, layout = call.pass_, call.layout
        if pass_ is None or pass_.rows.cond is None:
            raise NotImplementedError(
                "bytheway: energies are those of conditional rows, and this pass has none"
            )
        frames, rows = call.query.shape[2], pass_.rows.batch
        grid = places(self.name, call.site, len(call.query), rows, frames, layout)
        query, key = call.query.float(), as_query_heads(call.key, call.query.shape[1]).float()
        own = (query @ key.transpose(-1, -2) * call.scale).softmax(-1)
        first = own
        if _level(call.site.name) == 1:
            if self.alpha:
                pass_.notes[self.name, call.site.name] = own, grid
        elif self.alpha:
            first = self._first(call, grid)
        cond = pass_.rows.cond
        split, number = pass_.rows.branches, cond.start // (cond.stop - cond.start)
        new = self.edited(own, first, split, number, rows)
        value = as_query_heads(call.value, call.query.shape[1])
        return (new @ value.float()).to(call.query.dtype)

    def _first(self, call: Call, grid: tuple[int, int]) -> Tensor:
        """The counterpart's map, resized to a call's grid."""
        pass_, name = call.pass_, counterpart(call.site.name)
        noted = None if pass_ is None else pass_.notes.get((self.name, name))
        if noted is None and pass_ is not None and pass_.main is not None:
            # A branch that begins behind up_blocks.1 has the main pass's map of its rows.
            whole, its = pass_.main.notes[self.name, name]
            each, cond = len(whole) // pass_.main.rows.batch, pass_.main.rows.cond
            cond = cond or slice(0, pass_.main.rows.batch)
            noted = whole[cond.start * each : cond.stop * each], its
        if noted is None:
            raise RuntimeError(
                f"bytheway: {name} didn't run before {call.site.name} in this pass, so there is "
                "no map to lead by"
            )
        maps, its = noted
        return resized(maps, its, grid)

    def edited(self, own: Tensor, first: Tensor, branches: int, cond: int, rows: int) -> Tensor:
        """Maps "B H F F" as the method changes them.

        Args:
            own: The layer's, every place of every row.
            first: The leading block's maps, of the same shape.
            branches: Number of branches of guidance, one after the other.
            cond: The number of the conditional one.
            rows: Rows of the denoiser's batch.

        Raises:
            ValueError: The clip has too few frames for tau.
        """
        frames, samples = own.shape[-1], rows // branches
        if frames < 2 * self.tau + 2:  # The band would hold the constant, which rows sum to.
            raise ValueError(
                f"bytheway: tau={self.tau} needs {2 * self.tau + 2} frames or more, and this clip "
                f"has {frames}; use tau={frames // 2 - 1}"
            )
        mixed = own if first is own else own + self.alpha * (first - own)
        alone = frames == 2 * self.tau + 2  # The band is all but the constant.
        spectrum = None if alone else torch.fft.fft(mixed, dim=-1)
        band = high_band(frames, self.tau, own.device)

        def energy(squares: Tensor) -> Tensor:
            each = squares.sum(-1).mean((1, 2)).unflatten(0, (branches, samples, -1))
            chosen: Tensor = each[cond].mean(-1)
            return chosen

        before = energy(own.square())
        if spectrum is None:
            low = torch.full_like(before, 1 / frames)
            high = energy(mixed.square()) - low
        else:
            power = spectrum.abs().square() / frames
            high, low = energy(power * band), energy(power * ~band)
        beta = ((before - low) / high.clamp(min=1e-12)).clamp(min=0).sqrt().clamp(min=self.beta)
        beta = beta.repeat(branches).repeat_interleave(len(own) // rows)[:, None, None, None]
        if spectrum is None:
            flat: Tensor = beta * mixed + (1 - beta) / frames
            return flat
        new: Tensor = torch.fft.ifft(torch.where(band, beta * spectrum, spectrum), dim=-1).real
        return new / new.sum(-1, keepdim=True)

    def _literal(self, m: Map, seen: dict[str, tuple[Tensor, tuple[int, int]]]) -> Tensor:
        branches, cond = m.branches
        rows, (count, heads, frames, _) = m.split[0], m.weights.shape
        grid = places(self.name, m.site, count, rows, frames, m.layout)
        first = m.weights
        if _level(m.site.name) == 1:
            seen[m.site.name] = m.weights, grid
        else:
            first = resized(*seen[counterpart(m.site.name)], grid)
        mixed = (1 - self.alpha) * m.weights + self.alpha * first
        # Each frequency by its own cosines and sines.
        n = torch.arange(frames, dtype=torch.float64, device="cpu")
        waves = torch.exp(-2j * torch.pi * n[:, None] * n / frames)
        spectrum = mixed.to(waves.dtype) @ waves
        high = torch.zeros_like(spectrum)
        for k in range(frames // 2 - self.tau, frames // 2 + self.tau + 1):
            high[..., k] = spectrum[..., k]
        low, new = spectrum - high, torch.zeros_like(m.weights)
        per = count // rows
        for sample in range(rows // branches):
            at = (cond * (rows // branches) + sample) * per
            mine = slice(at, at + per)
            before = m.weights[mine].double().square().sum() / (per * heads * frames)
            e_low, e_high = (
                x[mine].abs().square().sum() / (per * heads * frames * frames) for x in (low, high)
            )
            beta = max(self.beta, max(0.0, float((before - e_low) / e_high)) ** 0.5)
            for branch in range(branches):
                at = (branch * (rows // branches) + sample) * per
                some = slice(at, at + per)
                back = (low[some] + beta * high[some]) @ waves.conj() / frames
                new[some] = (back.real / back.real.sum(-1, keepdim=True)).to(new)
        return new


def _level(name: str) -> int:
    """The number of the up-block that a module is in; -1 if it is in none."""
    part, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if part == "up_blocks" else -1


def counterpart(name: str) -> str:
    """The module at the same position of up_blocks.1."""
    return ".".join((_FIRST, *name.split(".")[2:]))


def high_band(frames: int, tau: int, device: Any = None) -> Tensor:
    """The frequencies of the high band, a bool mask."""
    k = torch.arange(frames, device=device)
    return (k >= frames // 2 - tau) & (k <= frames // 2 + tau)


def resized(maps: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Maps "B H F F" of every place of a grid for those of another grid.

    Args:
        maps: Rows of the denoiser's batch, of each its places, row by row.
        grid: Rows and columns of places.
        wanted: Height and width of the result's grid.
    """
    if grid == wanted:
        return maps
    whole = maps.unflatten(0, (-1, *grid)).flatten(3).permute(0, 3, 1, 2)
    whole = F.interpolate(whole, wanted, mode="bilinear", align_corners=False)
    flat: Tensor = whole.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, maps.shape[1:])
    return flat
