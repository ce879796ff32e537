"""Regions: parts of the picture with prompts of their own, beside the prompt of the whole.

In every attention to text, rows of the picture get

    (1 - base) regional + base whole,

whole being attention to the pipeline's own prompt and regional that to the prompts of the regions
that a token lies in; see `regaze.interventions.diffusion.regional` for who sees whom. Regions that
overlap need a rule: a token in several sees the prompts of all of them, or that of the first or the
last one alone.

Chen et al., arXiv 2411.02395; code instantX-research/Regional-Prompting-FLUX@6011179, for FLUX,
where ``base`` is ``base_ratio`` and tokens in several regions read all their prompts. As there,
pooled text and modulation are the base prompt's, FLUX's double blocks have one picture, its single
ones two, of which the regional one is the result and gets the mixture. There masks are kept from
the first call for good; here each run has its own. SD3 has the double blocks' form. For
cross-attention (U-Nets, Wan) no code was published: there tokens in no region attend to the base
prompt alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.encode import keep, read
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.works import Work
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.diffusion import regional, regions_literally
from regaze.interventions.diffusion.places import check_place, first_overlap, read_mask, stored
from regaze.interventions.diffusion.regions_reading import Regional
from regaze.interventions.diffusion.second_text import CROSS, refuse
from regaze.interventions.diffusion.where import check_where


@register
@dataclass(frozen=True)
class Regions(Intervention):
    """Regional prompts.

    Attributes:
        regions: Pairs of a place and a prompt. A place is a box (left, top, right, bottom) in
            shares of the picture, or a mask: an array (rows, columns) with the picture's
            proportions, not zero inside, which is kept in a file under its hash; or such a .npy
            file, or an image's path. The base prompt is what the pipeline is called with.
        base: Share of the base prompt in the regions; 1 is a no-op. 0.1 to 0.3 in the paper's
            examples; more regions need less.
        embeddings: The regions' prompts as embeddings, in place of their texts: a tensor
            ``{"text": (regions, tokens, size)}``, which is kept in a file, or such a safetensors
            file.
        every: In FLUX and SD3: of how many double and single blocks each first one keeps regions
            apart; in the others every token sees every region's prompt.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends: 10 of 24 in the code's examples.
        overlap: Prompts that tokens in several regions read: those of "all", as in the code, or
            of the "first" or the "last" one; by default regions that overlap raise.
    """

    name: ClassVar[str] = "regions"
    summary: ClassVar[str] = "parts of the picture with prompts of their own"
    paper: ClassVar[str] = "arXiv 2411.02395"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[dict[str, Preset]] = {
        "flux": Preset(
            {"base": 0.3, "stop": 10 / 24, "overlap": "all"},
            "instantX-research/Regional-Prompting-FLUX@6011179, infer_flux_regional.py",
        ),
    }

    regions: Any = ()
    base: float = 0.3
    embeddings: Any = None
    every: tuple[int, ...] = (1, 1)
    start: float = 0.0
    stop: float = 10 / 24
    overlap: str | None = None

    def __post_init__(self) -> None:
        given = self.embeddings
        if isinstance(given, dict) and given and all(isinstance(x, Tensor) for x in given.values()):
            object.__setattr__(self, "embeddings", str(keep(given)))
        if isinstance(self.regions, (list, tuple)):
            pairs = [
                (stored(one[0]), one[1]) if isinstance(one, (list, tuple)) and len(one) == 2
                else one
                for one in self.regions
            ]  # fmt: skip
            object.__setattr__(self, "regions", tuple(pairs))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("regions", "base", self.base, low=0, high=1)
        check_where("regions", None, self.start, self.stop)
        every = self.every if isinstance(self.every, tuple) else ()
        if len(every) != 2 or not all(type(n) is int and n > 0 for n in every):
            raise ValueError(f"regions: every must be two whole numbers, got {shown(self.every)}")
        if not isinstance(self.regions, tuple):
            raise ValueError(
                f"regions: regions must be pairs of a place and a prompt, got {shown(self.regions)}"
            )
        for pair in self.regions:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], str)):
                raise ValueError(f"regions: {shown(pair)} is no pair of a place and a prompt")
            check_place("regions", pair[0])
        if self.overlap is not None:
            check_choice("regions", "overlap", self.overlap, regional.RULES)
        if self.embeddings is not None and not isinstance(self.embeddings, str):
            raise ValueError(
                'regions: embeddings must be a tensor {"text": ...} or a safetensors file, got '
                f"{shown(self.embeddings)}"
            )

    def check_given(self) -> None:
        """Check that regions are given."""
        if not self.regions:
            raise ValueError(
                "regions gives parts of the picture prompts of their own, and none are given: set "
                'regions to pairs of a box and a prompt, such as [[[0,0,0.5,1],"a red circle"]]'
            )

    def idle(self) -> Regions:
        """The same with the base prompt alone."""
        return replace(self, base=1.0)

    def literal(self) -> WholeForm:
        """Explicit maps, each text by a pass or a stream of its own."""
        return regions_literally.form(self)

    def controls(self) -> dict[str, Intervention]:
        """The same prompts in each other's places."""
        places, prompts = [p for p, _ in self.regions], [text for _, text in self.regions]
        if len(set(prompts)) < 2 or self.embeddings is not None:
            return {}
        moved = tuple(zip(places, [*prompts[1:], prompts[0]], strict=True))
        return {"swapped": replace(self, regions=moved)}

    def resolve(self, host: Host) -> Regions:
        """Check that it can act on the model.

        Raises:
            ValueError: It can't.
        """
        refuse("regions", host)
        return self

    def bind(self, host: Host) -> Work:
        """Make the work."""
        kind = "cross" if host.model in CROSS else "joint"
        acts = self.regions and self.base < 1
        sites = tuple(s for s in host.sites if s.kind == kind) if acts else ()
        encoded = None if self.embeddings is None else read(self.name, self.embeddings)
        if encoded is not None and len(encoded.text) != len(self.regions):
            raise ValueError(
                f"regions: embeddings are of {len(encoded.text)} prompts for {len(self.regions)} "
                "regions"
            )
        masks = tuple(read_mask(place) for place, _ in self.regions)
        if self.overlap is None and (both := first_overlap(masks)):
            names = " and ".join(f"{number} {self.regions[number][1]!r}" for number in both)
            raise ValueError(f"regions: {names} overlap; {regional.RULES_TEXT}")
        return Regional(
            sites,
            self.start,
            self.stop,
            prompts=tuple(prompt for _, prompt in self.regions),
            base=self.base,
            every=self.every,
            overlap=self.overlap,
            model=host.model,
            encoded=encoded,
            masks=masks,
        )
