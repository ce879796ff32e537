"""ViCrop: crop where a question looks more than a general one does, and show the crop as well.

With A_q and A_g the last prompt row's attention to the patches at one layer, averaged over heads,
when the question is read and when a general one is:

    R = A_q / A_g,  elementwise

A box is chosen from windows of six sizes, base b times 1, 1.2, ... 2: of each size the window with
the largest sum of R, and of these the one that stands out most from its neighbours. The final query
shows the picture and the crop. CARVE's sibling: one layer, the first token, a rectangle.

Zhang et al., arXiv 2502.17422, the relative attention form; saccharomycetes/mllms_know@a64c5d5. Not
built: the gradient forms and the tiles for pictures of high resolution. A window of no patches
(a picture whose patches are larger than b) makes NaN and the top left corner there; here it
raises. Heads are averaged in the model's dtype there, here in float32.
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
from regaze.interventions.lvlm.carve import Look
from regaze.interventions.lvlm.carve_regions import Box, to_pixels
from regaze.interventions.lvlm.common import at_depth, require_patches

RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
_SOURCE = "saccharomycetes/mllms_know@a64c5d5"


@register
@dataclass(frozen=True)
class ViCrop(Intervention):
    """Show the model a crop of what it looks at for this question, beside the picture.

    Attributes:
        layers: The one layer whose attention counts; by default 14 of 32 (LLaVA-1.5-7B), 22 of 36
            (Qwen2.5-VL-3B), at the first one's depth in others. Any middle one works nearly as
            well, the authors say.
        base: Side of the smallest box in pixels; by default 336 for LLaVA, 224 for others.
        general: The general question, with the suffix that the code gives both.
        where: "random" and "centre" are controls: a box of the same size elsewhere; "general" is
            another: the box that the general question alone would give.
    """

    name: ClassVar[str] = "vicrop"
    summary: ClassVar[str] = "shows a crop of what a question is about, too"
    paper: ClassVar[str] = "arXiv 2502.17422"
    stage: ClassVar[Literal["attention", "question"]] = "question"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset({"layers": (14,), "base": 336}, _SOURCE),
        "qwen2.5-vl-3b": Preset({"layers": (22,), "base": 224}, _SOURCE),
    }

    layers: tuple[int, ...] | None = None
    base: int | None = None
    general: str = (
        "Write a general description of the image. "
        "Answer the question using a single word or phrase."
    )
    where: Literal["attention", "random", "centre", "general"] = "attention"

    @property
    def shares_prefix(self) -> bool:
        """Not: each question shows a crop of its own."""
        return False

    def check(self) -> None:
        """Check the fields' domains."""
        check_choice("vicrop", "where", self.where, ("attention", "random", "centre", "general"))
        if self.base is not None:
            check_number("vicrop", "base", self.base, low=1, high=1e5)
        if not (isinstance(self.general, str) and self.general.strip()):
            raise ValueError(f"vicrop: general must be a question, got {self.general!r}")

    def controls(self) -> Mapping[str, Intervention]:
        """A box of the same size elsewhere, or by the general question alone."""
        if self.where != "attention":
            return {}
        return {
            "random box": replace(self, where="random"),
            "centre box": replace(self, where="centre"),
            "general box": replace(self, where="general"),
        }

    def resolve(self, host: Host) -> ViCrop:
        """Choose the layer and the box's size.

        Raises:
            ValueError: No image patches in the text tower, or not one layer that exists.
        """
        require_patches("ViCrop", host)
        n, llava = len(host.sites), host.model_type.startswith("llava")
        default = 22 if host.model_type == "qwen2_5_vl" and n == 36 else min(at_depth(14, n), n - 1)
        layers = (host.sites[default].layer,) if self.layers is None else self.layers
        check_indices("vicrop", "layers", layers, host.n_layers, f"this {host.model_type}")
        if len(layers) != 1:
            raise ValueError(f"vicrop: layers must name one layer, got {list(layers)}")
        layers = (host.site(layers[0]).layer,)
        return replace(self, layers=layers, base=self.base or (336 if llava else 224))

    def bind(self, host: Host) -> Any:
        """It can't be attached: it changes what is shown, not attention.

        Raises:
            ValueError: Always; the message says what to call.
        """
        raise ValueError(
            "ViCrop changes what is shown, not attention, so it can't be attached: call "
            "regaze.look_closer(model, processor, image, question, ViCrop(...)), or run "
            "regaze eval BENCHMARK --with vicrop"
        )

    def check_question(self, question: str) -> None:
        """Check that a question can stand out from the general one.

        Raises:
            TypeError: It is no text.
            ValueError: It is empty, or the general one.
        """
        if not isinstance(question, str):
            raise TypeError(f"a question is text, got a {type(question).__name__}")
        if not question.strip():
            raise ValueError("the question is empty: ask about something in the picture")
        if question.strip() == self.general.strip():
            raise ValueError(
                f"the question {question.strip()!r} is ViCrop's general question, so nothing can "
                "stand out from it: ask about something, or set another one with general="
            )

    @property
    def extra_prompts(self) -> tuple[str, ...]:
        """The general question."""
        return (self.general,)

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """The layer of a resolved spec."""
        return self.layers or ()

    @property
    def reading_tokens(self) -> int:
        """The first token's row is read."""
        return 1

    def look(
        self,
        image: Image.Image,
        query: NDArray[np.floating],
        general: NDArray[np.floating],
        seen: Box | None = None,
    ) -> Look:
        """From attention to what to show; on a resolved spec.

        Args:
            image: The picture.
            query: "T L rows cols", attention of the answer's tokens to the patches.
            general: "T' L rows cols", the same for the general question.
            seen: The part of the picture that the patches cover, see `carve_regions.middle`.

        Raises:
            ValueError: No window stands out.
        """
        if self.base is None:
            raise ValueError("vicrop: some settings depend on the model; call resolve first")
        picture = image.convert("RGB")
        left, top, right, bottom = seen or (0, 0, *picture.size)
        size = (right - left, bottom - top)
        if self.where == "general":
            relative = np.asarray(general[0, 0], np.float64)
        else:
            relative = relative_map(query[0, 0], general[0, 0])
        box = crop_box(relative, size, self.base)
        if self.where in ("random", "centre"):
            box = self._moved(box, size, picture)
        x0, y0, x1, y1 = box
        box = (x0 + left, y0 + top, x1 + left, y1 + top)
        shape = (picture.height, picture.width)
        pixels, mask = np.full(shape, np.nan), np.zeros(shape, bool)
        pixels[top:bottom, left:right] = to_pixels(relative, size)
        mask[box[1] : box[3], box[0] : box[2]] = True
        crop = picture.crop(box)
        return Look(pixels, mask, box, crop, (image, crop))

    def _moved(self, box: Box, size: tuple[int, int], picture: Image.Image) -> Box:
        """A box of the same size in the middle, or drawn for this picture."""
        width, height = box[2] - box[0], box[3] - box[1]
        free = (size[0] - width, size[1] - height)
        if self.where == "centre":
            x, y = free[0] // 2, free[1] // 2
        else:
            seed = hashlib.sha256(picture.tobytes() + repr(box).encode()).digest()
            x, y = np.random.default_rng(list(seed[:8])).integers(0, np.array(free) + 1).tolist()
        return x, y, x + width, y + height


def relative_map(query: NDArray[np.floating], general: NDArray[np.floating]) -> NDArray[np.float64]:
    """Attention to the patches relative to the general question's, "rows cols".

    Raises:
        ValueError: It isn't finite: the general question gives a patch no attention at all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.asarray(query, np.float64) / np.asarray(general, np.float64)
    if not np.isfinite(found).all():
        raise ValueError(
            "the general question gives some patch no attention at this layer, so nothing can be "
            "relative to it: choose another layer"
        )
    return found


def crop_box(relative: NDArray[np.floating], size: tuple[int, int], base: int) -> Box:
    """The box that stands out most.

    Args:
        relative: "rows cols", one number a patch.
        size: Width and height of the picture.
        base: Side of the smallest box, in pixels.

    Returns:
        Left, top, right and bottom pixel.

    Raises:
        ValueError: The smallest window holds no whole patch.
    """
    rows, cols = relative.shape
    wide, high = size[0] / cols, size[1] / rows
    best: tuple[float, float, int, int, int, int] | None = None
    for ratio in RATIOS:
        across = min(int(base * ratio / wide), cols)
        down = min(int(base * ratio / high), rows)
        if across < 1 or down < 1:
            raise ValueError(
                f"a patch covers {wide:.0f} x {high:.0f} pixels here, so a box of {base} holds "
                "none: take a larger base="
            )
        if across == cols and down == rows:
            if ratio == 1:
                return 0, 0, *size
            continue
        sums = _windows(relative, down, across)
        # The first of the largest, from left to right and then down.
        x, y = divmod(int(sums.T.argmax()), sums.shape[0])
        around = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
        near = [sums[j, i] for j, i in around if 0 <= j < sums.shape[0] and 0 <= i < sums.shape[1]]
        stands_out = float(sums[y, x] - np.mean(near)) / (across * down)
        if best is None or stands_out > best[0]:
            best = stands_out, ratio, x, y, across, down
    if best is None:
        return 0, 0, *size
    _, ratio, x, y, across, down = best
    centre = int((x + across / 2) * wide), int((y + down / 2) * high)
    half = int(base * ratio // 2)
    ends = [_around(at, half, whole) for at, whole in zip(centre, size, strict=True)]
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _windows(values: NDArray[np.floating], down: int, across: int) -> NDArray[np.float64]:
    """Sums of all windows, by their top left corner."""
    views = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (down, across))
    found: NDArray[np.float64] = views.sum((-1, -2))
    return found


def _around(centre: int, half: int, whole: int) -> tuple[int, int]:
    """Both ends of a span about a centre, moved into ``0 ... whole`` and cut to it."""
    centre = max(centre, half)
    centre = min(centre, whole - half)
    return max(0, centre - half), min(whole, centre + half)
