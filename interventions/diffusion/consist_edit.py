"""ConsistEdit: a second prompt for the same picture, of which only what the edit concerns changes.

Rows of a batch come in pairs, source and edit, from one noise. In every joint attention layer, with
Q, K, V after norms and rotary embedding and P = 1 outside of what may be edited, the *picture's*
tokens of an edit become

    step < int(strength * steps):  Q <- Q_source               K <- K_source
    later:                         Q <- P Q_source + (1-P) Q   K <- P K_source + (1-P) K
    all steps:                     V <- P V_source + (1-P) V

and the text's stay the edit's own. So ``strength`` says how far the structure is the source's, and
the mask, what its contents are taken for. The unconditional edit takes from the unconditional
source, the conditional one from the conditional. Yin et al., arXiv 2510.17803, section 3; code
zxYin/ConsistEdit_Code@0b73d6a. Of FLUX the code edits the single blocks alone, and so do we by
default; the paper says all blocks.

The mask is given, or read from the source's own attention to words (`edit_mask`). The code reads it
in a run of its own before, and uses its last state throughout; so does a `source` that was
recorded. Without one, it is the mean of the steps so far, and in the first step all is preserved:
one run in place of two.

Real pictures: the code keeps Q, K and V of every layer and step of the inversion, 27 GB for SD3.
They are functions of the latents, so here the source's latents are kept, step by step, and its rows
computed again from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.sites import PERTURBED, Site
from regaze.hooks.diffusion.works import Work
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.diffusion import consist_edit_literally, masks
from regaze.interventions.diffusion.consistent import Consistent
from regaze.interventions.diffusion.consistent_source import OfSource
from regaze.interventions.diffusion.edit_source import Source, joint_sites, over_of
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_CODE = "zxYin/ConsistEdit_Code@0b73d6a"


@register
@dataclass(frozen=True)
class ConsistEdit(ByLayers):
    """Consistent edits in joint attention.

    Attributes:
        words: Editable words of the source prompt, one or several (``"hat"``), in a list of lists
            those of each edit; or columns of the text, by numbers. "auto" are the words
            that the edit prompt doesn't hold. Not used where ``mask`` says it.
        mask: The editable part: a file (.npy, or a picture, light inside), an array (rows,
            columns) with the picture's proportions; of a clip also (frames, rows, columns); a list
            of files or arrays, one for each edit of a batch; or "all".
        strength: Consistency strength: in this share of the steps all queries and keys are the
            source's. 1 keeps the structure (colours, materials), 0.3 lets shapes change.
        source: Latents of the source, step by step, as `invert` or `recorded` makes them, or their
            file; without it, the source is painted beside the edit. A mask that was read with them
            is used.
        threshold: Share of a map's range from which on a token belongs to the words.
        region: The side of words or mask that may be edited, "inside" or "outside".
        rounds: Edits of a source, each made of the one before: a batch holds ``rounds + 1`` prompts
            for each.
        over: Columns whose attention sums to 1: all "joint" ones, or the "text"'s alone. By
            default the code's for the model: text alone in CogVideoX.
        layers: Layers: numbers or parts of paths, joint or self-attention; by default every joint
            attention, in FLUX that of the single blocks.
    """

    name: ClassVar[str] = "consistedit"
    summary: ClassVar[str] = "edit a picture by a second prompt and keep what the edit leaves alone"
    paper: ClassVar[str] = "arXiv 2510.17803"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[Mapping[str, Preset]] = {
        "colour": Preset({"strength": 1.0}, f"{_CODE} script/sd3_consist_edit.sh, PIE-Bench 6, 7"),
        "shape": Preset({"strength": 0.3}, f"{_CODE} script/sd3_inconsist_edit.sh"),
        "real": Preset({"strength": 0.1}, f"{_CODE} run_real_sd3.py: inversion leaks information"),
        "style": Preset(
            {"strength": 0.3, "mask": "all"}, f"{_CODE} evaluate_sd3.py, PIE-Bench 9: 8 of 28 steps"
        ),
    }

    words: Any = "auto"
    mask: Any = None
    strength: float = 1.0
    source: Any = None
    threshold: float = 0.1
    region: str = "inside"
    rounds: int = 1
    over: str | None = None
    layers: tuple[str | int, ...] | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and not isinstance(self.mask, str):
            try:
                object.__setattr__(self, "mask", _kept(self.mask))
            except ValueError as error:
                raise ValueError(f"consistedit: {error}") from None
        if isinstance(self.source, Source):
            object.__setattr__(self, "source", str(self.source.keep()))
        if isinstance(self.words, (str, int)) and self.words != "auto":
            object.__setattr__(self, "words", (self.words,))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        check_number(self.name, "strength", self.strength, low=0, high=1)
        check_number(self.name, "threshold", self.threshold, low=0, high=1)
        check_choice(self.name, "region", self.region, ("inside", "outside"))
        check_where(self.name, self.layers, 0, 1)
        if self.over is not None:
            check_choice(self.name, "over", self.over, ("joint", "text"))
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(
                f"consistedit: rounds must be a whole number from 1 on, got {shown(self.rounds)}"
            )
        if self.source is not None and not isinstance(self.source, str):
            raise ValueError(
                "consistedit: source must be what invert or recorded made, or its file, got "
                f"{shown(self.source)}"
            )
        lists = self.words if self.per_edit else (self.words,)
        for words in lists if self.words != "auto" else ():
            if not isinstance(words, tuple) or not words or not all(map(_is_word, words)):
                raise ValueError(
                    'consistedit: words must be "auto", a word, a list of words or column numbers, '
                    f"or a list of them for each edit, got {shown(self.words)}"
                )

    @property
    def per_edit(self) -> bool:
        """True if each edit has words of its own."""
        return isinstance(self.words, tuple) and any(isinstance(w, tuple) for w in self.words)

    def idle(self) -> ConsistEdit:
        """The same with nothing of the source: all may change, from the first step on."""
        return replace(self, mask="all", region="inside", strength=0.0, words="auto", source=None)

    def controls(self) -> dict[str, Intervention]:
        """The same with inside and outside exchanged, so that what should stay may be edited."""
        if self.mask == "all" or self.region == "outside":
            return {}
        return {"elsewhere": replace(self, region="outside")}

    def resolve(self, host: Host) -> ConsistEdit:
        """Choose the layers, by their full names.

        Raises:
            ValueError: The model has no joint attention, or a layer doesn't exist.
        """
        over = self.over or over_of(host.model)
        return replace(self, layers=tuple(site.name for site in self._sites(host)), over=over)

    def _sites(self, host: Host) -> list[Site]:
        joint = [site.name for site in joint_sites(host)]
        return chosen(self.name, host, self.layers or joint, PERTURBED)

    def bind(self, host: Host) -> Work:
        """Make the work; with nothing of the source to be taken it is a no-op."""
        free = self.mask == "all" and self.region == "inside"
        if free and not self.strength and self.source is None:
            return Work()
        given = self.masks()
        sites = tuple(self._sites(host))
        if self.source is None:
            return Consistent(sites, spec=self, given=given, free=free)
        source = Source.read(self.source)
        return OfSource(sites, spec=self, given=given, free=free, source=source)

    def masks(self) -> tuple[Tensor, ...]:
        """The masks that are given: one for all edits, or one for each."""
        if self.mask in (None, "all"):
            return ()
        paths = self.mask if isinstance(self.mask, tuple) else (self.mask,)
        try:
            return tuple(map(masks.read, paths))
        except ValueError as error:
            raise ValueError(f"consistedit: {error}") from None

    def literal(self) -> AttendForm | None:
        """The formula above on explicit maps, token by token; None where a run finds the mask."""
        if not isinstance(self.mask, str) or self.source is not None:
            return None
        return consist_edit_literally.form(self, next(iter(self.masks()), None))


def _kept(mask: Any) -> Any:
    """Masks that JSON can hold: a path for each edit, or one for all."""
    whole = (str, Path, Tensor, np.ndarray)
    if isinstance(mask, (list, tuple)) and mask and all(isinstance(one, whole) for one in mask):
        return tuple(map(masks.keep, mask))
    return masks.keep(mask)


def _is_word(word: Any) -> bool:
    if isinstance(word, str):
        return bool(word.strip())
    return isinstance(word, int) and not isinstance(word, bool) and word >= 0
