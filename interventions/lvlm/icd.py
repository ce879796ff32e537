"""ICD: contrast next-token scores with those under a disturbing instruction.

With l the scores of the model as it is and l' those of a second run on the same picture, told to be
a bad observer:

    s = (1 + alpha) l - alpha l',   -inf where l < max l + log beta

Wang et al., arXiv 2403.18715, section 3.2; reference code p1k0pan/ICD@2fa44c5. There the
disturbance takes the place of LLaVA's system prompt; which of five texts made the tables isn't in
the code. With VCD's noise beside it the code adds both contrasts up, 2 (1 + alpha) l -
alpha (l' + l''), which is their mean at half the temperature.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Pass
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_images, require_scores
from regaze.interventions.lvlm.contrasts import (
    CutEdit,
    check_seed,
    contrasted,
    cut,
    literal_cut,
    require_image,
    with_images,
)
from regaze.interventions.lvlm.noise import STEPS, noised

PREFIX = (
    "You are a careless observer: you mix things up and describe pictures vaguely and wrongly. "
)
_TYPES = ("token_type_ids", "mm_token_type_ids")


@register
@dataclass(frozen=True)
class ICD(Intervention):
    """Contrast the instruction with a disturbing one.

    Attributes:
        alpha: Strength. 0 leaves the cut alone (a control), without a second run.
        beta: Tokens less likely than this share of the likeliest are never chosen; 0 cuts nothing.
        prefix: The disturbing instruction; ours, as the paper's isn't settled.
        place: "before": in front of the picture; "instead": in place of the text before it (as the
            code does with LLaVA's system prompt), so that it has to name the user's turn itself.
        noise: With a third run, whose picture has VCD's noise of this step on it.
        seed: Seed of that noise.
        combine: With a third run: the "mean" of both contrasts, or their "sum" as in the code.
    """

    name: ClassVar[str] = "icd"
    summary: ClassVar[str] = "contrast scores with those under a disturbing instruction"
    paper: ClassVar[str] = "arXiv 2403.18715"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"alpha": 1.0, "beta": 0.1}, "p1k0pan/ICD@2fa44c5, defaults of the POPE runners"
        ),
        "instructblip-vcd": Preset(
            {"alpha": 1.0, "beta": 0.1, "noise": 500, "combine": "sum"},
            "p1k0pan/ICD@2fa44c5, InstructBLIP's loop with both contrasts",
        ),
    }

    alpha: float = 1.0
    beta: float = 0.1
    prefix: str = PREFIX
    place: Literal["before", "instead"] = "before"
    noise: int | None = None
    seed: int = 0
    combine: Literal["mean", "sum"] = "mean"

    @property
    def shares_prefix(self) -> bool:
        """True without a second run, which would read whole prompts."""
        return self.alpha == 0

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("icd", "alpha", self.alpha, low=0, high=100)
        check_number("icd", "beta", self.beta, low=0, high=1)
        if not isinstance(self.prefix, str) or not self.prefix.strip():
            raise ValueError(f"icd: prefix must be a text that disturbs, got {self.prefix!r}")
        check_choice("icd", "place", self.place, ("before", "instead"))
        check_choice("icd", "combine", self.combine, ("mean", "sum"))
        if self.noise is not None:
            check_indices("icd", "noise", (self.noise,), STEPS, "the noise schedule")
        check_seed("icd", self.seed)

    def controls(self) -> Mapping[str, Intervention]:
        """The cut alone: what is left of the gain comes from what is never chosen."""
        return {"cut only": replace(self, alpha=0.0)} if self.alpha and self.beta else {}

    def idle(self) -> ICD:
        """The same without contrast or cut."""
        return replace(self, alpha=0.0, beta=0.0)

    def literal(self) -> ScoreForm:
        """The formula, with whole runs under the disturbance, and under noise if that is asked."""

        def edit(scores: Tensor, whole: Whole) -> Tensor:
            if not whole.has_image:
                return scores
            words = Words.of(self, whole.host)
            first = whole.kept.tolist().index(False)
            mixed = scores + self.alpha * (
                scores - whole.after(words.disturb(whole.inputs, [first]))
            )
            if self.noise is not None:
                config = whole.host.model.config
                other = whole.after(noised(whole.inputs, config, self.noise, self.seed))
                both = mixed + scores + self.alpha * (scores - other)
                mixed = both if self.combine == "sum" else both / 2
            return literal_cut(mixed, scores, self.beta)

        return ScoreForm(edit)

    def resolve(self, host: Host) -> ICD:
        """Check that there can be pictures, and a tokenizer for the prefix."""
        require_images("ICD", host)
        require_scores("ICD", host)
        if self.alpha and not callable(getattr(host.processor, "tokenizer", host.processor)):
            raise ValueError(
                "icd puts words into the prompt and needs the tokenizer: attach(model, ICD(), "
                "processor=processor)"
            )
        return self

    def bind(self, host: Host) -> Edit:
        """Make the edit; no second run if alpha is 0."""
        return _ICDEdit(self, host) if self.alpha else CutEdit(self.beta)


class _ICDEdit(Edit):
    def __init__(self, spec: ICD, host: Host) -> None:
        super().__init__(())
        disturbed = functools.partial(_disturbed, Words.of(spec, host))
        if spec.noise is None:
            combine = functools.partial(contrasted, spec.alpha, spec.beta)
            self.branches = (Branch(disturbed, combine),)
            return
        noisy = functools.partial(_noisy, spec, host.model.config)
        self.branches = (
            Branch(disturbed, functools.partial(_first, spec)),
            Branch(noisy, functools.partial(_second, spec)),
        )


def both_contrasts(clean: Tensor, disturbed: Tensor, noisy: Tensor, spec: ICD) -> Tensor:
    """Scores of three runs, "... V", contrasted and cut."""
    return _add(spec, _begin(spec, clean, disturbed), noisy)


def _begin(spec: ICD, clean: Tensor, disturbed: Tensor) -> Tensor:
    mixed = 2 * (1 + spec.alpha) * clean - spec.alpha * disturbed
    return cut(mixed if spec.combine == "sum" else mixed / 2, clean, spec.beta)


def _add(spec: ICD, mixed: Tensor, noisy: Tensor) -> Tensor:
    return mixed - (spec.alpha if spec.combine == "sum" else spec.alpha / 2) * noisy


def _first(spec: ICD, scores: Tensor, other: Tensor, pass_: Pass) -> Tensor:
    return with_images(_begin(spec, scores, other), scores, pass_)


def _second(spec: ICD, scores: Tensor, other: Tensor, pass_: Pass) -> Tensor:
    return with_images(_add(spec, scores, other), scores, pass_)


def _disturbed(words: Words, given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    require_image("icd", pass_, "itself under another instruction")
    image = pass_.tokens.is_kind(Kind.IMAGE)
    first = [row.index(True) if True in row else -1 for row in image.tolist()]
    return words.disturb(given, first)


def _noisy(spec: ICD, config: Any, given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    return noised(given, config, spec.noise or 0, spec.seed)


@dataclass(frozen=True)
class Words:
    """A disturbance as tokens, and where it goes.

    Attributes:
        ids: Token ids.
        special: Ids of tokens that are no text, such as what opens a picture.
        bos: Id of the token that begins texts, if there is one.
        pad: The token that fills rows up.
        replaces: True if the text before the picture makes way.
    """

    ids: tuple[int, ...]
    special: frozenset[int]
    bos: int | None
    pad: int
    replaces: bool

    @classmethod
    def of(cls, spec: ICD, host: Host) -> Words:
        """The disturbance of a spec in a model's tokens."""
        tokenizer: Any = getattr(host.processor, "tokenizer", host.processor)
        ids = tuple(tokenizer(spec.prefix, add_special_tokens=False).input_ids)
        special = frozenset(tokenizer.all_special_ids)
        pad = tokenizer.pad_token_id
        replaces = spec.place == "instead"
        return cls(ids, special, tokenizer.bos_token_id, 0 if pad is None else pad, replaces)

    def disturb(self, given: Mapping[str, Any], first: Sequence[int]) -> dict[str, Any]:
        """A model's arguments with the disturbance in its prompts.

        Args:
            given: The arguments.
            first: The column of each row's first picture, -1 for none.

        Raises:
            ValueError: There are no token ids.
        """
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ValueError("icd puts words into the prompt's input_ids, and there are none")
        mask = given.get("attention_mask")
        real = torch.ones_like(ids) if mask is None else mask.long()
        types = [name for name in _TYPES if isinstance(given.get(name), Tensor)]
        rows = [
            self._row(ids[n], real[n].bool(), [given[name][n] for name in types], column)
            for n, column in enumerate(first)
        ]
        columns = max(len(row[0]) for row in rows)
        filled = [self._fill(row, columns) for row in rows]
        names = ("input_ids", *types, "attention_mask")
        columns_of = zip(*filled, strict=True)
        return {**given, **{n: torch.stack(v) for n, v in zip(names, columns_of, strict=True)}}

    def _row(self, ids: Tensor, real: Tensor, types: list[Tensor], column: int) -> list[Tensor]:
        start = int(real.int().argmax())
        begin = start + int(int(ids[start]) == self.bos)
        at = begin if column < 0 else column
        while at > begin and int(ids[at - 1]) in self.special:
            at -= 1
        kept = torch.ones_like(real)
        kept[begin : at if self.replaces else begin] = False
        words = ids.new_tensor(self.ids)
        found = []
        for values, new in ((ids, words), *((t, torch.zeros_like(words)) for t in types)):
            before, behind = values[:at][(kept & real)[:at]], values[at:][real[at:]]
            found.append(torch.cat([before, new.to(values), behind]))
        return found

    def _fill(self, row: list[Tensor], columns: int) -> list[Tensor]:
        missing, pad = columns - len(row[0]), torch.nn.functional.pad
        ids, *types = row
        filled = [pad(ids, (missing, 0), value=self.pad), *(pad(t, (missing, 0)) for t in types)]
        return [*filled, pad(torch.ones_like(ids), (missing, 0))]
