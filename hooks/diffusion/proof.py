"""The proof of what a denoiser's rows are, found out by running it on one call a few times more.

- With attention muted, no token hears of another. What a changed sample then reaches is the
  picture, what the changed text reaches isn't; a token that both reach, or a picture that isn't one
  piece, is refused. So are layers that run in another order, or attend to what aren't their rows.
- A change at a few places of the sample shows in the rows where a grid would have them, or the
  grid counts as unknown.
- With explicit N x N maps the denoiser gives what it gives; with rows of the picture that see
  themselves alone, what the engine's edit gives, and something else than without.
- Samples of a batch give alone what they give in it.

The rest (words, frames, temporal attention, blocks that a branch might skip) stays unproven, and
methods that need it are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion import kernel
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.families import Family
from regaze.hooks.diffusion.layouts import Layout, Order, halved
from regaze.hooks.diffusion.perturb import as_query_heads
from regaze.hooks.diffusion.probes import Seen, by_maps, muted, predict, reached
from regaze.hooks.diffusion.rows import call_of_rows
from regaze.hooks.diffusion.running import running
from regaze.hooks.diffusion.sites import find_sites
from regaze.hooks.precision import product_dtype

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference, as a share of the spread of the denoiser's output; others: 0.05."""
_PLACES = ((0.1, 0.7), (0.6, 0.2), (0.9, 0.9))


@dataclass(frozen=True)
class Proven(Layout):
    """The layout of a pass, as far as it was proven.

    Attributes:
        pictures: Place of the picture in an attention call, by the call's number of tokens.
    """

    pictures: Mapping[int, slice] = field(default_factory=dict)

    def image(self, order: Order, tokens: int) -> slice:
        """The slice of the picture's tokens in a call of so many.

        Raises:
            ValueError: No call of so many was seen.
        """
        if tokens not in self.pictures:
            raise ValueError(
                f"the denoiser was checked with attention calls of {sorted(self.pictures)} tokens, "
                f"and this one has {tokens}"
            )
        return self.pictures[tokens]

    def text(self, order: Order, tokens: int) -> slice:
        """Refuse: which token is which word isn't checked.

        Raises:
            ValueError: Always.
        """
        raise ValueError("which tokens are which words isn't known of a denoiser that was checked")


class Proof:
    """The proof of one call.

    Args:
        denoiser: The model.
        family: The family that was proposed for it.
        call: Arguments of the call, by name.
        batch: Number of rows of the call.
    """

    def __init__(self, denoiser: Any, family: Family, call: Mapping[str, Any], batch: int) -> None:
        self._denoiser, self._family, self._call, self._batch = denoiser, family, call, batch
        self._sites = [site for site in find_sites(denoiser) if site.layer is not None]
        self._sample: Any = call[family.sample]

    def layout(self) -> Proven:
        """Prove the layout of the call.

        Raises:
            ValueError: It couldn't be proven.
        """
        if not isinstance(self._sample, Tensor) or not self._sample.is_floating_point():
            raise self._no(f"its first argument, {self._family.sample}, is no tensor of latents")
        found = running(self._denoiser)
        latents = None if found is None else found.variables.get("latents")
        if isinstance(latents, Tensor) and latents.shape[1:] != self._sample.shape[1:]:
            raise self._no(
                f"it is called with a sample of {tuple(self._sample.shape)} where the pipeline's "
                f"latents are {tuple(latents.shape)}, and what the rest is would be a guess"
            )
        self._plain = predict(self._denoiser, self._call)
        if self._off(predict(self._denoiser, self._call), self._plain) > 0:
            raise self._no("it gives something else each time, as with dropout: call eval()")
        base = muted(self._denoiser, self._call)
        self._see_order(base)
        pictures = self._pictures(base)
        layout = self._with_grid(base, Proven(None, 0, False, pictures=self._by_count(pictures)))
        self._see_edits(pictures, layout)
        self._see_samples()
        return layout

    def _no(self, why: str) -> ValueError:
        return unproven(self._denoiser, why)

    def _other(self, names: Sequence[str]) -> dict[str, Any]:
        """The call with other values of some arguments."""
        made = torch.Generator().manual_seed(1)
        call = dict(self._call)
        for name in names:
            value = call[name]
            noise = torch.randn(value.shape, generator=made, dtype=torch.float32, device="cpu").to(
                value
            )
            call[name] = value + noise * value.std().clamp(min=0.1)
        return call

    def _see_order(self, base: Seen) -> None:
        """Check that the numbered layers ran in their order, each on rows that are its columns."""
        named = [site.name for site in self._sites]
        ran = [path for path in base if path in set(named)]
        if missing := [name for name in named if name not in base]:
            raise self._no(
                f"{missing[0]} made no call of scaled_dot_product_attention (another kernel, or "
                "another processor than diffusers' standard ones)"
            )
        if ran != named:
            first = next(a for a, b in zip(ran, named, strict=True) if a != b)
            raise self._no(f"{first} runs in another place than it is registered in")
        for name in named:
            for query, key in base[name]:
                if query.shape[1] != key.shape[1]:
                    raise self._no(
                        f"{name} attends from {query.shape[1]} rows to {key.shape[1]} columns, so "
                        "it isn't self- or joint attention"
                    )
                if len(query) != self._batch:
                    raise self._no(
                        f"{name} attends in a batch of {len(query)}, the denoiser was called with "
                        f"{self._batch}: whose rows these are (frames, windows) would be a guess"
                    )

    def _pictures(self, base: Seen) -> dict[str, slice]:
        """The picture's rows, by layer."""
        family, call = self._family, self._call
        beside = [
            name
            for name, value in call.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3
            if name != family.sample and name not in family.per_token
        ]
        by_sample = muted(self._denoiser, self._other([family.sample]))
        by_text = muted(self._denoiser, self._other(beside)) if beside else base
        found: dict[str, slice] = {}
        for site in self._sites:
            for number, (query, _) in enumerate(base[site.name]):
                own = reached(query, by_sample[site.name][number][0]) > 0
                text = reached(query, by_text[site.name][number][0]) > 0
                if bool((own & text).any()):
                    raise self._no(
                        f"in {site.name} row {int((own & text).nonzero()[0])} hears both of "
                        f"{family.sample} and of {', '.join(beside)} by another way than attention"
                    )
                where = own.nonzero().flatten().tolist()
                if not where:
                    raise self._no(f"{family.sample} reaches no row of {site.name}")
                rows = slice(where[0], where[-1] + 1)
                if not bool(own[rows].all()):
                    raise self._no(f"the rows of {site.name} that are the picture's have gaps")
                if found.setdefault(site.name, rows) != rows:
                    raise self._no(f"the picture lies elsewhere in each call of {site.name}")
        self._counts = {site.name: base[site.name][0][0].shape[1] for site in self._sites}
        return found

    def _by_count(self, pictures: Mapping[str, slice]) -> dict[int, slice]:
        """The picture's rows, by number of tokens."""
        found: dict[int, slice] = {}
        for name, rows in pictures.items():
            count = self._counts[name]
            if found.setdefault(count, rows) != rows:
                raise self._no(
                    f"of {count} tokens the picture's are {found[count]} in one layer and {rows} "
                    f"in {name}"
                )
        return found

    def _with_grid(self, base: Seen, layout: Proven) -> Proven:
        """The layout with its grid, where the sample has one and the rows follow it."""
        if self._sample.ndim != 4:
            return layout
        height, width = self._sample.shape[-2:]
        for side in range(1, min(height, width) + 1):
            rows, columns = height // side, width // side
            if height % side or width % side or not self._fits((rows, columns), layout):
                continue
            known = replace(layout, finest=(rows, columns), halves=True)
            places = [(int(down * rows), int(right * columns)) for down, right in _PLACES]
            if all(self._lies(base, known, row, column, side) for row, column in places):
                return known
        return layout

    def _fits(self, finest: tuple[int, int], layout: Proven) -> bool:
        """True if each layer has as many tokens of the picture as this grid has at its level."""
        for site in self._sites:
            picture = layout.pictures[self._counts[site.name]]
            if math.prod(halved(finest, site.level)) != picture.stop - picture.start:
                return False
        return True

    def _lies(self, base: Seen, layout: Proven, row: int, column: int, side: int) -> bool:
        """True if a change of one place reaches the rows of that place most."""
        call = dict(self._call)
        changed = self._sample.clone()
        place = changed[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
        place += 4 * self._sample.std()
        call[self._family.sample] = changed
        seen = muted(self._denoiser, call)
        rows, columns = layout.finest or (1, 1)
        for site in self._sites:
            picture = layout.pictures[self._counts[site.name]]
            moved = reached(base[site.name][0][0], seen[site.name][0][0])[picture]
            grid = halved((rows, columns), site.level)
            at = divmod(int(moved.argmax()), grid[-1])
            want = row * grid[-2] // rows, column * grid[-1] // columns
            # Convolutions blur where a change came from.
            blur = 0 if int((moved > 0).sum()) == 1 else 1
            if max(abs(a - b) for a, b in zip(at, want, strict=True)) > blur:
                return False
        return True

    def _see_edits(self, pictures: Mapping[str, slice], layout: Proven) -> None:
        """Check that maps are what is known here, and the engine's edit of them the literal one."""
        nothing = {name: slice(0, 0) for name in pictures}
        mapped = by_maps(self._denoiser, self._call, nothing)
        self._compare("its attention isn't softmax(QK' + mask) V", mapped, self._plain)
        literal = by_maps(self._denoiser, self._call, pictures)
        try:
            with kernel.editing(self._denoiser, self._sites, layout, _alone):
                edited = predict(self._denoiser, self._call)
        except RuntimeError as error:
            raise self._no(str(error)) from error
        self._compare("an edit isn't what the edited map gives", edited, literal)
        if not self._off(literal, self._plain) > self._limit:
            raise self._no("rows of the picture that see themselves alone change nothing")

    def _see_samples(self) -> None:
        """Check that samples can be taken out of a batch."""
        for number in range(self._batch if self._batch > 1 else 0):
            rows = slice(number, number + 1)
            alone = predict(
                self._denoiser, call_of_rows(self._call, rows, self._batch, self._family)
            )
            what = f"sample {number} of a batch gives something else alone"
            self._compare(what, alone, self._plain[rows])

    @property
    def _limit(self) -> float:
        return ROUNDING.get(product_dtype(self._plain.dtype, self._plain.device), 0.05)

    def _off(self, one: Tensor, other: Tensor) -> float:
        """Largest difference, as a share of the spread."""
        if one.shape != other.shape:
            return math.inf
        spread = self._plain.float().std().clamp(min=1e-12)
        return float((one.float() - other.float()).abs().max() / spread)

    def _compare(self, what: str, one: Tensor, other: Tensor) -> None:
        if not self._off(one, other) <= self._limit:
            raise self._no(
                f"{what}; its output is off by {self._off(one, other):.1e} of its spread (allowed: "
                f"{self._limit:.0e})"
            )


def _alone(call: Call) -> Tensor:
    """Rows of the picture that see themselves alone."""
    out, rows = call.output.clone(), call.image()
    out[:, :, rows] = as_query_heads(call.own, out.shape[1])[:, :, rows]
    return out


def unproven(denoiser: Any, why: str) -> ValueError:
    """The error for what couldn't be proven."""
    return ValueError(
        f"{type(denoiser).__name__} isn't known here, and trying couldn't prove what it is: {why}. "
        "If you know, say it in one entry of regaze.hooks.diffusion.families.FAMILIES"
    )
