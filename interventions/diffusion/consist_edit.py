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

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number, shown
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.latents import LatentEdit
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import PERTURBED, Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.diffusion import masks
from regaze.interventions.diffusion.edit_mask import Attended, Running, relative, shares
from regaze.interventions.diffusion.edit_source import (
    UNREAD,
    Source,
    columns_of,
    joint_sites,
    over_of,
)
from regaze.interventions.diffusion.where import check_where, chosen

_CODE = "zxYin/ConsistEdit_Code@0b73d6a"


def fuse(source: Tensor, edit: Tensor, preserve: Tensor | None) -> Tensor:
    """Queries, keys or values of the picture's tokens, the source's where they are preserved.

    Args:
        source: "... N D".
        edit: "... N D".
        preserve: Bool, broadcastable to "... N 1"; None: everywhere.
    """
    return source if preserve is None else torch.where(preserve, source, edit)


@register
@dataclass(frozen=True)
class ConsistEdit(Intervention):
    """Consistent edits in joint attention.

    Attributes:
        words: What may be edited: words of the source prompt, one or several (``"hat"``), in a list
            of lists those of each edit; or columns of the text, by numbers. "auto" are the words
            that the edit prompt doesn't hold. Not used where ``mask`` says it.
        mask: What may be edited: a file (.npy, or a picture, light inside), an array (rows,
            columns) with the picture's proportions; of a clip also (frames, rows, columns); a list
            of files or arrays, one for each edit of a batch; or "all".
        strength: Consistency strength: in this share of the steps all queries and keys are the
            source's. 1 keeps the structure (colours, materials), 0.3 lets shapes change.
        source: Latents of the source, step by step, as `invert` or `recorded` makes them, or their
            file; without it, the source is painted beside the edit. A mask that was read with them
            is used.
        threshold: Share of a map's range from which on a token belongs to the words.
        region: Whether the "inside" of words or mask may be edited, or the "outside".
        rounds: Edits of a source, each made of the one before: a batch holds ``rounds + 1`` prompts
            for each.
        over: What attention to words is a share of: all "joint" columns, or the "text"'s alone. By
            default the code's for the model: text alone in CogVideoX.
        layers: Where: numbers or parts of paths, joint or self-attention; by default every joint
            attention, in FLUX that of the single blocks.
    """

    name: ClassVar[str] = "consistedit"
    summary: ClassVar[str] = "edit a picture by a second prompt and keep what the edit leaves alone"
    paper: ClassVar[str] = "arXiv 2510.17803"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[dict[str, Preset]] = {
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
        if isinstance(self.layers, (str, int)):
            object.__setattr__(self, "layers", (self.layers,))
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
        if self.layers == ():
            raise ValueError("consistedit: layers is empty; leave it out, or name layers to edit")
        if self.source is not None and not isinstance(self.source, str):
            raise ValueError(
                "consistedit: source must be what invert or recorded made, or its file, got "
                f"{shown(self.source)}"
            )
        lists = self.words if self._each else (self.words,)
        for words in lists if self.words != "auto" else ():
            if not isinstance(words, tuple) or not words or not all(map(_is_word, words)):
                raise ValueError(
                    'consistedit: words must be "auto", a word, a list of words or column numbers, '
                    f"or a list of them for each edit, got {shown(self.words)}"
                )

    @property
    def _each(self) -> bool:
        """Whether each edit has words of its own."""
        return isinstance(self.words, tuple) and any(isinstance(w, tuple) for w in self.words)

    def idle(self) -> ConsistEdit:
        """Nothing of the source: all may change, from the first step on."""
        return replace(self, mask="all", region="inside", strength=0.0, words="auto", source=None)

    def controls(self) -> dict[str, Intervention]:
        """Inside and outside exchanged, so that what should stay is what may be edited."""
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
        given = self._given()
        sites = tuple(self._sites(host))
        if self.source is None:
            return _Consistent(sites, spec=self, given=given, free=free)
        source = Source.read(self.source)
        return _OfSource(sites, spec=self, given=given, free=free, source=source)

    def _given(self) -> tuple[Tensor, ...]:
        """The masks that are given: one for all edits, or one for each."""
        if self.mask in (None, "all"):
            return ()
        paths = self.mask if isinstance(self.mask, tuple) else (self.mask,)
        try:
            return tuple(map(masks.read, paths))
        except ValueError as error:
            raise ValueError(f"consistedit: {error}") from None

    # -- literally -----------------------------------------------------------------------------

    def literal(self) -> AttendForm | None:
        """The formula above on explicit maps, token by token; None where a run finds the mask."""
        if not isinstance(self.mask, str) or self.source is not None:
            return None
        return AttendForm(self.layers or (), self._literal_map, values=self._literal_values)

    def _literal_map(self, m: Map) -> Tensor:
        query, key = self._mixed(m, m.query, True), self._mixed(m, m.key, True)
        logits = query @ key.transpose(-1, -2) * m.scale
        return (logits + m.bias).softmax(-1)

    def _literal_values(self, m: Map) -> Tensor:
        return self._mixed(m, m.value, False)

    def _mixed(self, m: Map, x: Tensor, structure: bool) -> Tensor:
        """Edits of a branch with the picture's tokens of the row before."""
        done, (step, steps) = x.clone(), m.step
        whole = structure and step < int(self.strength * steps)
        branches, _, images = m.split
        each = len(x) // branches
        for row in range(len(x)):
            number, image = divmod(row % each, images)
            if number % (self.rounds + 1):
                source = row - images
                for n, token in enumerate(range(m.image.start, m.image.stop)):
                    if whole or not self._free(m, n):
                        done[row, :, token] = done[source, :, token]
        return done

    def _free(self, m: Map, token: int) -> bool:
        """Whether a token of the picture may be edited."""
        if self.mask == "all":
            return self.region == "inside"
        (mask,) = self._given()
        _, rows, columns = m.grid
        frame, place = divmod(token, rows * columns)
        here = mask if mask.ndim == 2 else mask[frame]
        tall, wide = here.shape[0] / rows, here.shape[1] / columns
        row, column = divmod(place, columns)
        part = here[
            int(row * tall) : max(int(row * tall) + 1, math.ceil((row + 1) * tall)),
            int(column * wide) : max(int(column * wide) + 1, math.ceil((column + 1) * wide)),
        ]
        return bool(part.any()) == (self.region == "inside")


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


# -- at work -----------------------------------------------------------------------------------


@dataclass
class _State:
    """What a run knows so far.

    Attributes:
        seen: Attention to the words.
        mean: Its mean over the steps before.
        free: What may be edited, by grid: "E N" bool, for each edit of the batch, in its order.
        began: Whether its first pass was checked.
        last: What the last call gave, of which the sources' rows are unedited.
    """

    seen: Running = field(default_factory=Running)
    mean: Tensor | None = None
    free: dict[Any, Tensor] = field(default_factory=dict)
    began: bool = False
    last: Tensor | None = None


@dataclass(frozen=True)
class _Consistent(Work):
    """Gives edits the picture's queries, keys and values of their sources."""

    spec: ConsistEdit = ConsistEdit()
    given: tuple[Tensor, ...] = ()
    free: bool = False
    members: Tensor | None = None
    state: _State = field(default_factory=_State, compare=False, repr=False)

    @property
    def _reads(self) -> bool:
        """Whether the mask is read while it runs."""
        return not self.free and self.spec.mask is None

    def begin(self, run: Run) -> Work:
        """Read the run's prompts: which words say what may be edited."""
        chain = self.spec.rounds + 1
        found = variables_of(run.pipeline)
        images = found.get("num_images_per_prompt") or found.get("num_videos_per_prompt") or 1
        _check_pairs(run.samples // images, chain)
        prompts = run.text[0].prompts
        if prompts is not None:
            for n in range(0, run.samples, images):
                if n // images % chain and prompts[n].text == prompts[n - images].text:
                    raise ValueError(
                        f"consistedit: the edit prompt {prompts[n].text!r} is its source's, so "
                        "nothing would be edited; give [source, edit] prompts that differ"
                    )
        members = self._members(run, images) if self._reads else None
        return replace(self, members=members, state=_State())

    def _members(self, run: Run, images: int) -> Tensor:
        """Which columns of the text hold an edit's words in its source, "E T"."""
        length, chain = max(part.columns.stop for part in run.text), self.spec.rounds + 1
        edits = [n for n in range(run.samples) if n // images % chain]
        members = torch.zeros(len(edits), length)
        for place, n in enumerate(edits):
            for word in self._words(run.text, n, images, place // images, len(edits) // images):
                members[place, columns_of(word, run.text, n - images, length)] = 1
        return members

    def _words(
        self, text: Sequence[Part], row: int, images: int, edit: int, edits: int
    ) -> Sequence[str | int]:
        spec = self.spec
        if spec.words != "auto":
            if spec._each and len(spec.words) != edits:
                raise ValueError(
                    f"consistedit: words are given for {len(spec.words)} edits, and the batch "
                    f"holds {edits}"
                )
            found: Sequence[str | int] = spec.words[edit] if spec._each else spec.words
            return found
        prompts = text[0].prompts
        if prompts is None:
            raise ValueError(UNREAD.format("the edit's words"))
        return changed_words(prompts[row - images].text, prompts[row].text)

    def before(self, pass_: Pass) -> None:
        """Check that pairs begin in one noise, and renew the mask."""
        if not self.state.began and pass_.running is not None:
            if pass_.running.step is not None and pass_.running.step[0] == 0:
                self._check_noise(pass_)
            self.state.began = True
        if self._reads and pass_.rows.cond is not None and self.state.seen.calls:
            self.state.mean = self.state.seen.mean()
            self.state.free.clear()

    def _check_noise(self, pass_: Pass) -> None:
        sample, rows = pass_.sample, pass_.rows
        if isinstance(sample, list):
            sample = torch.stack(sample)
        images = 1 if pass_.running is None else pass_.running.images
        each = sample[: rows.samples].unflatten(0, (-1, self.spec.rounds + 1, images))
        if any(not torch.equal(each[:, 0], each[:, n]) for n in range(1, each.shape[1])):
            raise ValueError(
                "consistedit: source and edit begin in different noise, so there is nothing to "
                "keep; give one noise to both: latents=noise.repeat_interleave(2, 0), or a list of "
                "generators with the same seed for both"
            )

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """All layers, in steps in which something is taken or read."""
        return () if self.free and not self._whole(pass_) else self.sites

    def _whole(self, pass_: Pass) -> bool:
        """Whether all queries and keys are the source's in this step."""
        if self.spec.strength in (0, 1):
            return bool(self.spec.strength)
        step = None if pass_.running is None else pass_.running.step
        if step is None:
            return pass_.progress < self.spec.strength  # It says who doesn't count steps.
        return step[0] < int(self.spec.strength * step[1])

    def attend(self, call: Call) -> Tensor:
        """Head outputs of edits on what they share with their sources."""
        pass_ = call.pass_
        if pass_ is None:
            raise RuntimeError("consistedit edits passes of a denoiser")
        if self._reads and self.members is None:
            raise ValueError(
                "consistedit: words are looked for while a running pipeline takes its steps; give "
                "a bare denoiser a mask"
            )
        who, chain, image = call.samples(), self.spec.rounds + 1, call.image()
        _check_pairs(who.prompts, chain)
        split = (who.branches, who.prompts // chain, chain, who.images * who.frames)
        whole = self._whole(pass_)
        stacked = [x.unflatten(0, split).clone() for x in (call.query, call.key, call.value)]
        for number in range(1, chain):
            preserve = None if self.free else self._preserve(call, split, number)
            for x, structure in zip(stacked, (True, True, False), strict=True):
                source, edit = x[:, :, number - 1, ..., image, :], x[:, :, number, ..., image, :]
                if structure and whole:
                    edit.copy_(source)
                elif preserve is not None:
                    edit.copy_(fuse(source, edit, preserve))
        query, key, value = (x.flatten(0, 3) for x in stacked)
        if self.members is None or pass_.main is not None or pass_.rows.cond is None:
            self.state.last = torch.as_tensor(call.kernel(query, key, value))
        else:
            self.state.last = self._read(call, split, query, key, value)
        return self.state.last

    def unedited(self, call: Call) -> Tensor:
        """The stock head outputs: those of the sources are there already."""
        if self.state.last is None or self.state.last.shape[:3] != call.query.shape[:3]:
            return call.output
        images = call.samples().images * call.samples().frames
        rows = torch.arange(len(call.query), device=call.query.device)
        edits = rows[rows // images % (self.spec.rounds + 1) > 0]
        whole = call.mask is None or len(call.mask) == 1
        named = {} if whole or call.mask is None else {"attn_mask": call.mask[edits]}
        out = self.state.last.clone()
        out[edits] = call.kernel(call.query[edits], call.key[edits], call.value[edits], **named)
        return out

    def after(self, pass_: Pass, output: Any) -> Any:
        """Keep no layer's output from pass to pass."""
        self.state.last = None
        return output

    def _read(
        self, call: Call, split: tuple[int, int, int, int], query: Tensor, key: Tensor,
        value: Tensor,
    ) -> Tensor:  # fmt: skip
        """The same while the conditional sources' attention to their words is read."""
        pass_, members = call.pass_, self.members
        assert pass_ is not None and members is not None  # noqa: S101
        cond = pass_.rows.cond or slice(0, pass_.rows.batch)
        numbers = torch.arange(len(query)).view(split)
        branch = numbers[cond.start * split[0] // pass_.rows.batch]
        which = branch[:, :-1].flatten().to(query.device)
        rows = Attended.of(call, query[which], key[which], value[which])
        self.state.seen.add(shares(call, rows, which, members, self.spec.over or "joint"))
        if rows.output is None:
            return torch.as_tensor(call.kernel(query, key, value))
        # The sources' rows are there already.
        done = torch.zeros(len(query), dtype=torch.bool, device=query.device)
        done[which] = True
        out = query.new_empty(*query.shape[:3], value.shape[-1])
        out[which] = rows.output
        if not bool(done.all()):
            out[~done] = call.kernel(query[~done], key[~done], value[~done])
        return out

    def _preserve(self, call: Call, split: tuple[int, int, int, int], number: int) -> Tensor:
        """What an edit takes from its source, "1 G I 1 N 1"."""
        image = call.image()
        tokens = image.stop - image.start
        if tokens not in self.state.free:
            found = self._found(call, tokens)
            if found is None:
                return call.query.new_ones(1, 1, 1, 1, tokens, 1, dtype=torch.bool)
            if self.spec.region == "outside":
                found = ~found
            self.state.free[tokens] = found.to(call.query.device)
        free, (_, groups, chain, images) = self.state.free[tokens], split
        if len(free) == 1:
            return ~free[None, None, :, None, :, None]
        if len(free) not in (groups * (chain - 1), groups * (chain - 1) * images):
            raise ValueError(
                f"consistedit: there are {len(free)} masks for {groups * (chain - 1)} edits; give "
                "one for each, or one for all"
            )
        each = free.view(groups, chain - 1, -1, tokens)[:, number - 1]
        return ~each[None, :, :, None, :, None]

    def _found(self, call: Call, tokens: int) -> Tensor | None:
        """What may be edited, "E N" or "1 N"; None as long as it isn't known."""
        layout = call.layout
        if self.spec.mask == "all":
            return torch.ones(1, tokens, dtype=torch.bool)
        grid = layout.grid(call.site, tokens)
        if self.given:
            if grid is None or layout.finest is None:
                raise ValueError(
                    f"consistedit: {call.site.name} has {tokens} tokens of an unknown grid, over "
                    "which no mask can be laid; name words instead"
                )
            try:
                found = [masks.on_tokens(mask, grid, layout.finest) for mask in self.given]
                return torch.stack(found)
            except ValueError as error:
                raise ValueError(f"consistedit: {error}") from None
        seen = self._mean()
        if seen is None:
            return None
        frames = grid[0] if grid is not None and len(grid) == 3 else 1
        return relative(seen, frames) > self.spec.threshold

    def _mean(self) -> Tensor | None:
        return self.state.mean


@dataclass(frozen=True)
class _OfSource(_Consistent, LatentEdit):
    """The same with a source whose latents are known."""

    source: Source | None = None

    needs_latents = True

    @property
    def _reads(self) -> bool:
        # What was recorded is of the source, and a second round's is the edit before.
        known = self.source is not None and self.source.shares is not None
        known = known and self.spec.rounds == 1
        return super()._reads and not known

    def before(self, pass_: Pass) -> None:
        """Put the source's latents in its rows; at the first step, in all."""
        self.state.began = True  # They begin in one noise, the source's.
        _Consistent.before(self, pass_)
        LatentEdit.before(self, pass_)

    def move(self, latents: Tensor, pass_: Pass) -> Tensor:
        """Latents with the source's in its rows."""
        at, source = pass_.latents, self.source
        assert at is not None and source is not None  # noqa: S101
        wanted = source.at(at.index, at.steps, pass_.timestep, latents)
        images = 1 if pass_.running is None else pass_.running.images
        stacked = latents.unflatten(0, (-1, self.spec.rounds + 1, images)).clone()
        if len(wanted) not in (1, len(stacked)):
            raise ValueError(
                f"consistedit: source holds {len(wanted)} pictures, and the batch is of "
                f"{len(stacked)} sources; run them with as many [source, edit] pairs"
            )
        rows = slice(None) if at.index == 0 else slice(0, 1)
        stacked[:, rows] = wanted[:, None, None].expand_as(stacked[:, rows])
        moved: Tensor = stacked.flatten(0, 2)
        return moved

    def _mean(self) -> Tensor | None:
        if self._reads or self.source is None:
            return super()._mean()
        return self.source.shares


def changed_words(source: str, edit: str) -> list[str]:
    """The words of a prompt that another one doesn't hold at their place.

    Raises:
        ValueError: The other one only adds words.
    """
    one, other = source.split(), edit.split()
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    found = [
        word.strip(".,;:!?\"'()")
        for kind, start, stop, *_ in blocks
        if kind in ("replace", "delete")
        for word in one[start:stop]
    ]
    if not any(found):
        raise ValueError(
            f"consistedit: {edit!r} only adds words to {source!r}, so which part of the picture it "
            'concerns isn\'t known; name words of the source, or a mask ("all")'
        )
    return list(dict.fromkeys(filter(None, found)))


def _check_pairs(prompts: int, chain: int) -> None:
    if prompts % chain:
        what = "[source, edit]" if chain == 2 else f"a source and {chain - 1} edits"
        raise ValueError(
            f"consistedit: the batch holds {prompts} prompts, which are no pairs: give a list with "
            f"{what} for each picture"
        )
