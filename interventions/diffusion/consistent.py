"""ConsistEdit at work: what edits take from their sources, and the mask that is read meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.works import Run, Work, change
from regaze.interventions.diffusion import masks
from regaze.interventions.diffusion.chains import Chains, taken
from regaze.interventions.diffusion.edit_mask import Attended, Running, relative, shares
from regaze.interventions.diffusion.edit_source import UNREAD, columns_of
from regaze.interventions.diffusion.edit_words import changed_words, check_pairs

if TYPE_CHECKING:
    from regaze.interventions.diffusion.consist_edit import ConsistEdit


@dataclass
class _State:
    """The knowledge of a run so far.

    Attributes:
        seen: Attention to the words.
        mean: Mean of that attention over the steps before.
        free: Editable tokens, by grid: "E N" bool, for each edit of the batch, in its order.
        began: True if its first pass was checked.
    """

    seen: Running = field(default_factory=Running)
    mean: Tensor | None = None
    free: dict[Any, Tensor] = field(default_factory=dict)
    began: bool = False


@dataclass(frozen=True)
class Consistent(Work):
    """Gives edits the picture's queries, keys and values of their sources."""

    spec: ConsistEdit = field(kw_only=True)
    given: tuple[Tensor, ...] = ()
    free: bool = False
    members: Tensor | None = None
    state: _State = field(default_factory=_State, compare=False, repr=False)

    @property
    def _reads(self) -> bool:
        """True if the mask is read while it runs."""
        return not self.free and self.spec.mask is None

    def begin(self, run: Run) -> Work:
        """Read the run's prompts: which words say what may be edited."""
        chain = self.spec.rounds + 1
        found = variables_of(run.pipeline)
        images = found.get("num_images_per_prompt") or found.get("num_videos_per_prompt") or 1
        check_pairs(run.samples // images, chain)
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
        """The columns of the text that hold an edit's words in its source, "E T"."""
        length, chain = max(part.columns.stop for part in run.text), self.spec.rounds + 1
        edits = [n for n in range(run.samples) if n // images % chain]
        members = torch.zeros(len(edits), length, dtype=torch.float32, device="cpu")
        for place, n in enumerate(edits):
            for word in self._words(run.text, n, images, place // images, len(edits) // images):
                members[place, columns_of(word, run.text, n - images, length)] = 1
        return members

    def _words(
        self, text: Sequence[Part], row: int, images: int, edit: int, edits: int
    ) -> Sequence[str | int]:
        spec = self.spec
        if spec.words != "auto":
            if spec.per_edit and len(spec.words) != edits:
                raise ValueError(
                    f"consistedit: words are given for {len(spec.words)} edits, and the batch "
                    f"holds {edits}"
                )
            found: Sequence[str | int] = spec.words[edit] if spec.per_edit else spec.words
            return found
        prompts = text[0].prompts
        if prompts is None:
            raise ValueError(UNREAD.format("the edit's words", text[0].unread))
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
        """True if all queries and keys are the source's in this step."""
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
        chains, image = Chains.of(call, self.spec.rounds + 1), call.image()
        whole = self._whole(pass_)
        out = call.query.new_empty(*chains.split, *call.query.shape[1:3], call.value.shape[-1])
        reads = self.members is not None and pass_.main is None and pass_.rows.cond is not None
        seen, source = [], list[Tensor]()
        for number in range(chains.split[2]):
            rows = chains.rows(number)
            if source:
                preserve = not self.free and self._preserve(call, chains.split, number)
                rows = [
                    taken(one, own, image, every or preserve)
                    for one, own, every in zip(source, rows, (whole, whole, False), strict=True)
                ]
            if reads and number < chains.split[2] - 1:
                seen.append(self._read(chains, number, rows, out))
            else:
                out[:, :, number] = chains.attend(number, rows)
            source = rows
        if seen:
            self.state.seen.add(torch.stack(seen, 1).flatten(0, 2))
        return out.flatten(0, 3)

    def moved(self, call: Call, changed: Tensor) -> Tensor:
        """The change of each head's output: a source's is none, and only edits run once more."""
        chains = Chains.of(call, self.spec.rounds + 1)
        new = changed.unflatten(0, chains.split)
        found = new.new_zeros(new.shape[:5], dtype=torch.float32)
        for number in range(1, chains.split[2]):
            old = chains.attend(number, chains.rows(number))
            each = change(new[:, :, number].flatten(0, 2), old.flatten(0, 2))
            found[:, :, number] = each.unflatten(0, old.shape[:3])
        whole: Tensor = found.flatten(0, 3)
        return whole

    def _read(self, chains: Chains, number: int, rows: Sequence[Tensor], out: Tensor) -> Tensor:
        """Fill in a number's outputs, and the shares that its conditional rows give their words.

        Returns:
            The shares, "G I N".
        """
        call, split, pass_, members = chains.call, chains.split, chains.call.pass_, self.members
        assert pass_ is not None and pass_.rows.cond is not None and members is not None  # noqa: S101
        cond = pass_.rows.cond.start * split[0] // pass_.rows.batch
        which = torch.arange(len(call.query), device=call.query.device).view(split)[cond, :, number]
        words = members.view(split[1], split[2] - 1, split[3], -1)[:, number]
        read = Attended.of(call, *(x[cond].flatten(0, 1) for x in rows))
        over = self.spec.over or "joint"
        found: Tensor = shares(call, read, which.flatten(), words.flatten(0, 1), over).unflatten(
            0, which.shape
        )
        for branch in range(split[0]):
            if branch == cond and read.output is not None:  # It is there already.
                out[branch, :, number] = read.output.unflatten(0, which.shape)
            else:
                some = slice(branch, branch + 1)
                out[some, :, number] = chains.attend(number, rows, some)
        return found

    def _preserve(self, call: Call, split: tuple[int, int, int, int], number: int) -> Tensor:
        """The share that an edit takes from its source, "1 G I 1 N 1"."""
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
        """Tokens that may be edited, "E N" or "1 N"; None as long as it isn't known."""
        layout = call.layout
        if self.spec.mask == "all":
            return torch.ones(1, tokens, dtype=torch.bool, device="cpu")
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
