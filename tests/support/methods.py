"""Every method that regaze has: one table, from which the tests of all promises take their cases.

A row is one way to use a method. It is held to every promise in `PROMISES`, or says why not;
`tests/test_methods.py` compares both with what the tests run. Where a method works is a question
to models: for language models `matrix` answers it, for pipelines a row names its `scenes`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from making import (
    HEAD_SHARES,
    PLACE,
    composed,
    embedded,
    flowing,
    moving,
    of,
    perturbing,
    planned,
    regions,
    short_region,
)
from scenes import BLOCKS, CLIPS, FRAMES, KINDS, ONES, PAIRS, TEXTS, UNETS

from regaze.interventions import (
    ADHH,
    AVAR,
    CARVE,
    GIFT,
    ICD,
    ILVAD,
    M3ID,
    NAG,
    PAG,
    PAI,
    PAINT,
    PASTA,
    SEG,
    SLG,
    SPIN,
    STG,
    TPG,
    VAF,
    VAR,
    VCD,
    VHR,
    AdaptVis,
    AnchorAttention,
    AStar,
    AttendAndExcite,
    AvisC,
    ByTheWay,
    ColumnScale,
    ConsistEdit,
    Devils,
    DoLa,
    EnhanceAVideo,
    HeadAblate,
    HeadScale,
    Intervention,
    LogitBias,
    Patch,
    PromptHighlighter,
    RadialAttention,
    Reweight,
    ScalingVis,
    SoftPAG,
    Steer,
    StructuredDiffusion,
    TidalDecode,
    ViCrop,
)

PROMISES = {
    "undo": "detached, it leaves neither a trace nor another bit",
    "idle": "at strength zero it changes no bit",
    "literal": "it gives what explicit attention maps give",
    "batch": "a batch gives what single samples give",
    "half": "it runs in half precision",
    "threads": "threads don't see each other",
    "json": "its spec survives JSON",
}
ON_THE_WAY = ("undo", "batch", "half", "threads")
"""Promises about how a method is run: those that run alike are tested with one of them."""

LAYERS = (0, 1, 2)  # Every tiny model has them; Gemma 3's are sliding, full, sliding.
SINKS: dict[str, Any] = {"tau": 0.25, "floor": 0.01, "sink_dims": (*range(12),), "layers": LAYERS}
"""About 40 % of a random model's columns are sinks, and a part of its heads passes the test."""


@dataclass(frozen=True)
class Method:
    """One way to use a method.

    Attributes:
        id: The method's name in tests.
        acts: A spec that visibly acts on every tiny model, or, for pipelines, a function that
            makes one for a scene.
        idle: A spec of strength zero; by default the acting one's own `Intervention.idle`.
        scenes: Pipelines that it acts on; empty for language models, where `matrix.cannot` says it.
        like: Another row's id, if it runs as that one does: promises `ON_THE_WAY` are then tested
            with that one, and this one's formula everywhere.
        decides: The basis of a decision at each question, if there is one: the "question", or
            what the prompt's last row predicts ("prediction"), which runs twice and needs the
            whole model.
        drafts: True if it can be checked what a draft proposes; else that raises.
        without: Promises that it doesn't give, and why. "literal@flux" is a promise in one scene.
        within: Allowed difference of two ways to compute it, as a share of the largest latent.
    """

    id: str
    acts: Any
    idle: Any = None
    scenes: tuple[str, ...] = ()
    like: str = ""
    decides: Literal["", "question", "prediction"] = ""
    drafts: bool = True
    without: Mapping[str, str] = field(default_factory=dict)
    within: float = 1e-5

    def on(self, scene: str) -> Any:
        """A spec that acts in a scene."""
        return self.acts(scene) if self.scenes else self.acts

    def off(self, scene: str) -> Any:
        """A spec of strength zero."""
        return self.idle or self.on(scene).idle()

    @property
    def specs(self) -> list[Intervention]:
        """The specs of a language model's method."""
        return [spec for spec in (self.acts, self.idle) if spec is not None]

    @property
    def layers(self) -> tuple[int, ...]:
        """The place in a language model where it acts."""
        found: tuple[int, ...] = getattr(self.acts, "layers", None) or LAYERS
        return found

    @functools.cached_property
    def name(self) -> str:
        """The method's registered name."""
        name: str = (self.acts if isinstance(self.acts, Intervention) else self.acts.method).name
        return name

    @property
    def kind(self) -> Literal["edit", "scores", "question", "pipeline"]:
        """The thing it acts on: attention, next-token scores, the question, or a pipeline."""
        if self.scenes:
            return "pipeline"
        if self.acts.stage == "question":
            return "question"
        return "scores" if self.name in SCORES else "edit"

    def excused(self, promise: str) -> str:
        """Why a promise isn't tested with this row; empty if it is."""
        if promise in self.without:
            return self.without[promise]
        if promise not in ON_THE_WAY:
            return ""
        if self.like:
            return f"it runs as {self.like} does"
        first = next(one.id for one in METHODS.values() if one.name == self.name)
        return "" if self.kind != "edit" or first == self.id else f"tested with {first}"


HEADS = tuple((layer, head) for layer in LAYERS for head in (0, 2))
DRAWN = tuple(
    tuple(round(math.sin(3 * row + i * i), 3) for i in range(16)) for row in range(len(HEADS))
)
"""A vector for each of the heads."""


SCORES = ("avisc", "dola", "highlight", "icd", "m3id", "vcd")
NO_STRENGTH = {"idle": "a contrast of the model with itself has no factor that could be zero"}
PHRASES = ["red circle", "blue square", "green circle", "a green circle"]
ASKS_AGAIN = dict.fromkeys(
    [promise for promise in PROMISES if promise != "json"],
    "it asks about a part of the picture again; nothing is attached to the model",
)

METHODS = {
    method.id: method
    for method in (
        # -- edits of attention in language models --
        Method(
            "adaptvis",
            AdaptVis(unsure=0.2, sure=2, threshold=0.5, layers=LAYERS),
            AdaptVis(unsure=1, sure=1, layers=LAYERS),
            decides="prediction",
        ),
        Method("adhh", ADHH(layers=LAYERS, threshold=0.2), ADHH(layers=LAYERS, threshold=2)),
        Method("avar", AVAR(image=0.5, layers=LAYERS), AVAR(0, 0, layers=LAYERS), like="vaf"),
        Method(
            "avar-probs",
            AVAR(image=2, system=0.6, layers=LAYERS, domain="probs"),
            AVAR(0, 0, layers=LAYERS, domain="probs"),
            like="vaf",
        ),
        Method(
            "columnscale",
            ColumnScale(factor=3, layers=LAYERS, heads=HEADS, columns="rest"),
            ColumnScale(layers=LAYERS),
            like="vaf",
        ),
        Method(
            "columnscale-hide",
            ColumnScale(factor=0, layers=LAYERS),
            ColumnScale(layers=LAYERS),
            like="vaf",
        ),
        Method(
            "devils",
            Devils(alpha=1, layers=LAYERS),
            Devils(alpha=0, layers=LAYERS),
            like="pai",
        ),
        Method(
            "devils-guides",
            Devils(layers=LAYERS, guides=1),
            Devils(alpha=0, layers=LAYERS),
            like="pai",
        ),
        Method(
            "gift",
            GIFT(alpha=4, layers=(1, 2), saliency=(0,), words="all", trim=(0, 0)),
            GIFT(alpha=0, layers=(1, 2), saliency=(0,), words="all", trim=(0, 0)),
            decides="question",
        ),
        Method(
            "gift-late",
            GIFT(alpha=3, beta=1.5, layers=LAYERS, saliency=(1, 2), words="all", trim=(0, 0)),
            GIFT(alpha=0, layers=LAYERS, saliency=(2,), words="all", trim=(0, 0)),
            like="adaptvis",
            decides="prediction",
        ),
        Method("headablate", HeadAblate(heads=HEADS), HeadAblate(), like="vaf"),
        Method(
            "headablate-uniform",
            HeadAblate(heads=HEADS, to="uniform", rows="last"),
            HeadAblate(to="uniform"),
            like="vaf",
        ),
        Method(
            "headscale",
            HeadScale(factor=0.5, heads=HEADS),
            HeadScale(heads=HEADS, layers=LAYERS),
            like="vaf",
        ),
        Method(
            "ilvad",
            ILVAD(alpha=4, layers=(1, 2), tokens=4, tau=1.2),
            ILVAD(alpha=0, layers=(1, 2), tokens=4),
            decides="prediction",
            drafts=False,
        ),
        Method(
            "ilvad-code",
            ILVAD(alpha=4, beta=0.3, layers=LAYERS, tokens=3, tau=1.1, sense="code"),
            ILVAD(alpha=0, layers=LAYERS),
            like="ilvad",
            decides="prediction",
        ),
        Method(
            "logitbias",
            LogitBias(bias=-1, layers=LAYERS, columns="rest"),
            LogitBias(layers=LAYERS),
            like="vaf",
        ),
        Method("pai", PAI(alpha=0.5, layers=LAYERS), PAI(alpha=0, layers=LAYERS)),
        Method(
            "pai-contrast",
            PAI(alpha=0.5, layers=LAYERS, gamma=1.8, plausibility=0),
            PAI(alpha=0, layers=LAYERS),
        ),
        Method(
            "paint", PAINT(alpha=2, beta=1, layers=LAYERS), PAINT(0, 0, layers=LAYERS), like="pai"
        ),
        Method(
            "paint-heads",
            PAINT(alpha=2, beta=1, layers=LAYERS, scores="received", modulation="heads"),
            PAINT(0, 0, layers=LAYERS),
            like="pai",
        ),
        Method(
            "pasta",
            PASTA(spans=("<image>",), heads=HEADS, alpha=0.1),
            PASTA(spans=("<image>",), heads=HEADS, alpha=1),
        ),
        Method(
            "pasta-code",
            PASTA(spans=("<image>", (1, 3)), layers=LAYERS, alpha=3, mode="include", sense="code"),
            PASTA(spans=("<image>", (1, 3)), layers=LAYERS, alpha=1),
            like="pasta",
        ),
        Method(
            "patch",
            Patch(heads=HEADS, vectors=DRAWN),
            Patch(heads=HEADS, layers=LAYERS),
            like="vaf",
        ),
        Method(
            "scalingvis",
            ScalingVis(weight=2, layers=LAYERS),
            ScalingVis(weight=1, layers=LAYERS),
            like="pai",
        ),
        Method(
            "spin",
            SPIN(keep=0.5, layers=LAYERS),
            SPIN(keep=1, layers=LAYERS),
            like="adhh",
        ),
        Method(
            "spin-text",
            SPIN(keep=0.5, factor=0, layers=LAYERS, score="weights", rows="text"),
            SPIN(factor=1, layers=LAYERS),
            like="var",
        ),
        Method(
            "steer",
            Steer(heads=HEADS, vectors=DRAWN[:1], rows="last"),
            Steer(heads=HEADS, vectors=DRAWN, strength=0),
            like="vaf",
        ),
        Method(
            "anchor",
            AnchorAttention(theta=0.1, block=2, step=2, init=2),
            AnchorAttention(theta=1e30, block=2, step=2, init=2),
            like="pai",
            drafts=False,
        ),
        Method(
            "tidal",
            TidalDecode(budget=5, select=(1,)),
            TidalDecode(budget=2**31 - 1, select=(1,)),
            like="pai",
            drafts=False,
        ),
        Method(
            "vaf",
            VAF(enhance=1.5, suppress=0.5, layers=LAYERS),
            VAF(enhance=1, suppress=1, layers=LAYERS),
        ),
        Method("var", VAR(rho=0.45, p=0.8, **SINKS), VAR(rho=0.45, p=0, **SINKS)),
        Method(
            "var-code",
            VAR(rho=0.55, p=0.2, sense="code", **SINKS),
            VAR(rho=0.55, p=1, sense="code", **SINKS),
        ),
        Method("vhr", VHR(alpha=2, layers=LAYERS), VHR(alpha=1, layers=LAYERS)),
        Method(
            "vhr-mask",
            VHR(alpha=0.5, layers=LAYERS, null_image="mask", outlier_filter=False),
            VHR(alpha=1, layers=LAYERS, null_image="mask"),
        ),
        # -- edits of next-token scores alone --
        Method("vcd", VCD(), VCD(alpha=0, beta=0)),
        Method("icd", ICD(beta=0), ICD(alpha=0, beta=0)),
        Method(
            "icd-vcd",
            ICD(place="instead", noise=500, combine="sum"),
            ICD(alpha=0, beta=0),
        ),
        Method(
            "highlight",
            PromptHighlighter(spans=("<image>",), weight=0.5, scale=1.5),
            PromptHighlighter(spans=("<image>",), scale=1, weight=1),
        ),
        Method(
            "highlight-probability",
            PromptHighlighter(spans=((1, 3), "<image>"), weight=0.5, space="probability"),
            PromptHighlighter(spans=((1, 3), "<image>"), scale=1, weight=1),
        ),
        Method("avisc", AvisC(lam=0.5, alpha=2.5), AvisC(alpha=0, beta=0)),
        Method("m3id", M3ID(rate=0.2), M3ID(rate=0, beta=0)),
        Method("dola", DoLa(candidates=LAYERS), without=NO_STRENGTH),
        Method(
            "dola-paper",
            DoLa(candidates=LAYERS, divergence="jsd", norm=True, rho=0),
            like="dola",
            without=NO_STRENGTH,
        ),
        # -- that ask again --
        Method("carve", CARVE(), without=ASKS_AGAIN),
        Method("vicrop", ViCrop(), without=ASKS_AGAIN),
        # -- guidance away from a perturbed branch --
        Method("pag", perturbing(PAG), PAG(scale=0), scenes=ONES),
        Method(
            "pag-image", perturbing(PAG, variant="image"), PAG(scale=0, variant="image"),
            scenes=KINDS, like="pag",
        ),
        Method("seg", perturbing(SEG, sigma=1.0), SEG(sigma=0), scenes=ONES),
        Method("seg-infinite", perturbing(SEG), SEG(scale=0), scenes=KINDS, like="seg"),
        Method(
            "softpag-heads", perturbing(SoftPAG, layers=None, heads=HEAD_SHARES), SoftPAG(heads={}),
            scenes=ONES,
        ),
        Method(
            "softpag-uniform", perturbing(SoftPAG, u=0.6, target="uniform"),
            SoftPAG(u=0, target="uniform"), scenes=KINDS, like="softpag-heads",
        ),
        Method(
            "softpag-query-mean", perturbing(SoftPAG, u=1, target="query_mean"),
            SoftPAG(u=0, target="query_mean"), scenes=KINDS, like="softpag-heads",
        ),
        Method(
            "softpag-temperature", perturbing(SoftPAG, u=0.8, target="temperature", tau=3.0),
            SoftPAG(u=0, target="temperature", tau=3.0), scenes=KINDS, like="softpag-heads",
        ),
        Method("tpg", perturbing(TPG), TPG(scale=0), scenes=UNETS),
        Method(
            "slg", perturbing(SLG, start=0.3, stop=1.0), SLG(scale=0, layers=(1,)), scenes=BLOCKS,
        ),
        Method("stg-block", perturbing(STG), STG(scale=0, layers=(1,)), scenes=BLOCKS, like="slg"),
        Method(
            "stg-attention", perturbing(STG, skip="attention"), STG(0, (1,), skip="attention"),
            scenes=KINDS,
        ),
        Method(
            "stg-diagonal", perturbing(STG, skip="diagonal"), STG(0, (1,), skip="diagonal"),
            scenes=KINDS, like="stg-attention",
        ),
        # -- of what the picture reads of texts --
        Method("nag", embedded(NAG, phi=3.0, tau=1.3, alpha=0.7), scenes=TEXTS),
        Method(
            "nag-l2", embedded(NAG, phi=3.0, tau=1.1, alpha=0.7, norm="l2"), scenes=TEXTS,
            like="nag",
        ),
        Method(
            "nag-shared", embedded(NAG, phi=3.0, tau=1.3, text_stream="shared"),
            scenes=("sd3", "sd35"), like="nag",
        ),
        Method("regions", regions, scenes=TEXTS),
        Method("regions-short", short_region, scenes=("flux",), like="regions"),
        Method("primecomposer", composed, scenes=("sd", "sd21", "sdxl")),
        Method("reweight", of(Reweight, {1: 2.0, 3: 0.25}), scenes=tuple(
            name for name in ONES if name != "img2img")),
        Method(
            "reweight-values", of(Reweight, {1: 2.0, 3: -0.5}, "values"),
            scenes=("sd", "sd3", "flux"), like="reweight",
        ),
        Method(
            "reweight-logits", of(Reweight, {1: 2.0, 3: 0.5}, "logits"),
            scenes=("sd", "pixart", "wan"), like="reweight",
        ),
        Method(
            "structured_diffusion",
            of(StructuredDiffusion, PHRASES, absent="skip"),
            scenes=("painter",),
        ),
        # -- of pairs of pictures --
        Method("consistedit", of(ConsistEdit, mask=PLACE, strength=0.4), scenes=PAIRS),
        Method(
            "consistedit-outside",
            of(ConsistEdit, mask=PLACE, strength=1.0, region="outside", layers=(1, 2)),
            scenes=PAIRS, like="consistedit",
        ),
        Method(
            "consistedit-all", of(ConsistEdit, mask="all", strength=0.7), scenes=PAIRS,
            like="consistedit",
        ),
        Method(
            "consistedit-words", of(ConsistEdit, words=(1, 2), strength=0.4), scenes=PAIRS,
            without={"literal": "its mask is read off the run; test_consist_edit.py compares it"},
        ),
        # -- of latents --
        Method("a_star", moving(AStar), scenes=ONES, within=2e-4),
        Method("attend_and_excite", moving(AttendAndExcite, refine=""), scenes=ONES, within=2e-4),
        # -- of clips --
        Method("bytheway", of(ByTheWay, tau=1, beta=0.5, stop=1.0), scenes=("clip-motion",)),
        Method(
            "enhance_a_video", of(EnhanceAVideo, layers=(1, 3)),
            scenes=("clip-wan", "clip-cogvideox", "clip-hunyuan"),
        ),
        Method(
            "enhance_a_video-temporal", of(EnhanceAVideo, weight=4.0), scenes=("clip-motion",),
            like="enhance_a_video",
        ),
        Method(
            "radial", of(RadialAttention, decay=0.5, block=4, start=0.0, dense_layers=0),
            scenes=CLIPS,
        ),
        Method("paro", planned, scenes=CLIPS),
        Method(
            "flow_warp", flowing, scenes=FRAMES,
            without={"batch": "a batch is the frames of one clip"},
        ),
    )
}  # fmt: skip


def promised(promise: str, *scenes: str) -> pytest.MarkDecorator:
    """Run a test as ``test(scene, method)`` for all rows of pipelines that give a promise.

    Args:
        promise: One of `PROMISES`.
        *scenes: Scenes to run it in; a row that acts in none of them runs in its own first one.
            By default all.
    """
    cases = []
    for method in METHODS.values():
        if method.kind == "pipeline" and not method.excused(promise):
            chosen = [name for name in method.scenes if name in scenes] or method.scenes[:1]
            for scene in chosen if scenes else method.scenes:
                if not method.excused(f"{promise}@{scene}"):
                    cases.append(pytest.param(scene, method, id=f"{scene}-{method.id}"))
    return pytest.mark.parametrize(("scene", "method"), cases)
