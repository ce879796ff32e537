"""Structured Diffusion Guidance: cross-attention reads each noun phrase as it stands by itself.

Each noun phrase of the prompt is encoded alone, and its tokens' embeddings take the place of the
phrase's columns in the prompt's own W_p: contexts W_1 ... W_k beside W_0 = W_p. The conditional
rows of every cross-attention layer become

    keys="prompt"   O = 1/(k+1) sum_i softmax(Q K(W_p)') V(W_i)
    keys="phrases"  O = 1/(k+1) sum_i softmax(Q K(W_i)') V(W*)
    keys="pairs"    O = 1/(k+1) sum_i softmax(Q K(W_i)') V(W_i)

with W* the prompt's embeddings with all phrases put in, one after the other. Feng et al., arXiv
2212.05032; code weixi-feng/Structured-Diffusion-Guidance@773b2ba, which uses the second form for
prompts with "and". There the paper's formula is the third one; the code has it where it is given as
many values as keys.

Attention and V are linear in what is averaged, so the first form is SDPA(Q, K(W_p), V(mean W_i)):
a second context for values, and no extra attention. The others cost k more attention calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, shown
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.encode import encode
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Prompt
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.base import Intervention, register
from regaze.interventions.diffusion import structured_literally
from regaze.interventions.diffusion.nouns import noun_phrases
from regaze.interventions.diffusion.phrase_contexts import (
    Aligned,
    Made,
    aligned,
    columns_of,
    contexts,
    other_spans,
)
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_MODELS = ("UNet2DConditionModel", "UNetMotionModel")


@register
@dataclass(frozen=True)
class StructuredDiffusion(ByLayers):
    """Noun phrases read by themselves in cross-attention.

    Attributes:
        phrases: Phrases of the prompt, such as ``["a red circle", "a blue square"]``; a list of
            lists has one for each prompt; "auto" are all noun phrases of more than one word that
            spaCy finds, at every level, as the code takes them from a parser.
        absent: The answer to a prompt that lacks one of the phrases: "raise", or "skip" it, for
            whole files of prompts and one list.
        keys: Keys that are used: the "prompt"'s, with averaged values, the code's default; the
            "phrases"'s, the code's form for conjunctions; or those in "pairs" with their values.
        layers: Layers: parts of module paths; by default every cross-attention layer.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends; all steps by default, as in the code.
        spans: Spans of the prompt that are read by themselves: its "phrases", or as a control
            "random" ones, for each phrase one of as many words that is none.
    """

    name: ClassVar[str] = "structured_diffusion"
    summary: ClassVar[str] = "read each noun phrase of the prompt as it stands by itself"
    paper: ClassVar[str] = "arXiv 2212.05032"
    acts_on: ClassVar[str] = "diffusers pipelines"

    phrases: Any = "auto"
    absent: str = "raise"
    keys: str = "prompt"
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    spans: str = "phrases"

    def check(self) -> None:
        """Check the fields' domains."""
        lists = self.phrases if self._each else (self.phrases,)
        for phrases in lists if self.phrases != "auto" else ():
            if not isinstance(phrases, tuple) or not all(
                isinstance(phrase, str) and phrase.strip() for phrase in phrases
            ):
                raise ValueError(
                    'structured_diffusion: phrases must be "auto", a list of phrases, or a list '
                    f"of them for each prompt, got {shown(self.phrases)}"
                )
        check_choice(self.name, "absent", self.absent, ("raise", "skip"))
        check_choice(self.name, "keys", self.keys, ("prompt", "phrases", "pairs"))
        check_choice(self.name, "spans", self.spans, ("phrases", "random"))
        check_where(self.name, self.layers, self.start, self.stop)

    @property
    def _each(self) -> bool:
        """True if each prompt has phrases of its own."""
        found = self.phrases
        return isinstance(found, tuple) and bool(found) and isinstance(found[0], tuple)

    def idle(self) -> StructuredDiffusion:
        """The same without phrases: the prompt alone."""
        return replace(self, phrases=())

    def controls(self) -> dict[str, Intervention]:
        """As many spans of the prompt that are no phrases."""
        phrases = self.phrases and self.spans == "phrases"
        return {"random spans": replace(self, spans="random")} if phrases else {}

    def literal(self) -> WholeForm:
        """Explicit maps, each context by a pass of its own."""
        return structured_literally.form(self)

    def resolve(self, host: Host) -> StructuredDiffusion:
        """Choose the layers, by their full names.

        Raises:
            ValueError: It isn't a U-Net that reads text by cross-attention.
        """
        return replace(self, layers=tuple(site.name for site in self._sites(host)))

    def bind(self, host: Host) -> Work:
        """Make the edit; without phrases it is a no-op."""
        sites = self._sites(host) if self.phrases else []
        return _Structured(tuple(sites), self.start, self.stop, self)

    def _sites(self, host: Host) -> list[Site]:
        if host.model not in _MODELS:
            raise ValueError(
                f"structured_diffusion: {host.model} isn't known to read its text by "
                f"cross-attention in the encoder's own columns; it acts on {' and '.join(_MODELS)}"
            )
        every = [site.name for site in host.sites if site.kind == "cross"]
        return chosen(self.name, host, self.layers or every, ("cross",))

    def of(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The phrases of each prompt.

        Raises:
            ValueError: There are lists for another number of prompts.
        """
        if self.phrases == "auto":
            return [tuple(noun_phrases(prompt)) for prompt in prompts]
        if not self._each:
            return [self.phrases] * len(prompts)
        lists, rest = len(self.phrases), len(prompts) % len(self.phrases)
        if rest:
            raise ValueError(
                f"structured_diffusion: phrases are for {lists} prompts, and {len(prompts)} "
                "samples are made"
            )
        return [one for one in self.phrases for _ in range(len(prompts) // lists)]


@dataclass(frozen=True)
class _Structured(Work):
    spec: StructuredDiffusion = StructuredDiffusion()
    samples: tuple[tuple[Aligned, ...], ...] = ()
    kept: list[Any] = field(default_factory=list, compare=False, repr=False)

    def begin(self, run: Run) -> Work:
        """Encode the phrases of the run's prompts."""
        prompts = run.text[0].prompts
        if prompts is None:
            raise ValueError(
                f"structured_diffusion: its words aren't known, because {run.text[0].unread}; give "
                "it one prompt"
            )
        lists = self.spec.of([prompt.text for prompt in prompts])
        if self.spec.absent == "skip":
            lists = [
                tuple(phrase for phrase in phrases if prompt.find(phrase))
                for prompt, phrases in zip(prompts, lists, strict=True)
            ]
        kind = "noun phrase of two words or more"
        if self.spec.spans == "random":
            kind = "span beside its phrases"
            lists = [_others(prompt, own) for prompt, own in zip(prompts, lists, strict=True)]
        unlike = [prompts[n].text for n, phrases in enumerate(lists) if not phrases]
        if unlike:
            run.tally.note = f"no {kind} in {shown(unlike[0])}"
        wanted = list(dict.fromkeys(phrase for phrases in lists for phrase in phrases))
        if not wanted:
            return replace(self, samples=((),) * len(prompts), kept=[])
        encoded = encode(run.pipeline, _MODELS[0], wanted).text
        own = dict(zip(wanted, encoded, strict=True))
        samples = tuple(
            tuple(aligned(prompt, phrase, own[phrase]) for phrase in phrases)
            for prompt, phrases in zip(prompts, lists, strict=True)
        )
        return replace(self, samples=samples, kept=[])

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """All layers, in passes with conditional rows."""
        return () if pass_.rows.cond is None else self.sites

    def attend(self, call: Call) -> Tensor:
        """Head outputs whose conditional rows read the phrases."""
        pass_, module = call.pass_, cast(Any, call.module)
        if pass_ is None or not self.samples:  # It never began: nobody knows the prompt's words.
            raise ValueError(
                "structured_diffusion needs a running pipeline that tells the prompt's words, as "
                "bare denoisers and modular pipelines don't"
            )
        _check_plain(pass_.denoiser, module)
        frames, rows = call.samples().frames, pass_.rows.cond or slice(0, pass_.rows.batch)
        made = self._contexts(pass_, rows)
        cond = slice(rows.start * frames, rows.stop * frames)

        def project(layer: Any, text: Tensor | None, own: Tensor) -> Tensor:
            return own[cond] if text is None else _heads(layer(text), own, frames)

        if self.spec.keys == "prompt":
            # Only values differ, so that all rows go through the kernel together.
            ((_, averaged, _),) = made
            values = call.value.clone()
            values[cond] = project(module.to_v, averaged, values)
            return call.kernel(call.query, call.key, values)

        def attention(rows: slice, key: Tensor, value: Tensor) -> Tensor:
            mask = (
                {} if call.mask is None or len(call.mask) == 1 else {"attn_mask": call.mask[rows]}
            )
            return call.kernel(call.query[rows], key, value, **mask)

        done: Any = 0
        for keys, values_, share in made:
            key = project(module.to_k, keys, call.key)
            one = attention(cond, key, project(module.to_v, values_, call.value))
            done = done + share.repeat_interleave(frames)[:, None, None, None].to(one) * one
        parts = {cond.start: done}
        for rest in (slice(0, cond.start), slice(cond.stop, len(call.query))):
            if rest.start < rest.stop:
                parts[rest.start] = attention(rest, call.key[rest], call.value[rest])
        return torch.cat([parts[start] for start in sorted(parts)])

    def _contexts(self, pass_: Pass, rows: slice) -> Made:
        """The contexts that the conditional rows of a pass read."""
        text = pass_.call[pass_.family.text]
        if self.kept and self.kept[0] is text:
            found: Made = self.kept[1]
            return found
        base = text[:: len(text) // pass_.rows.batch][rows]
        made = contexts(base, self.samples, self.spec.keys)
        self.kept[:] = [text, made]
        return made


def _others(prompt: Prompt, phrases: Sequence[str]) -> tuple[str, ...]:
    """Spans in the place of phrases, of what the encoder doesn't cut off."""
    for phrase in phrases:
        columns_of(prompt, phrase)
    seen = max(end for _, end in prompt.spans)
    return tuple(other_spans(prompt.text[:seen], phrases))


def _heads(projected: Tensor, like: Tensor, frames: int) -> Tensor:
    """Keys or values "S L C" by heads, for every frame of the samples."""
    heads: Tensor = projected.unflatten(2, (like.shape[1], -1)).transpose(1, 2)
    return heads.repeat_interleave(frames, 0).to(like.dtype)


def _check_plain(denoiser: Any, module: Any) -> None:
    """Check that a layer's keys and values are projections of the encoder's own columns.

    Raises:
        ValueError: They are of something else.
    """
    kind = getattr(denoiser.config, "encoder_hid_dim_type", None)
    projected = kind not in (None, "ip_image_proj")
    if projected or getattr(module, "norm_cross", None) or getattr(module, "norm_k", None):
        what = f"{kind} between text encoder and layers" if projected else "norms on text or keys"
        raise ValueError(
            f"structured_diffusion: this {type(denoiser).__name__} has {what}, so that contexts "
            "can't be averaged before values are projected"
        )
