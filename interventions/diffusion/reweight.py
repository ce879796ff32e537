"""Reweight: how much single words of the prompt count, in attention to the text.

With A the map of the picture's rows, V the text's values and c a number for each column:

    values    A diag(c) V, rows no longer summing to 1: Prompt-to-Prompt's reweighting
    logits    softmax(log A + log c) V, which takes from the other columns what it gives

Hertz et al., arXiv 2208.01626, section 3.2; google/prompt-to-prompt@9c472e4. ``A diag(c) V`` is
attention on scaled values, so it costs nothing. Only the conditional rows are edited. In joint
attention only the picture's rows are, text keeps reading text as it did; there "logits" is the
default, because a row's columns are the picture's, too, and a share of its sum is no longer known.

There the edited prompt gets the *first* prompt's map; here a prompt its own, which is the same for
one prompt, and ``maps="first"`` is the paper's form, for prompts that are the same or differ in
words of as many tokens. A window ends at step ``int(stop (N + 1))`` there and at ``stop N`` here.
Copying maps of self-attention, replacement and refinement of words, which edit pictures, aren't
offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import TEXT, Site
from regaze.hooks.diffusion.works import Work
from regaze.interventions.base import Intervention, register
from regaze.interventions.diffusion.reweighting import Weighted
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen
from regaze.interventions.diffusion.word_columns import read_weights


@register
@dataclass(frozen=True)
class Reweight(ByLayers):
    """Strengths of words.

    Attributes:
        words: ``{"red": 1.4, "a cat": 0.5}``; every occurrence counts, with all its tokens. Or
            ``"(a red:1.4) cat"``, of which the pipeline gets the prompt without parentheses
            (`read_weights`). Numbers in place of words are columns of the text stream. A strength
            of 1 is a no-op.
        how: "values" or "logits"; by default "values" in models with cross-attention, "logits" in
            those with joint attention.
        absent: The answer to a prompt that lacks one of the words: "raise", or "skip" it.
        maps: Map that is scaled: each prompt's "own", or the "first" prompt's, as in the paper.
        windows: Shares of the sampling steps from and to which single words are scaled, within
            ``start`` and ``stop``: ``{"red": [0.2, 0.5]}``; before and after, a word is as it
            would be, with ``maps="first"`` in its prompt's own map.
        layers: Layers: parts of module paths or numbers of joint attention; all by default.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends.
    """

    name: ClassVar[str] = "reweight"
    summary: ClassVar[str] = "make words of the prompt count more or less"
    paper: ClassVar[str] = "arXiv 2208.01626"
    acts_on: ClassVar[str] = "diffusers pipelines"

    words: Any = ()
    how: str | None = None
    absent: str = "raise"
    maps: str = "own"
    windows: Any = ()
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        words = self.words
        if isinstance(words, str):
            text = words
            _, words = read_weights(text)
            if not words:
                raise ValueError(
                    f"reweight: {shown(text)} gives no word a strength; write (red:1.4) in it, or "
                    'a mapping {"red": 1.4}'
                )
        if isinstance(words, Mapping):
            object.__setattr__(self, "words", tuple(words.items()))
        if isinstance(self.windows, Mapping):
            pairs = self.windows.items()
            given = ((word, tuple(w) if isinstance(w, list) else w) for word, w in pairs)
            object.__setattr__(self, "windows", tuple(given))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        pairs = self.words if isinstance(self.words, tuple) else (None,)
        for pair in pairs:
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise ValueError(
                    f'reweight: words must be {{"red": 1.4}} or "(red:1.4) cat", got '
                    f"{shown(self.words)}"
                )
            word, strength = pair
            if not _is_word(word):
                raise ValueError(f"reweight: words holds {word!r}, no word or column number")
            check_number("reweight", f"words[{word!r}]", strength)
            if self.how == "logits" and strength < 0:
                raise ValueError(
                    f'reweight: words[{word!r}] is {strength}, and how="logits" needs 0 or more'
                )
        if self.how is not None:
            check_choice("reweight", "how", self.how, ("values", "logits"))
        check_choice("reweight", "maps", self.maps, ("own", "first"))
        check_choice("reweight", "absent", self.absent, ("raise", "skip"))
        check_where("reweight", self.layers, self.start, self.stop)
        self._check_windows()

    def check_given(self) -> None:
        """Check that words are given."""
        if not self.words:
            raise ValueError(
                "reweight makes words count more or less, and none are given: set words to "
                '"(red:1.4) cat" or {"red": 1.4}'
            )

    def _check_windows(self) -> None:
        if self.windows and self.maps == "first" and self.how == "logits":
            raise ValueError(
                'reweight: windows with maps="first" mix columns of two maps, which how="values" '
                "alone can"
            )
        for pair in self.windows if isinstance(self.windows, tuple) else (None,):
            fits = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], tuple)
            if not (fits and len(pair[1]) == 2 and _is_word(pair[0])):  # type: ignore[index]
                raise ValueError(
                    'reweight: windows must be {"red": [0.2, 0.5]}, shares of the steps, got '
                    f"{shown(self.windows)}"
                )
            word, (start, stop) = pair  # type: ignore[misc]
            if word not in dict(self.words):
                raise ValueError(f"reweight: windows names {word!r}, which words gives no strength")
            for end in (start, stop):
                check_number("reweight", f"windows[{word!r}]", end)
            if not self.start <= start < stop <= self.stop:
                raise ValueError(
                    f"reweight: windows[{word!r}] is {start} to {stop}, which must lie within "
                    f"start={self.start} and stop={self.stop}"
                )

    def idle(self) -> Reweight:
        """The same with all words as strong as they are."""
        return replace(self, words=tuple((word, 1.0) for word, _ in self.words))

    def controls(self) -> dict[str, Intervention]:
        """The same words made weaker that were made stronger; none of words made weaker."""
        strengths = [strength for _, strength in self.words]
        # Or each would be the control of the other.
        if any(strength <= 0 for strength in strengths) or math.prod(strengths) <= 1:
            return {}
        return {"inverse": replace(self, words=tuple((w, 1 / s) for w, s in self.words))}

    def literal(self) -> AttendForm | None:
        """Maps with scaled columns; None of words, whose columns a run alone knows, or windows."""
        words = any(isinstance(word, str) for word, _ in self.words)
        if self.maps == "first" or self.windows or words:
            return None
        return AttendForm(
            self.layers or (), self._literal_map, self.start, self.stop, cond_only=True
        )

    def _literal_map(self, m: Map) -> Tensor:
        factors = torch.ones(m.weights.shape[-2:], dtype=torch.float32, device="cpu").to(m.weights)
        joint = m.site.kind == "joint"
        rows = m.image if joint else slice(None)
        first = m.layout.text(m.site.order, m.weights.shape[-1]).start if joint else 0
        for column, strength in self.words:
            factors[rows, first + column] *= strength
        weights = m.weights * factors
        if self.how == "logits":
            weights = weights / weights.sum(-1, keepdim=True)
        return weights

    def resolve(self, host: Host) -> Reweight:
        """Choose the layers, by their full names, and how.

        Raises:
            ValueError: The model reads no text by attention, or a layer doesn't exist.
        """
        sites = self.sites(host)
        joint = any(site.kind == "joint" for site in sites)
        how = self.how or ("logits" if joint else "values")
        return replace(self, how=how, layers=tuple(site.name for site in sites))

    def sites(self, host: Host) -> list[Site]:
        """The chosen layers of a model."""
        if self.layers is not None:
            return chosen("reweight", host, self.layers, TEXT)
        found = [site for site in host.sites if site.kind in TEXT]
        if not found:
            raise ValueError(f"reweight: {host.model} has no attention to text; it reads no prompt")
        return found

    def bind(self, host: Host) -> Work:
        """Make the work."""
        changed = any(strength != 1 for _, strength in self.words) or self.maps == "first"
        sites = tuple(self.sites(host)) if changed else ()
        return Weighted(
            sites, self.start, self.stop,
            self.words, self.windows, self.how, self.absent, self.maps,
        )  # fmt: skip


def _is_word(word: Any) -> bool:
    column = isinstance(word, int) and not isinstance(word, bool) and word >= 0
    return column or (isinstance(word, str) and bool(word.strip()))
