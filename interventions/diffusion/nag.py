"""NAG, normalised attention guidance: a negative prompt inside attention, at no guidance or any.

With z+ and z- what a row of the picture gets from the prompt and from a negative one, by the same
query, heads merged, before the output projection:

    z~ = z+ + phi (z+ - z-),   r = |z~| / |z+|,   z^ = z~ min(1, tau / r),
    z  = alpha z^ + (1 - alpha) z+

Chen et al., arXiv 2505.21179; released code ChenDarYen/Normalized-Attention-Guidance@69159ca (FLUX)
and ComfyUI-NAG@ef8a641. The argument is the paper's ``phi``; the author's code counts
``s z+ - (s - 1) z-``, so its ``nag_scale`` s is ``phi + 1``. The norm is the sum of absolute values
over the whole row, as in the paper and in most of the code; ``norm="l2"`` is that of the FLUX
pipeline at that commit. Both norms are kept above 1e-6, as in the node: the FLUX code gives NaN for
rows of zeros.

Where: every cross-attention of U-Nets and of Wan (text to video), every joint attention of SD3 and
FLUX, whose text rows aren't guided. SD3 has one stream of the picture and two of text; so do FLUX's
double blocks, but its single ones have two whole streams that share what the picture's rows attend
to. With classifier-free guidance only the conditional rows are guided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.encode import Encoded, encode, keep, read
from regaze.hooks.diffusion.fork import Instead
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.diffusion import nag_literally
from regaze.interventions.diffusion.one_picture import with_one_picture
from regaze.interventions.diffusion.second_text import (
    CROSS,
    JOINT,
    Guide,
    more_rows,
    more_tokens,
    on_cross,
    on_one_stream,
    on_two_streams,
    refuse,
)
from regaze.interventions.diffusion.where import check_where


def combine(
    positive: Tensor, negative: Tensor, phi: float, tau: float, alpha: float, norm: str = "l1"
) -> Tensor:
    """The guided attention output.

    Args:
        positive: "B H N D", the picture's rows on the prompt.
        negative: The same on the negative prompt.
        phi: The paper's strength.
        tau: Greatest length of a row, as a multiple of that of ``positive``.
        alpha: Share of the guided row.
        norm: "l1" or "l2", over a row's heads together.
    """
    z, other = positive.float(), negative.float()
    moved = torch.add(z, z - other, alpha=phi)
    lengths = [torch.linalg.vector_norm(x, 1 if norm == "l1" else 2, (1, 3), keepdim=True)
               for x in (z, moved)]  # fmt: skip
    before, after = (x.clamp(min=1e-6) for x in lengths)
    moved = moved * (tau * before / after).clamp(max=1)
    return torch.lerp(z, moved, alpha).to(positive.dtype)


@register
@dataclass(frozen=True)
class NAG(Intervention):
    """Normalised attention guidance.

    Attributes:
        negative: The negative prompt, or one for each prompt. By default that of classifier-free
            guidance, or the pipeline's ``negative_prompt``, or an empty one.
        phi: Strength, as in the paper; ``nag_scale - 1`` in the author's code. 0 is a no-op.
        tau: Greatest length of a guided row, as a multiple of the prompt's row.
        alpha: Share of the guided row in what comes out; 0 is a no-op.
        norm: "l1", the paper's, or "l2".
        embeddings: The negative prompt as embeddings, in place of ``negative``: tensors
            ``{"text": (prompts, tokens, size), "pooled": (prompts, size)}``, which are kept in a
            file under their hash, or such a safetensors file.
        text_stream: In SD3: whether the negative prompt's stream is modulated by its own pooled
            text ("own", as in the node) or by the prompt's ("shared", as in a public copy of the
            author's pipeline), which costs slightly less.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends.
        until: End in training time: the method acts while the timestep is at least so many
            thousandths; 0.75 is ``nag_end=0.25`` of FLUX.
    """

    name: ClassVar[str] = "nag"
    summary: ClassVar[str] = "a negative prompt inside attention, without a second pass"
    paper: ClassVar[str] = "arXiv 2505.21179"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[dict[str, Preset]] = {
        "flux": Preset({"phi": 4.0, "until": 0.75}, "ChenDarYen/ComfyUI-NAG@ef8a641 README"),
        "flux-kontext": Preset({"phi": 2.0, "until": 0.75}, "ChenDarYen/ComfyUI-NAG@ef8a641"),
        "sd3.5-large-turbo": Preset(
            {"phi": 4.0, "alpha": 0.125, "until": 0.75},
            "pipeline of ChenDarYen/Normalized-Attention-Guidance; the node's workflow: alpha 0.25",
        ),
        "sdxl-dmd2": Preset(
            {"phi": 2.0, "alpha": 0.5, "until": 0.745},
            "ChenDarYen/ComfyUI-NAG@ef8a641; it ends at sigma 4, timestep 745 of the schedule",
        ),
        "sd1.5": Preset(
            {"phi": 4.0, "alpha": 0.38, "until": 0.745},
            "ChenDarYen/ComfyUI-NAG@ef8a641, with guidance 7; it ends at sigma 4, timestep 745",
        ),
        "wan2.1": Preset({"phi": 8.0}, "ChenDarYen/ComfyUI-NAG@ef8a641 README; workflow: phi 5"),
        "wan2.1-4-steps": Preset(
            {"phi": 10.0, "tau": 3.5, "alpha": 0.5, "until": 0.75}, "ChenDarYen/ComfyUI-NAG@ef8a641"
        ),
    }  # fmt: skip

    negative: Any = None
    phi: float = 4.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: str = "l1"
    embeddings: Any = None
    text_stream: str = "own"
    start: float = 0.0
    stop: float = 1.0
    until: float = 0.0

    def __post_init__(self) -> None:
        given = self.embeddings
        if isinstance(given, dict) and given and all(isinstance(x, Tensor) for x in given.values()):
            object.__setattr__(self, "embeddings", str(keep(given)))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("nag", "phi", self.phi, low=0)
        check_number("nag", "tau", self.tau, low=1e-6)
        check_number("nag", "alpha", self.alpha, low=0, high=1)
        check_number("nag", "until", self.until, low=0, high=1)
        check_choice("nag", "norm", self.norm, ("l1", "l2"))
        check_choice("nag", "text_stream", self.text_stream, ("own", "shared"))
        check_where("nag", None, self.start, self.stop)
        texts: Any = "" if self.negative is None else self.negative
        texts = texts if isinstance(texts, tuple) else (texts,)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"nag: negative must be a text or a list of texts, got {shown(self.negative)}"
            )
        if self.embeddings is not None and not isinstance(self.embeddings, str):
            raise ValueError(
                'nag: embeddings must be tensors {"text": ..., "pooled": ...} or a safetensors '
                f"file, got {shown(self.embeddings)}"
            )
        if self.embeddings is not None and self.negative is not None:
            raise ValueError("nag: give negative or embeddings, not both")

    def idle(self) -> NAG:
        """The same with ``phi`` 0."""
        return replace(self, phi=0.0)

    def literal(self) -> WholeForm:
        """Explicit maps, each text by a pass or a stream of its own."""
        return nag_literally.form(self)

    def controls(self) -> dict[str, Intervention]:
        """Guidance away from an empty prompt, which says nothing of what isn't wanted."""
        empty = replace(self, negative="", embeddings=None)
        return {} if self == empty else {"empty": empty}

    def resolve(self, host: Host) -> NAG:
        """Check that it can act on the model.

        Raises:
            ValueError: It can't.
        """
        refuse(self.name, host)
        if self.text_stream == "shared" and host.model != "SD3Transformer2DModel":
            raise ValueError(f'nag: text_stream="shared" is a form of SD3, not of {host.model}')
        return self

    def bind(self, host: Host) -> Work:
        """Make the work."""
        kind = "cross" if host.model in CROSS else "joint"
        sites = tuple(
            s for s in host.sites if s.kind == kind and not s.name.startswith("vace_")
        ) if self.phi and self.alpha else ()  # fmt: skip
        encoded = None if self.embeddings is None else read(self.name, self.embeddings)
        return _Negative(sites, self.start, self.stop, self, host.model, encoded)


@dataclass(frozen=True)
class _Negative(Work):
    """Gives a denoiser a second text, and guides what is read of both.

    Attributes:
        spec: The method's settings.
        model: Class of the denoiser.
        encoded: The second text.
        given: The pipeline's own negative prompt, where that is it.
    """

    spec: NAG = NAG()
    model: str = ""
    encoded: Encoded | None = None
    given: Tensor | None = None

    @property
    def rows(self) -> bool:
        """True if the second text is in rows of its own, not behind the first in the same."""
        return self.model in JOINT and self.spec.text_stream == "own"

    def acts(self, pass_: Pass) -> bool:
        """True if it does anything in a pass."""
        late = self.spec.until > 0 and pass_.training_time < 1000 * self.spec.until
        return super().acts(pass_) and not late

    def begin(self, run: Run) -> Work:
        """Read the negative prompt."""
        if self.encoded is not None:
            return self
        found = variables_of(run.pipeline)
        given = found.get("negative_prompt_embeds")
        if self.spec.negative is None and isinstance(given, Tensor):
            encoded = Encoded(given, found.get("negative_pooled_prompt_embeds"))
            return replace(self, encoded=encoded, given=given)
        # An empty negative prompt is one, too: it isn't the pipeline's.
        texts, others = self.spec.negative, {}
        if texts is None:
            texts = found.get("negative_prompt") or ""
            others = {name: found.get(f"negative_{name}") for name in ("prompt_2", "prompt_3")}
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        return replace(self, encoded=encode(run.pipeline, self.model, texts, others))

    def arguments(self, call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
        """Add the negative prompt, behind the text or in rows of its own."""
        if pass_.rows.cond is None:
            return call
        if self.encoded is None:
            raise ValueError(
                "nag: a bare denoiser has no encoder to read a negative prompt with, and a modular "
                "pipeline doesn't tell its own; give embeddings, or attach to a stock pipeline"
            )
        now = None if self.given is None else variables_of(pass_.pipeline)
        if now is not None and now.get("negative_prompt_embeds") is not self.given:
            raise ValueError(
                "nag: the pipeline's negative_prompt_embeds were changed while it runs (by a "
                "callback?); give the negative prompt to nag itself"
            )
        add = more_rows if self.rows else more_tokens
        return add("nag", call, pass_, self.encoded)

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """Every layer that sees the text, in passes with conditional rows."""
        return () if pass_.rows.cond is None else self.sites

    def blocks(self, pass_: Pass) -> dict[str, Instead]:
        """Blocks of two streams, which have one picture; FLUX's others begin with a copy of it."""
        return with_one_picture(pass_) if self.rows and pass_.rows.cond is not None else {}

    def attend(self, call: Call) -> Tensor:
        """The guided head outputs."""
        return self._read(call, self._guided)

    def unedited(self, call: Call) -> Tensor:
        """The same without guidance."""
        return self._read(call, lambda positive, _: positive)

    def _read(self, call: Call, guide: Guide) -> Tensor:
        if call.pass_ is None or self.encoded is None:
            raise RuntimeError("nag edits passes of a denoiser that was given a negative prompt")
        own = int(call.pass_.call[call.pass_.family.text].shape[1])
        if self.model in CROSS:
            return on_cross(call, own, guide)
        lengths = own, int(self.encoded.text.shape[1])
        if call.site.block.startswith("single_"):
            return on_two_streams(call, lengths, guide)
        return on_one_stream(call, lengths, max(lengths) if self.rows else own, guide)

    def _guided(self, positive: Tensor, negative: Tensor) -> Tensor:
        spec = self.spec
        return combine(positive, negative, spec.phi, spec.tau, spec.alpha, spec.norm)
