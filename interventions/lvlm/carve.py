"""CARVE: find what a question is about by contrast with a general question, and look closer.

Attention is read here, not edited; what is edited is the picture. With A_q and A_g the last row's
attention to the image's patches, averaged over heads, when the model answers the question and when
it describes the image:

    S = sum_t w_t sum_l  A_q[t, l] / (A_g[t, l] + lambda)

over generated tokens t and layers l. S is resized to the picture; its highest pixels form regions;
all but the strongest regions are blackened, the picture is cropped to what is left, magnified and
asked about again. So an answer takes three passes: question, general question (once per picture)
and the final one. `regaze.look_closer` runs them (`carve_reading`); the pictures are made in
`carve_regions`.

arXiv 2509.06461; reference code YuyaoGe/CARVE@a1f0442. The paper asks again about the refined
image alone, keeps at most K regions and finds the attention of the last token best; the code's
variants show the original too and keep at least 3 regions or a fifth of them, whichever is more.
Their bfloat16 model averages heads in bfloat16; here that is float32, which moves S by about a
quarter of a percent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.host import Host
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.carve_regions import (
    LAMBDA,
    Box,
    Fit,
    Rule,
    Steps,
    bounds,
    contrast,
    elsewhere,
    magnify,
    middle,
    strongest,
    to_pixels,
)
from regaze.interventions.lvlm.common import require_patches
from regaze.interventions.lvlm.looking import Look, Looking

Sense = Literal["paper", "v1", "v2", "v3", "v4"]
Shown = Literal["refined", "both"]

_BOTH: dict[str, Any] = {"share": 0.2, "shown": "both", "fit": "fill"}
_SENSES: Mapping[str, Mapping[str, Any]] = {
    "paper": {"steps": "last", "rule": "attention", "share": 0.0, "shown": "refined"},
    "v1": {"steps": "first", "rule": "drop_small", **_BOTH},
    "v2": {"steps": "first", "rule": "size", **_BOTH},
    "v3": {"steps": "first", "rule": "attention", **_BOTH},
    "v4": {"steps": "all", "rule": "attention", **_BOTH},
}
# Text layers of the paper's models, Qwen2.5-VL-7B to LLaVA-1.5-13B, and where it reads all of them.
_PAPER_DEPTHS, _PAPER_LAYERS = range(28, 41), range(20, 26)


@register
@dataclass(frozen=True)
class CARVE(Looking):
    """Show the model the region that it looks at for this question, magnified.

    Attributes:
        sense: Source of the settings left at None: the paper, or the code's variants v1 to v4 (v4
            is the code's default).
        layers: Layers to read: indices, or two fractions of the depth such as [0.6,0.8]. By
            default 20 to 25 in models of 28 to 40 layers, as in the paper and the code, and at
            the same depth as in 32 layers, [0.625,0.8125], in others.
        steps: Generated tokens that count: "last" (which the paper finds best), "first", or "all"
            with weight 1, 2, 3, ... (v4).
        top: Share of the pixels that may be kept; 0.2 in the code, 0.2 to 0.6 do best in the paper.
        rule: The measure of a region's strength: "attention" (its summed contrast) or "size"; or
            only "drop_small" ones.
        regions: Regions kept; the paper's K, best at 2 or 3.
        share: Share of the regions that is kept where that is more. The paper has none (0), in
            the code 0.2, which makes ``regions`` a lower bound.
        shown: Pictures in the final query: the "refined" one alone (paper) or "both" (code).
        fit: The way the crop is enlarged: "fill" until both sides reach the picture's (code), "pad"
            until one does. The paper's sense pads for processors that cut out the middle of a
            picture (LLaVA-1.5's), because they would cut off what was found.
        lam: Constant added to the general attention; the paper gives no value.
        general: The general question, which attention is contrasted with.
        max_new_tokens: Most tokens generated while reading.
        where: "random" is a control: the same regions, moved anywhere in the picture.
    """

    name: ClassVar[str] = "carve"
    summary: ClassVar[str] = "shows the region that a question is about, magnified"
    paper: ClassVar[str] = "arXiv 2509.06461"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"sense": "paper", "layers": _PAPER_LAYERS, "top": 0.2, "regions": 3},
            "arXiv 2509.06461, from the best of its sweeps; all its models",
        ),
        "code": Preset(
            {"sense": "v4", "layers": _PAPER_LAYERS, "top": 0.2, "regions": 3, "lam": 1e-8},
            "YuyaoGe/CARVE@a1f0442, defaults of main.py",
        ),
    }

    sense: Sense = "paper"
    layers: tuple[int, ...] | tuple[float, float] | None = None
    steps: Steps | None = None
    top: float = 0.2
    rule: Rule | None = None
    regions: int = 3
    share: float | None = None
    shown: Shown | None = None
    fit: Fit | None = None
    lam: float = LAMBDA
    general: str = "Write a general description of the image."
    max_new_tokens: int = 32
    where: Literal["contrast", "random"] = "contrast"

    def check(self) -> None:
        """Check the fields' domains."""
        check_choice("carve", "sense", self.sense, _SENSES)
        check_choice("carve", "where", self.where, ("contrast", "random"))
        for field, choices in (
            ("steps", ("first", "last", "all")),
            ("rule", ("attention", "size", "drop_small")),
            ("shown", ("refined", "both")),
            ("fit", ("fill", "pad")),
        ):
            if getattr(self, field) is not None:
                check_choice("carve", field, getattr(self, field), choices)
        check_number("carve", "top", self.top, low=1e-6, high=1)
        check_number("carve", "lam", self.lam, low=1e-30, high=1)
        check_number("carve", "regions", self.regions, low=1, high=1e6)
        check_number("carve", "max_new_tokens", self.max_new_tokens, low=1, high=4096)
        if self.share is not None:
            check_number("carve", "share", self.share, low=0, high=1)
        super().check()

    def controls(self) -> Mapping[str, Intervention]:
        """A region of the same area and shape anywhere in the picture."""
        random = {"random region": replace(self, where="random")}
        return random if self.where == "contrast" else {}

    def resolve(self, host: Host) -> CARVE:
        """Choose the layers, and fill in what the sense says.

        Raises:
            ValueError: No image patches in the text tower, or a layer doesn't exist.
        """
        require_patches("CARVE", host)
        images = getattr(host.processor, "image_processor", None)
        cuts = middle(images, (1, 1)) is not None
        default = {"fit": "pad" if cuts else "fill", **_SENSES[self.sense]}
        missing = {k: v for k, v in default.items() if getattr(self, k) is None}
        return replace(self, layers=_layers(self.layers, host), **missing)

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """The layers of a resolved spec."""
        return tuple(int(layer) for layer in self.layers or ())

    @property
    def reading_tokens(self) -> int:
        """Tokens that are worth generating while reading."""
        return 1 if self.steps == "first" else self.max_new_tokens

    def look(
        self,
        image: Image.Image,
        query: NDArray[np.floating],
        general: NDArray[np.floating],
        seen: Box | None = None,
    ) -> Look:
        """Chooses what to show by attention; see `Looking.look`.

        Raises:
            ValueError: No region stands out.
        """
        if self.steps is None or self.rule is None or self.share is None or self.fit is None:
            raise ValueError("carve: some settings depend on the model; call resolve first")
        picture = image.convert("RGB")
        left, top, right, bottom = box = seen or (0, 0, *picture.size)
        view = picture.crop(box)
        fused = to_pixels(contrast(query, general, self.steps, self.lam), view.size)
        kept = strongest(fused, self.top, self.rule, self.regions, self.share)
        if self.where == "random":
            seed = hashlib.sha256(view.tobytes() + kept.tobytes()).digest()
            kept = elsewhere(kept, np.random.default_rng(list(seed[:8])))
        crop = magnify(view, kept, self.fit)
        size = (picture.height, picture.width)
        pixels, mask = np.full(size, np.nan), np.zeros(size, bool)
        pixels[top:bottom, left:right], mask[top:bottom, left:right] = fused, kept
        shown = (crop,) if self.shown == "refined" else (image, crop)
        return Look(pixels, mask, bounds(mask), crop, shown)


def _layers(given: tuple[int, ...] | tuple[float, ...] | None, host: Host) -> tuple[int, ...]:
    n = len(host.sites)
    if given is None and n in _PAPER_DEPTHS:
        return tuple(host.sites[ordinal].layer for ordinal in _PAPER_LAYERS)
    if given is None:
        given = (_PAPER_LAYERS.start / 32, _PAPER_LAYERS.stop / 32)
    if isinstance(given, tuple) and any(isinstance(value, float) for value in given):
        if len(given) != 2 or not 0 <= given[0] < given[1] <= 1:
            raise ValueError(
                "carve: layers must be indices or two rising fractions of the depth such as "
                f"[0.6,0.8], got {list(given)}"
            )
        first = min(round(given[0] * n), n - 1)
        last = max(first + 1, round(given[1] * n))
        return tuple(site.layer for site in host.sites[first:last])
    check_indices("carve", "layers", given, host.n_layers, f"this {host.model_type}")
    if not given:
        raise ValueError("carve: layers must hold at least one layer, or nothing is read")
    return tuple(host.site(int(value)).layer for value in sorted(given))
