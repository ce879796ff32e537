"""PrimeComposer: an object put into a picture by steering attention across noise levels.

Background and object are inverted to latents b_i and r_i of every step i of T, the object at its
place M (a mask) in a box. From b_0 with noise in the box and r_0 in M on,

    paste    i < paste T:  latents become b_i outside of M
    keep     i < keep T:   then b_i outside of the box
    correlate              i < correlate T:  the denoiser also runs on b_i with r_i in M, and on r_i
                           with the latents in M; in self-attention both get what the second one's
                           queries make of the first one's keys and values in M. The logits there
                           are put into the main run's self-attention, columns of M first, then rows
    subject                the subject's words are read by rows in M alone

the last two in conditional rows. Wang et al., arXiv 2403.05053; CodeGoat24/PrimeComposer@ff602b2,
which doesn't run as it was published: there is no end-to-end reference. The abstract speaks of
attention weights; code and this overwrite logits.

Other than in the code: the object lies at its place in its canvas, too, where there it is in the
middle and shifted; steps are counted by the pipeline, where its solver's warm-up steps come on top;
inversion isn't by DPM-Solver++ (`regaze.interventions.diffusion.unet_inversion`). Not said in the
paper, and chosen here: what lies around the object in its canvas is the background's mean colour;
layers on whose grid the object has no token stay as they are; without guidance both runs beside
read the prompt. Joint attention isn't edited: its softmax holds text, which no published formula
speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.encode import keep
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Work
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.diffusion.arranging import kept_picture, opened
from regaze.interventions.diffusion.composition import Composing
from regaze.interventions.diffusion.places import check_place, stored
from regaze.interventions.diffusion.unet_inversion import TEXTS
from regaze.interventions.diffusion.where import check_where, chosen

_SOURCE = "CodeGoat24/PrimeComposer@ff602b2, run scripts"
_CROSS: Mapping[str, Any] = {"domain": "cross"}


@register
@dataclass(frozen=True)
class PrimeComposer(Intervention):
    """Composition by attention steering.

    Attributes:
        background: A picture's path, a PIL image, or an array "H W 3" of bytes; both are kept in a
            file under their hash.
        object: The same, of what to put there; it may be transparent elsewhere.
        mask: The object's place in its picture: a mask of the picture's size (an array, .npy or
            an image), or a box. By default where it isn't transparent.
        box: Place of the object: (left, top, right, bottom) in shares of the background, as large
            as fits. By default it stays where it is.
        subject: The prompt's name for it: its words, or columns of the text; None leaves
            cross-attention as it is.
        domain: "same" for a photograph in a photograph: then the first latents are those of the
            pasted picture; "cross" else.
        correlate: Share of the steps with infused logits.
        keep: Share of the steps with the background's latents outside of the box.
        paste: Share of the steps with the background's latents outside of the object.
        initial: True if latents begin as described; else as noise.
        around: Surroundings of the object's latents in the second run beside: its "reference"
            as in the code, or the "background".
        invert: Under what prompt pictures are inverted: "exceptional" or "empty".
        refine: Number of times that each step of the inversion is solved again.
        layers: Layers of self-attention; by default all.
        latents: Inverted latents in place of pictures: ``{"background": (steps + 1, C, H, W),
            "object": ...}`` and for the same domain "pasted", at the pipeline's own levels and
            scale, which are kept in a file; or such a safetensors file. Then ``mask`` is the
            object's place in the picture.
    """

    name: ClassVar[str] = "primecomposer"
    summary: ClassVar[str] = "put an object into a picture by steering attention"
    paper: ClassVar[str] = "arXiv 2403.05053"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[Mapping[str, Preset]] = {
        "same": Preset({"domain": "same", "correlate": 0.3, "paste": 0.1}, _SOURCE),
        "painting": Preset({**_CROSS, "correlate": 0.3, "paste": 0.2}, _SOURCE),
        "sketch": Preset({**_CROSS, "correlate": 0.6, "paste": 0.3}, _SOURCE),
        "cartoon": Preset({**_CROSS, "correlate": 0.4, "paste": 0.3}, _SOURCE),
    }

    background: Any = None
    object: Any = None
    mask: Any = None
    box: tuple[float, ...] | None = None
    subject: Any = None
    domain: str = "cross"
    correlate: float = 0.3
    keep: float = 0.8
    paste: float = 0.2
    initial: bool = True
    around: str = "reference"
    invert: str = "exceptional"
    refine: int = 3
    layers: tuple[str | int, ...] | None = None
    latents: Any = None

    def __post_init__(self) -> None:
        for field in ("background", "object"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, kept_picture(getattr(self, field)))
        if self.mask is not None:
            object.__setattr__(self, "mask", stored(self.mask))
        given = self.latents
        if isinstance(given, dict) and given and all(isinstance(x, Tensor) for x in given.values()):
            object.__setattr__(self, "latents", str(keep(given)))
        for field in ("layers", "subject"):
            if isinstance(getattr(self, field), (str, int)):
                object.__setattr__(self, field, (getattr(self, field),))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        for field in ("background", "object", "latents"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{self.name}: {field} is {shown(value)}, no file or picture")
        if self.latents is not None and (self.background or self.object or self.mask is None):
            raise ValueError(
                f"{self.name}: latents stand in the place of pictures: give them with a mask, and "
                "without background and object"
            )
        for place in (self.mask, self.box):
            if place is not None:
                check_place(self.name, place)
        if not isinstance(self.subject, (tuple, type(None))):
            raise ValueError(
                f"{self.name}: subject must be words or columns, got {shown(self.subject)}"
            )
        for word in self.subject or ():
            column = isinstance(word, int) and not isinstance(word, bool) and word >= 0
            if not column and not (isinstance(word, str) and word.strip()):
                raise ValueError(f"{self.name}: subject holds {word!r}, no word or column number")
        for field in ("correlate", "keep", "paste"):
            check_number(self.name, field, getattr(self, field), low=0, high=1)
        check_choice(self.name, "domain", self.domain, ("same", "cross"))
        check_choice(self.name, "around", self.around, ("reference", "background"))
        check_choice(self.name, "invert", self.invert, TEXTS)
        if isinstance(self.refine, bool) or not isinstance(self.refine, int) or self.refine < 0:
            raise ValueError(f"{self.name}: refine must be a whole number, got {self.refine!r}")
        check_where(self.name, self.layers, 0.0, 1.0)

    @property
    def acts(self) -> bool:
        """True if it changes anything."""
        shares = self.correlate or self.keep or self.paste
        return bool(self.initial or shares or self.subject)

    def idle(self) -> PrimeComposer:
        """The same with nothing pasted, kept or infused."""
        return replace(self, initial=False, correlate=0.0, keep=0.0, paste=0.0, subject=None)

    def controls(self) -> dict[str, Intervention]:
        """The same latents without the steering of attention."""
        if not self.acts or not (self.correlate or self.subject):
            return {}
        return {"unsteered": replace(self, correlate=0.0, subject=None)}

    def literal(self) -> WholeForm:
        """Maps with overwritten logits, written row by row."""
        from regaze.interventions.diffusion.composed_literally import composed

        return WholeForm(lambda pipeline, running: composed(self, pipeline, running))

    def resolve(self, host: Host) -> PrimeComposer:
        """Choose the layers, by their full names.

        Raises:
            ValueError: The model is no U-Net, or pictures are missing.
        """
        if host.model != "UNet2DConditionModel" or not any(s.kind == "cross" for s in host.sites):
            text = [s.kind for s in host.sites if s.kind in ("cross", "joint")]
            why = "it has no attention to text"
            if text:
                why = f"its {text[0]} attention isn't what the method's formulas speak of"
            raise ValueError(
                f"{self.name} can't act on {host.model}: {why}. It acts on U-Nets of pictures with "
                "self- and cross-attention (Stable Diffusion, SDXL)"
            )
        for field in ("background", "object"):
            if self.acts and self.latents is None and getattr(self, field) is None:
                raise ValueError(f"{self.name}: give {field}, a picture")
        return replace(self, layers=tuple(site.name for site in self._sites(host)))

    def _sites(self, host: Host) -> list[Site]:
        every = [site.name for site in host.sites if site.kind == "self"]
        return chosen(self.name, host, every if self.layers is None else self.layers, ("self",))

    def bind(self, host: Host) -> Work:
        """Make the work."""
        if not self.acts:
            return Composing()
        sites = [*self._sites(host), *(s for s in host.sites if s.kind == "cross" and self.subject)]
        pictures = None
        if self.latents is None:
            ground = opened(self.name, "background", self.background)
            pictures = ground, opened(self.name, "object", self.object)
        return Composing(tuple(sites), spec=self, pictures=pictures)
