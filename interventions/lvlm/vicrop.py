"""ViCrop: crop where a question looks more than a general one does, and show the crop as well.

With A_q and A_g the last prompt row's attention to the patches at one layer, averaged over heads,
when the question is read and when a general one is:

    R = A_q / A_g,  elementwise                                       (``form="relative"``)
    R = A_q relu(d log p / d A_q),  head by head                      ("gradient")
    R = |d log p_q / d x| / |d log p_g / d x|,  mean over a patch     ("pixels")

with p the probability of the likeliest first token and x the picture's pixels, of which the last
form counts the half with more fine detail.

A box is chosen from windows of six sizes, base b times 1, 1.2, ... 2: of each size the window with
the largest sum of R, and of these the one that stands out most from its neighbours. The final query
shows the picture and the crop. CARVE's sibling: one layer, the first token, a rectangle.

Zhang et al., arXiv 2502.17422; saccharomycetes/mllms_know@a64c5d5 (``rel_att``, ``grad_att`` and
``pure_grad``; ``tiles`` are its ``_high``: a large picture's tiles are read one by one, and their
maps are joined as they are). A window of no patches (a picture whose patches are larger than b)
makes NaN and the top left corner there; here it raises. Heads are averaged in the model's dtype
there, here in float32. Fine detail is that of the picture squeezed into a square there, here of
what the model sees. A processor that cuts out the middle of pictures does so with tiles too, which
the joined map doesn't know, there nor here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.hooks.checks import check_choice, check_indices, check_number
from regaze.hooks.host import Host
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.carve_regions import Box, Map, to_pixels
from regaze.interventions.lvlm.common import at_depth, require_patches
from regaze.interventions.lvlm.looking import Look, Looking
from regaze.interventions.lvlm.vicrop_maps import crop_box, pooled, relative_map, tile_boxes

_SOURCE = "saccharomycetes/mllms_know@a64c5d5"


@register
@dataclass(frozen=True)
class ViCrop(Looking):
    """Show the model a crop of what it looks at for this question, beside the picture.

    Attributes:
        layers: The one layer whose attention counts; by default 14 of 32 (LLaVA-1.5-7B), 22 of 36
            (Qwen2.5-VL-3B), at the first one's depth in others. Any middle one works nearly as
            well, the authors say.
        base: Side of the smallest box in pixels; by default 336 for LLaVA, 224 for others.
        general: The general question, with the suffix that the code gives both.
        where: "random" and "centre" are controls: a box of the same size elsewhere; "general" is
            another: the box that the general question alone would give.
        form: Kind of map: "relative" attention, attention by its "gradient" (of the question
            alone), or the gradient by "pixels", for models that take a picture as one tensor.
        tiles: Read a picture that is higher than 1024 pixels in tiles.
    """

    name: ClassVar[str] = "vicrop"
    summary: ClassVar[str] = "shows a crop of what a question is about, too"
    paper: ClassVar[str] = "arXiv 2502.17422"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset({"layers": (14,), "base": 336}, _SOURCE),
        "llava-1.5-7b-gradient": Preset(
            {"layers": (14,), "base": 336, "form": "gradient"}, f"{_SOURCE} run.py, grad_att"
        ),
        "llava-1.5-7b-pixels": Preset(
            {"layers": (14,), "base": 336, "form": "pixels"}, f"{_SOURCE} run.py, pure_grad"
        ),
        "llava-1.5-7b-tiles": Preset(
            {"layers": (14,), "base": 336, "tiles": True}, f"{_SOURCE} run.py, rel_att_high"
        ),
        "qwen2.5-vl-3b": Preset({"layers": (22,), "base": 224}, _SOURCE),
    }

    layers: tuple[int, ...] | None = None
    base: int | None = None
    general: str = (
        "Write a general description of the image. "
        "Answer the question using a single word or phrase."
    )
    where: Literal["attention", "random", "centre", "general"] = "attention"
    form: Literal["relative", "gradient", "pixels"] = "relative"
    tiles: bool = False

    def check(self) -> None:
        """Check the fields' domains."""
        check_choice("vicrop", "where", self.where, ("attention", "random", "centre", "general"))
        check_choice("vicrop", "form", self.form, ("relative", "gradient", "pixels"))
        if self.base is not None:
            check_number("vicrop", "base", self.base, low=1, high=1e5)
        super().check()

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

    @property
    def reading_layers(self) -> tuple[int, ...]:
        """The layer of a resolved spec."""
        return self.layers or ()

    @property
    def reading_tokens(self) -> int:
        """Tokens that are generated while reading: the first one, whose row is read."""
        return 1

    @property
    def gradient(self) -> Literal["attention", "pixels"] | None:
        """The gradient by attention or pixels, in the forms that take one."""
        if self.form == "relative":
            return None
        return "attention" if self.form == "gradient" else "pixels"

    def parts(self, image: Image.Image) -> Sequence[Sequence[Image.Image]]:
        """The picture, or its tiles."""
        if not self.tiles:
            return super().parts(image)
        return [[image.crop(box) for box in row] for row in tile_boxes(image.size)]

    def look(
        self,
        image: Image.Image,
        query: NDArray[np.floating],
        general: NDArray[np.floating],
        seen: Box | None = None,
    ) -> Look:
        """Chooses what to show by what was read; see `Looking.look`.

        Raises:
            ValueError: No window stands out.
        """
        if self.base is None:
            raise ValueError("vicrop: some settings depend on the model; call resolve first")
        picture = image.convert("RGB")
        left, top, right, bottom = seen or (0, 0, *picture.size)
        size = (right - left, bottom - top)
        relative = self._map(query[0, 0], general[0, 0], picture.crop((left, top, right, bottom)))
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

    def _map(
        self, query: NDArray[np.floating], general: NDArray[np.floating], view: Image.Image
    ) -> Map:
        """Score of each patch, "rows cols"."""
        if self.where == "general":
            alone = np.asarray(general, np.float64)
            return alone.mean(-1) if self.form == "pixels" else alone
        if self.form == "gradient":
            return np.asarray(query, np.float64)
        relative = relative_map(query, general)
        return pooled(relative, view) if self.form == "pixels" else relative

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
