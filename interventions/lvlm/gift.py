"""GIFT: look at what the gaze moved to while the question was read.

From attention a of layer l* while the prompt is read, over question rows i, image columns j:

    d_hij = max(a_hij - a_h,i-1,j, 0)
    S_j   = mean of d over content words i and the half of the heads where it sums highest,
            clamped to mean +- 3 std over the image, then scaled to [0, 1]

At the row that predicts, in each layer to enhance, heads chosen anew each time:

    a_j <- a_j exp(alpha S_j)   on the image, in the half of the heads that see most of it
    a_j <- a_j beta r           on the question, in the half of the heads that see most of that
    rows are divided by their sums

with r the factor by which the first step raised the image's mass over its heads. Two logit
biases, exactly. arXiv 2510.22067; amazon-science/GIFT@e20b8a9. There the saliency costs a second
prompt with all maps kept; question rows stand before the row that is edited, so they are the same
in both, and here one prompt does. If l* lies in or behind the enhanced layers, the prompt's last
row is run again (`regaze.hooks.again`).

The code has no beta and a fixed l* (the paper takes the layer with the largest shift, once for a
model); of a word that stands in the question twice it looks at the last place (``repeats="last"``);
a question without content words gives NaN there, here all its tokens count.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.handover import Handover
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm, Probe, ProbeForm, reweighed
from regaze.hooks.passes import Columns, Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers, require_again, require_patches
from regaze.interventions.lvlm.content_words import (
    content_of,
    find_tagger,
    find_trim,
    question_columns,
    require_tagger,
)
from regaze.interventions.lvlm.gift_gaze import Gaze, ReadGaze

_SOURCE = "amazon-science/GIFT@e20b8a9, configs"


@register
@dataclass(frozen=True)
class GIFT(Intervention):
    """Raise attention to what the gaze moved to, and to the question as much.

    Attributes:
        alpha: Strength; weights are multiplied by up to exp(alpha). 5 for LLaVA-1.5, 4 for
            Qwen2-VL. 0 is a no-op.
        layers: Layers to enhance; by default 12 to 22 of 32 (LLaVA-1.5-7B), at the same depth in
            other models.
        saliency: Layers whose attention shows where the gaze moved; by default 11 of 32.
        beta: Factor of the question's boost; 1 in the paper.
        words: Tagger of content words: "spacy" (as the paper), "nltk", "all" (every token counts),
            or "auto": the first of them that is installed, and "all" without a tokenizer.
        repeats: Places that count of a word that stands in the question twice: "all", or the "last"
            (the code).
        trim: Numbers of template tokens between image and question, and behind the question;
            read off the processor's chat template by default.
    """

    name: ClassVar[str] = "gift"
    summary: ClassVar[str] = "boost what the gaze moved to while the question was read"
    paper: ClassVar[str] = "arXiv 2510.22067"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"alpha": 5.0, "layers": range(12, 23), "saliency": (11,), "trim": (2, 5)}, _SOURCE
        ),
        "llava-1.5-13b": Preset(
            {"alpha": 5.0, "layers": range(14, 21), "saliency": (10,), "trim": (2, 5)}, _SOURCE
        ),
        "qwen2-vl-7b": Preset(
            {"alpha": 4.0, "layers": range(5, 19), "saliency": (14,), "trim": (1, 5)}, _SOURCE
        ),
    }

    alpha: float = 5.0
    layers: tuple[int, ...] | None = None
    saliency: tuple[int, ...] | None = None
    beta: float = 1.0
    words: Literal["auto", "spacy", "nltk", "all"] = "auto"
    repeats: Literal["all", "last"] = "all"
    trim: tuple[int, int] | None = None

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("gift", "alpha", self.alpha, low=0, high=50)
        check_number("gift", "beta", self.beta, low=1e-6, high=100)
        check_choice("gift", "words", self.words, ("auto", "spacy", "nltk", "all"))
        check_choice("gift", "repeats", self.repeats, ("all", "last"))
        if self.saliency == ():
            raise ValueError("gift: saliency must name at least one layer")
        if self.trim is not None and not (
            isinstance(self.trim, tuple)
            and len(self.trim) == 2
            and all(type(n) is int and n >= 0 for n in self.trim)
        ):
            raise ValueError(
                f"gift: trim must be two numbers of tokens such as [2,5], got {self.trim!r}"
            )

    @property
    def late(self) -> bool:
        """True if a layer is enhanced before the saliency is known; on a resolved spec."""
        return max(self.saliency or (0,)) >= min(self.layers or (0,), default=0)

    def idle(self) -> GIFT:
        """The same with nothing raised."""
        return replace(self, alpha=0.0, beta=1.0)

    def resolve(self, host: Host) -> GIFT:
        """Choose layers and tagger, and find where questions stand.

        Raises:
            ValueError: A layer doesn't exist, the tagger isn't installed, or the saliency comes too
                late for a model whose last row can't be run again.
        """
        require_patches("GIFT", host)
        n = len(host.sites)
        first, last = at_depth(12, n), at_depth(23, n)
        layers = choose_layers("gift", host, self.layers, range(first, max(last, first + 1)))
        earlier = [min(at_depth(11, n), max(first - 1, 0))]
        try:
            saliency = choose_layers("gift", host, self.saliency, earlier)
        except ValueError as error:
            raise ValueError(str(error).replace("layers holds", "saliency holds")) from error
        words = find_tagger(host.processor) if self.words == "auto" else self.words
        if words in ("spacy", "nltk"):
            require_tagger("gift", words, host.processor)
        trim = find_trim(host) if self.trim is None else self.trim
        spec = replace(self, layers=layers, saliency=saliency, words=words, trim=trim)
        if layers and spec.late:
            require_again("GIFT", host)
        return spec

    def bind(self, host: Host) -> tuple[Edit, ...]:
        """Make the reader and the edit; no layers if nothing is raised."""
        found: Handover[Gaze | None] = Handover()
        acts = (self.alpha != 0 or self.beta != 1) and bool(self.layers)
        writer = _LateBoost if acts and self.late else _Boost
        layers = self.saliency or () if acts else ()
        trim = self.trim or (0, 0)
        read = ReadGaze(layers, found, host.processor, self.words, self.repeats, trim)
        return read, writer(self, found, acts)

    def literal(self) -> ProbeForm:
        """The formula above on the maps of a run of the prompt, word by word and head by head."""
        return ProbeForm(self._literal, self.saliency or (), again=self.late)

    def _literal(self, seen: Probe) -> MapForm:
        asks = torch.tensor(
            [not (i or s) for i, s in zip(seen.image, seen.structure, strict=True)], device="cpu"
        )
        image = torch.tensor(seen.image, device="cpu")
        columns = question_columns(asks, image, self.trim or (0, 0))
        ids = [seen.ids[c] for c in columns]
        words = "all" if self.words == "auto" else self.words
        content = [columns[n] for n in content_of(ids, seen.processor, words, self.repeats)]
        text_before = [c for c in content if bool(asks[c - 1]) and not bool(image[c - 1 :].any())]
        s = torch.zeros(int(image.sum()), dtype=torch.float32, device="cpu")
        if text_before:
            kept: list[Tensor] = []
            for layer in self.saliency or ():
                a = seen.weights[layer][0].cpu()[:, :, image]
                shift = torch.stack([(a[:, c] - a[:, c - 1]).clamp(min=0) for c in text_before], 1)
                order = sorted(range(len(shift)), key=lambda h: -float(shift[h].sum()))
                kept += [shift[h] for h in order[: len(order) // 2]]
            s = torch.cat(kept).mean(0)
            low, high = s.mean() - 3 * s.std(), s.mean() + 3 * s.std()
            s = s.clamp(low, high)
            spread = s.max() - s.min()
            s = (s - s.min()) / spread if spread > 0 else torch.zeros_like(s)
        factor = (self.alpha * s).exp()

        def edit(z: Tensor, m: Map) -> Tensor:
            a = z.masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)[0]
            new = a.clone()
            half = len(a) // 2
            on_image = m.image.flatten()
            asked = torch.zeros(z.shape[-1], dtype=torch.bool, device="cpu")
            asked[columns] = True
            for row in m.last.flatten().nonzero().flatten().tolist():
                now = a[:, row].clone()
                sees = _most(now, on_image)[:half]
                for head in sees:
                    now[head, on_image] = now[head, on_image] * factor
                r = now[sees][:, on_image].sum() / a[sees, row][:, on_image].sum()
                r = r if bool(r.isfinite()) else torch.ones((), dtype=torch.float32, device="cpu")
                reads = _most(a[:, row], asked)[:half]
                for head in reads:
                    now[head, asked] = now[head, asked] * self.beta * r
                new[:, row] = now
            return reweighed(z, a[None], new[None])

        return MapForm(self.layers or (), edit)


# -- tensors ------------------------------------------------------------------------------------


def boost(
    weights: Tensor, saliency: Tensor, image: Tensor, question: Tensor, alpha: float, beta: float
) -> Tensor:
    """The logit bias of GIFT's edit.

    Args:
        weights: "B H R K", rows summing to 1.
        saliency: "B 1 1 K", S on the image, 0 elsewhere.
        image: Bool "B 1 1 K".
        question: Bool, likewise.
        alpha: Strength, as in `GIFT`.
        beta: Factor of the question's boost, as in `GIFT`.

    Returns:
        "B H R K".
    """
    half = weights.shape[1] // 2
    # Sums of each row: over the image, what isn't image, the boosted image, and so with questions.
    raised = image * (alpha * saliency).exp()
    sums = torch.cat([image, ~image, raised, question, ~question], 2).float()
    mass = weights @ sums.transpose(-1, -2)  # "B H R 5"
    # By odds the order is the same as by mass, but rounding doesn't make heads near 1 equal.
    sees = _top(mass[..., 0] / mass[..., 1], half)
    reads = _top(mass[..., 3] / mass[..., 4], half)
    before, after = ((mass[..., n] * sees).sum(1, keepdim=True) for n in (0, 2))
    ratio = torch.where(before > 0, after / before.clamp(min=1e-30), 1.0)  # "B 1 R"
    on_question = reads * (beta * ratio).log()
    return sees[..., None] * (alpha * saliency) + on_question[..., None] * question


def _top(odds: Tensor, count: int) -> Tensor:
    """The heads among the first ``count`` of each row: "B H R" of 0 and 1."""
    return torch.zeros_like(odds).scatter(1, odds.topk(count, 1).indices, 1.0)


def _most(rows: Tensor, columns: Tensor) -> list[int]:
    """Heads in the order in which their rows "H K" see most of some columns."""
    odds = rows[:, columns].sum(-1) / rows[:, ~columns].sum(-1)
    return odds.argsort(descending=True).tolist()


# -- works --------------------------------------------------------------------------------------


class _Boost(Edit):
    """Boosts the columns that the reader found."""

    rows = "last"

    def __init__(self, spec: GIFT, found: Handover[Gaze | None], acts: bool) -> None:
        super().__init__(spec.layers or () if acts else ())
        self.spec, self.found = spec, found
        self.gaze: Gaze | None = None
        self.fresh = False

    def begin(self, pass_: Pass) -> None:
        if pass_.prompt_start:
            self.gaze = None
        self.fresh = bool(self.layers) and not pass_.decodes and pass_.tokens.generated == 0

    def select(self, rows: Tensor) -> _Boost:
        twin = copy.copy(self)
        if self.gaze is not None:
            saliency, question = self.gaze.saliency.select(rows), self.gaze.question.select(rows)
            twin.gaze = Gaze(saliency, question)
        return twin

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        self._look()
        if self.gaze is None:
            return logits
        saliency = columns.of(self.gaze.saliency).to(logits.device)
        question = columns.of(self.gaze.question).to(logits.device)
        alpha, beta = self.spec.alpha, self.spec.beta
        bias = boost(logits.softmax(-1), saliency, columns.image, question, alpha, beta)
        return logits + bias

    def _look(self) -> None:
        if self.fresh:
            self.gaze, self.fresh = self.found.take(), False


class _LateBoost(_Boost):
    """Boosts from the first layer on, with the saliency of a later one."""

    def active(self, layer: int, pass_: Pass) -> bool:
        return pass_.again or pass_.tokens.generated > 0

    def look_back(self, scores: Tensor, pass_: Pass) -> Tensor | None:
        self._look()
        return (
            None if self.gaze is None else torch.ones(pass_.batch, dtype=torch.bool, device="cpu")
        )
