"""Reweight: how much single words of the prompt count, in attention to the text.

With A the map of the picture's rows, V the text's values and c a number for each column:

    values    A diag(c) V, rows no longer summing to 1: Prompt-to-Prompt's reweighting
    logits    softmax(log A + log c) V, which takes from the other columns what it gives

Hertz et al., arXiv 2208.01626, section 3.2; google/prompt-to-prompt@9c472e4. ``A diag(c) V`` is
attention on scaled values, so it costs nothing. Only the conditional rows are edited. In joint
attention only the picture's rows are, text keeps reading text as it did; there "logits" is the
default, because a row's columns are the picture's, too, and a share of its sum is no longer known.

There the edited prompt gets the *first* prompt's map; here a prompt its own, which is the same for
one prompt, and ``maps="first"`` is the paper's form. Its window ends at step ``int(stop (N + 1))``
there and at ``stop N`` here. Copying maps of self-attention, replacement and refinement of words,
and windows of single words aren't offered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.perturb import mask_as_numbers
from regaze.hooks.diffusion.sites import TEXT, Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.base import Intervention, register
from regaze.interventions.diffusion.where import check_where, chosen

_WEIGHTED = re.compile(r"\(([^():]+):\s*([-+0-9.eE]+)\s*\)")


def read_weights(text: str) -> tuple[str, dict[str, float]]:
    """A prompt and its words' strengths from ``(a red:1.4) cat``.

    Args:
        text: It; a weighted phrase stands in parentheses, with a colon and a number.

    Returns:
        The prompt as it goes to the pipeline, and the strengths.

    Raises:
        ValueError: Parentheses without a number, or within others.
    """
    words = {phrase.strip(): float(weight) for phrase, weight in _WEIGHTED.findall(text)}
    plain = _WEIGHTED.sub(lambda found: found[1].strip(), text)
    if re.search(r"[()]", plain):
        raise ValueError(
            f"reweight: {text!r}: write a strength as (a red:1.4), with a number, and no "
            "parentheses within others"
        )
    return plain, words


@register
@dataclass(frozen=True)
class Reweight(Intervention):
    """Strengths of words.

    Attributes:
        words: ``{"red": 1.4, "a cat": 0.5}``; every occurrence counts, with all its tokens. Or
            ``"(a red:1.4) cat"``, of which the pipeline gets the prompt without parentheses
            (`read_weights`). Numbers in place of words are columns of the text stream. A strength
            of 1 is a no-op.
        how: "values" or "logits"; by default "values" in models with cross-attention, "logits" in
            those with joint attention.
        absent: What happens if a prompt lacks one of the words: "raise", or "skip" it.
        maps: Whose map is scaled: each prompt's "own", or the "first" prompt's, as in the paper.
        layers: Where: parts of module paths or numbers of joint attention; all by default.
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
        if isinstance(self.layers, (str, int)):
            object.__setattr__(self, "layers", (self.layers,))
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
            column = isinstance(word, int) and not isinstance(word, bool) and word >= 0
            if not column and not (isinstance(word, str) and word.strip()):
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

    def idle(self) -> Reweight:
        """All words as strong as they are."""
        return replace(self, words=tuple((word, 1.0) for word, _ in self.words))

    def controls(self) -> dict[str, Intervention]:
        """The same words made weaker that were made stronger; none of words made weaker."""
        strengths = [strength for _, strength in self.words]
        # Or each would be the control of the other.
        if any(strength <= 0 for strength in strengths) or math.prod(strengths) <= 1:
            return {}
        return {"inverse": replace(self, words=tuple((w, 1 / s) for w, s in self.words))}

    def literal(self) -> AttendForm | None:
        """Maps with scaled columns; None if it is words, whose columns only a run knows."""
        if self.maps == "first" or any(isinstance(word, str) for word, _ in self.words):
            return None
        return AttendForm(
            self.layers or (), self._literal_map, self.start, self.stop, cond_only=True
        )

    def _literal_map(self, m: Map) -> Tensor:
        factors = torch.ones(m.weights.shape[-2:]).to(m.weights)
        joint = m.site.kind == "joint"
        rows = m.image if joint else slice(None)
        first = m.image.stop if joint and m.image.start == 0 else 0
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
        return _Weighted(sites, self.start, self.stop, self)


@dataclass(frozen=True)
class _Weighted(Work):
    """Scales what words give."""

    spec: Reweight = Reweight()
    factors: Tensor | None = None

    def begin(self, run: Run) -> Work:
        """Find the words in the run's prompts."""
        length = max(part.columns.stop for part in run.text)
        factors = torch.ones(run.samples, length)
        for sample in range(run.samples):
            for word, strength in self.spec.words:
                if self.spec.absent == "skip" and not _holds(run.text, sample, word):
                    continue
                factors[sample, columns_of("reweight", word, run.text, sample, length)] *= strength
        return replace(self, factors=factors)

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """All layers, in passes with conditional rows."""
        return () if pass_.rows.cond is None else self.sites

    def attend(self, call: Call) -> Tensor:
        """Head outputs with words as strong as was asked."""
        factors = self._of_rows(call)
        query, key = call.query, call.key
        if self.spec.maps == "first":
            query, key = (_first(call, x) for x in (query, key))
        if call.site.kind == "cross":
            return self._weighted(call, query, key, slice(None), factors)
        image, text, rows = call.image(), call.text(), query.shape[2]
        if image.start >= image.stop:
            return call.output
        columns = factors.new_ones(len(factors), key.shape[2])
        columns[:, text] = factors[:, : text.stop - text.start]
        out = []
        for part in (slice(0, image.start), image, slice(image.stop, rows)):
            if part == image:
                out.append(self._weighted(call, query, key, image, columns))
            elif part.start < part.stop:
                mask = _rows(call.mask, part)
                named = {} if mask is None else {"attn_mask": mask}
                out.append(call.kernel(call.query[:, :, part], call.key, call.value, **named))
        return torch.cat(out, 2)

    def _weighted(
        self, call: Call, query: Tensor, key: Tensor, rows: slice, factors: Tensor
    ) -> Tensor:
        mask = _rows(call.mask, rows)
        value, named = call.value, {} if mask is None else {"attn_mask": mask}
        if self.spec.how == "values":
            value = value * factors[:, None, :, None].to(value)
        else:
            bias = factors.log()[:, None, None]
            bias = bias if mask is None else bias + mask_as_numbers(mask)
            named["attn_mask"] = bias.to(query.dtype)
        return call.kernel(query[:, :, rows], key, value, **named)

    def _of_rows(self, call: Call) -> Tensor:
        """Each row's factors, "B T": those of other branches are 1."""
        pass_ = call.pass_
        if pass_ is None:
            raise RuntimeError("reweight edits passes of a denoiser")
        found, cond = self.factors, pass_.rows.cond or slice(0, pass_.rows.batch)
        length = call.layout.n_words
        if found is None:  # A bare denoiser, which was given no prompt.
            found = torch.ones(1, length)
            for word, strength in self.spec.words:
                part = (Part("text", slice(0, length), None),)
                found[0, columns_of("reweight", word, part, 0, length)] *= strength
        found = found.to(call.query.device)
        rows = cond.stop - cond.start
        factors = found.new_ones(pass_.rows.batch, length)
        factors[cond, : found.shape[1]] = found.repeat_interleave(rows // len(found), 0)
        return factors.repeat_interleave(call.samples().frames, 0)


def _holds(text: Sequence[Part], sample: int, word: str | int) -> bool:
    """Whether a prompt isn't known to lack a word."""
    prompts = [part.prompts[sample] for part in text if part.prompts is not None]
    return isinstance(word, int) or not prompts or any(one.find(word) for one in prompts)


def columns_of(
    method: str, word: str | int, text: Sequence[Part], sample: int, length: int
) -> list[int]:
    """The columns of a word in all parts of a text stream.

    Raises:
        ValueError: It isn't in the prompt, or columns aren't known by words.
    """
    if isinstance(word, int):
        if word >= length:
            raise ValueError(f"{method}: column {word} doesn't exist; the text has {length}")
        return [word]
    found, listed = [], []
    for part in text:
        if part.prompts is None:
            raise ValueError(
                f"{method}: which columns hold {word!r} isn't known, because the pipeline was "
                "given embeddings (or how it reads prompts isn't known); give column numbers"
            )
        prompt = part.prompts[sample]
        listed.append(prompt.listed())
        found += [part.columns.start + i for tokens in prompt.find(word) for i in tokens]
    if not found:
        raise ValueError(
            f"{method}: {word!r} isn't in the prompt; its tokens are {'; '.join(listed)}"
        )
    return sorted(set(found))


def _first(call: Call, x: Tensor) -> Tensor:
    """The conditional rows replaced by the first sample's."""
    if call.pass_ is None or call.site.kind != "cross":
        raise NotImplementedError('reweight: maps="first" is a form of cross-attention')
    rows, frames = call.pass_.rows, call.samples().frames
    cond = rows.cond or slice(0, rows.batch)
    one = x[cond.start * frames : (cond.start + 1) * frames]
    copies = one.repeat(cond.stop - cond.start, 1, 1, 1)
    return torch.cat([x[: cond.start * frames], copies, x[cond.stop * frames :]])


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """A kernel's mask for some of its rows."""
    whole = mask is None or mask.shape[-2] == 1 or rows == slice(None)
    return mask if whole or mask is None else mask[..., rows, :]
