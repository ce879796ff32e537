"""PrimeComposer while a pipeline runs: latents moved, a prior read, attention edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.latents import LatentEdit
from regaze.hooks.diffusion.passes import Pass, StepLatents
from regaze.hooks.diffusion.predictions import prediction_of
from regaze.hooks.diffusion.rows import call_of_rows, join_rows
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.tally import Tally
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.diffusion import unet_inversion
from regaze.interventions.diffusion.arranging import arrange
from regaze.interventions.diffusion.composed_latents import NAME, NAMES, Inverted, given
from regaze.interventions.diffusion.composing import (
    Prior,
    Subject,
    confined,
    correlated,
    infused,
    on_latents,
)
from regaze.interventions.diffusion.places import read_mask, sized
from regaze.interventions.diffusion.second_text import conditional
from regaze.interventions.diffusion.word_columns import columns_of


@dataclass(eq=False)
class _Memory:
    """The memory of one run."""

    inverted: Inverted | None = None
    priors: dict[str, Prior] = field(default_factory=dict)
    subjects: dict[tuple[int, ...], Subject] = field(default_factory=dict)
    beside: bool = False


@dataclass(frozen=True)
class Composing(LatentEdit):
    """Composition, before and in a pipeline's passes.

    Attributes:
        spec: The method's settings, a `regaze.interventions.PrimeComposer`.
        pictures: Background and object; None if their latents are given.
    """

    places: ClassVar[bool] = True

    spec: Any = None
    pictures: tuple[Image.Image, Image.Image] | None = None
    columns: Tensor | None = None
    tally: Tally = field(default_factory=Tally)
    memory: _Memory = field(default_factory=_Memory)

    def begin(self, run: Run) -> Work:
        """Find the subject's words, and remember nothing of the run before."""
        columns = None
        if self.spec.subject:
            length = max(part.columns.stop for part in run.text)
            columns = torch.zeros(run.samples, length, dtype=torch.bool, device="cpu")
            for sample in range(run.samples):
                for word in self.spec.subject:
                    columns[sample, columns_of(NAME, word, run.text, sample, length)] = True
        return replace(self, columns=columns, tally=run.tally, memory=_Memory())

    def before(self, pass_: Pass) -> None:
        """Move the latents of a step, and read its prior."""
        step, memory = pass_.latents, self.memory
        if step is None:
            return
        if pass_.rows.split:
            raise NotImplementedError(
                f"{NAME}: the prior reads both branches' text, and this pipeline calls its "
                "denoiser for each branch"
            )
        if not step.open:
            raise ValueError(
                f"{NAME}: {type(pass_.pipeline.scheduler).__name__} corrects each step from "
                "latents that it kept, so they can't be composed; use a scheduler of first order"
            )
        latents = step.current()
        if memory.inverted is None:
            memory.inverted = self._inverted(pass_, step, latents)
        moved = self._moved(memory.inverted, latents, step)
        step.put(moved)
        memory.priors.clear()
        if step.index / step.steps < self.spec.correlate:
            self._read(pass_, step, memory.inverted, moved)
        if not (self.spec.correlate or self.spec.subject):
            change = (moved - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
            for site in self.sites:
                self.tally.count(site.name)
                self.tally.add(site.name, change)

    def _moved(self, inverted: Inverted, latents: Tensor, step: StepLatents) -> Tensor:
        """The latents of a step."""
        progress = step.index / step.steps
        if step.index == 0 and self.spec.initial:
            return inverted.begun(latents, self.spec.domain == "same")
        if progress < self.spec.paste:
            return inverted.kept(latents, step.index, inverted.mask)
        if progress < self.spec.keep:
            return inverted.kept(latents, step.index, inverted.region)
        return latents

    # -- the runs beside -----------------------------------------------------------------------

    def _run(self, pass_: Pass, call: dict[str, Any], editors: Mapping[Site, Any]) -> Tensor:
        """The denoiser's prediction for other rows, unedited by this method."""
        self.memory.beside = True
        try:
            output = pass_.forward(call, editors)
        finally:
            self.memory.beside = False
        predicted: Tensor = prediction_of(output)
        return predicted

    def _read(self, pass_: Pass, step: StepLatents, inverted: Inverted, latents: Tensor) -> None:
        """Read the prior of a step."""
        rows, family = pass_.rows, pass_.family
        cond = rows.cond or slice(0, rows.batch)
        plain, own = (
            call_of_rows(pass_.call, one, rows.batch, family) for one in (rows.uncond or cond, cond)
        )
        call = join_rows(plain, own, len(latents), family)
        sample = inverted.beside(latents, step.index, self.spec.around)
        call[family.sample] = step.source.scale(sample).to(pass_.sample.dtype)
        chosen = [site for site in self.sites if site.kind == "self"]
        self._run(pass_, call, {site: [self._correlate] for site in chosen})

    def _correlate(self, call: Call) -> Tensor:
        """Self-attention of the runs beside."""
        subject = self._subject(call)
        if not len(subject.inside):
            return call.output
        output, prior = correlated(call.kernel, call.query, call.key, call.value, subject)
        self.memory.priors[call.site.name] = prior
        return output

    def _inverted(self, pass_: Pass, step: StepLatents, latents: Tensor) -> Inverted:
        """Background and object as latents of every step.

        Raises:
            ValueError: They can't be inverted in this pipeline, or given ones don't fit it.
        """
        spec, pipeline = self.spec, pass_.pipeline
        scheduler, shape = pipeline.scheduler, tuple(latents.shape[1:])
        if pass_.sample.shape[1] != shape[0] or step.steps != len(scheduler.timesteps):
            raise ValueError(
                f"{NAME}: this {type(pipeline).__name__} starts from a picture of its own; compose "
                "in the text-to-image pipeline of this model"
            )
        grid = shape[-2:]
        if self.pictures is None:
            found = given(spec.latents, spec.domain, (step.steps + 1, *shape))
            mask = read_mask(spec.mask)
            fine = tuple(mask.shape) if isinstance(mask, Tensor) else grid
            whole = sized(NAME, mask, grid, fine).reshape(fine)
            inside = region = on_latents(whole, grid)
            if spec.box is not None:
                box = sized(NAME, spec.box, fine, fine).reshape(fine)
                region = on_latents(box | whole, grid)
        else:
            factor = int(pipeline.vae_scale_factor)
            made = arrange(
                NAME, *self.pictures, spec.mask, spec.box, (grid[1] * factor, grid[0] * factor)
            )
            pictures = [made.background, made.reference]
            pictures += [made.pasted] if spec.domain == "same" else []
            found = dict(zip(NAMES, self._invert(pass_, pictures), strict=False))
            inside, region = on_latents(made.mask, grid), on_latents(made.region, grid)
        if not inside.any():
            raise ValueError(f"{NAME}: the object is smaller than one of the picture's latents")
        there = {name: x.to(latents.device) for name, x in found.items()}
        masks = (x.reshape(grid).to(latents.device) for x in (inside, region))
        return Inverted(there[NAMES[0]], there[NAMES[1]], there.get(NAMES[2]), *masks)

    def _invert(self, pass_: Pass, pictures: list[Image.Image]) -> Tensor:
        """Pictures' latents of every step, "B T+1 C H W"."""
        pipeline, family, spec = pass_.pipeline, pass_.family, self.spec
        beside = [n for n, x in pass_.call.items() if "residual" in n and x is not None]
        if beside:
            raise ValueError(
                f"{NAME}: what a ControlNet would add at other noise isn't known, so pictures "
                "can't be inverted beside one; give their latents"
            )
        text, pooled = unet_inversion.text_of(NAME, pipeline, spec.invert)
        first = (pass_.rows.cond or slice(0, 1)).start
        one = call_of_rows(pass_.call, slice(first, first + 1), pass_.rows.batch, family)
        count = len(pictures)
        call = reduce(lambda a, n: join_rows(a, one, n, family), range(1, count), one)
        call[family.text] = text.to(call[family.text]).expand(count, -1, -1)
        if pooled is not None:
            added = call["added_cond_kwargs"]
            text_embeds = pooled.to(added["text_embeds"]).expand(count, -1)
            call["added_cond_kwargs"] = {**added, "text_embeds": text_embeds}
        dtype = pass_.sample.dtype

        def predict(latents: Tensor, t: Tensor) -> Tensor:
            now = {**call, family.sample: latents.to(dtype), "timestep": t}
            return self._run(pass_, now, {}).float()

        scheduler = pipeline.scheduler
        return unet_inversion.invert(
            predict,
            unet_inversion.encoded(NAME, pipeline, pictures).to(pass_.sample.device),
            unet_inversion.levels(NAME, scheduler),
            scheduler.config.prediction_type,
            spec.refine,
        )

    # -- attention -----------------------------------------------------------------------------

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """Layers with a prior, and those that read text; none in the runs beside."""
        if self.memory.beside or pass_.rows.cond is None:
            return ()
        reads = self.columns is not None
        return tuple(
            site
            for site in self.sites
            if site.name in self.memory.priors or (site.kind == "cross" and reads)
        )

    def attend(self, call: Call) -> Tensor:
        """Edit the conditional rows of a call."""
        if call.mask is not None:
            raise ValueError(f"{NAME}: {call.site.name} is called with a mask, which isn't known")
        rows = conditional(call)
        query, key, value = (x[rows] for x in (call.query, call.key, call.value))
        kernel = partial(call.kernel, scale=call.scale)
        subject = self._subject(call)
        if call.site.kind == "cross":
            inside = torch.zeros(query.shape[2], dtype=torch.bool, device=query.device)
            inside[subject.inside] = True
            new = kernel(query, key, value, attn_mask=self._seen(call, inside, len(query)))
        else:
            new = infused(kernel, query, key, value, self.memory.priors[call.site.name], subject)
        parts = [new]
        for rest in (slice(0, rows.start), slice(rows.stop, len(call.query))):
            if rest.start < rest.stop:
                own = kernel(*(x[rest] for x in (call.query, call.key, call.value)))
                parts.insert(len(parts) if rest.start else 0, own)
        return torch.cat(parts)

    def _seen(self, call: Call, inside: Tensor, rows: int) -> Tensor:
        """The columns of the text that a call's conditional rows may read."""
        columns = self.columns
        if columns is None or columns.shape[1] > call.layout.n_text:
            raise RuntimeError(f"{NAME}: the subject's columns aren't known in {call.site.name}")
        every = torch.zeros(rows, call.layout.n_text, dtype=torch.bool, device=inside.device)
        columns = columns.to(inside.device).repeat_interleave(rows // len(columns), 0)
        every[:, : columns.shape[1]] = columns
        return confined(every, inside)

    def _subject(self, call: Call) -> Subject:
        """The subject's tokens in a layer."""
        memory, grid = self.memory, call.layout.grid(call.site, call.query.shape[2])
        if memory.inverted is None or grid is None:
            raise ValueError(
                f"{NAME}: {call.site.name} has {call.query.shape[2]} tokens of an unknown grid"
            )
        if grid not in memory.subjects:
            memory.subjects[grid] = Subject.of(on_latents(memory.inverted.mask, grid))
        return memory.subjects[grid]
