"""PrimeComposer the literal way: whole maps, four runs beside, logits overwritten by numbers.

What the engine gives has to equal this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.literal import Manner, by_name
from regaze.hooks.diffusion.literal_maps import kernels
from regaze.hooks.diffusion.sites import find_sites, read_layout
from regaze.hooks.diffusion.text import read_text
from regaze.interventions.diffusion import unet_inversion
from regaze.interventions.diffusion.arranging import arrange, opened
from regaze.interventions.diffusion.places import read_mask, sized
from regaze.interventions.diffusion.word_columns import columns_of

_TEXT = "encoder_hidden_states"


@contextmanager
def composed(spec: Any, pipeline: Any, running: Manner) -> Iterator[None]:
    """Compose literally in the pipeline that is called inside.

    Args:
        spec: A resolved `regaze.interventions.PrimeComposer`.
        pipeline: A diffusers pipeline with nothing attached.
        running: The run that is to come.
    """
    if not spec.acts:
        yield
        return
    run = _Run(spec, pipeline, running)
    scheduler = pipeline.scheduler
    step, scale = scheduler.step, scheduler.scale_model_input

    @wraps(step)
    def stepped(prediction: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(prediction, t, run.latents.to(sample.dtype), *args, **kwargs)

    @wraps(scale)
    def scaled(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        run.given = sample
        return scale(sample, *args, **kwargs)

    run.scale = scale
    run.denoiser.forward, scheduler.step, scheduler.scale_model_input = run.forward, stepped, scaled
    try:
        yield
    finally:
        del run.denoiser.forward, scheduler.step, scheduler.scale_model_input


class _Run:
    """One run of a pipeline."""

    def __init__(self, spec: Any, pipeline: Any, running: Manner) -> None:
        self.spec, self.pipeline, self.running = spec, pipeline, running
        self.denoiser = getattr(pipeline, running.denoiser)
        self.stock = self.denoiser.forward
        self.sites = [s for s in find_sites(self.denoiser) if s.kind in ("self", "cross")]
        self.step = -1
        self.scale: Any = None
        self.given = self.latents = torch.zeros(0)
        self.levels: dict[str, Tensor] = {}
        self.mask = self.region = torch.zeros(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's call in a step."""
        call = by_name(self.denoiser, args, kwargs)
        spec, steps = self.spec, len(self.pipeline.scheduler.timesteps)
        self.step += 1
        z = self.running.cond(self.given).float() if len(self.given) > self.running.samples else (
            self.given.float()
        )  # fmt: skip
        if not self.levels:
            self._prepare(call, z)
        ground, thing = self.levels["background"][self.step], self.levels["object"][self.step]
        share = self.step / steps
        new = z.clone()
        for row in new:
            if self.step == 0 and spec.initial:
                noise = row.clone()
                row[:] = self.levels["pasted"][0] if spec.domain == "same" else ground
                row[:, self.region] = noise[:, self.region]
                inner = self.levels["pasted"][0] if spec.domain == "same" else thing
                row[:, self.mask] = inner[:, self.mask]
            elif share < spec.paste:
                row[:, ~self.mask] = ground[:, ~self.mask]
            elif share < spec.keep:
                row[:, ~self.region] = ground[:, ~self.region]
        self.latents = new
        logits = self._logits(call, new, ground, thing) if share < spec.correlate else {}
        sample = self._scaled(new).to(call["sample"].dtype)
        call["sample"] = sample.repeat(len(call["sample"]) // len(sample), 1, 1, 1)
        columns = self._columns(call, len(new))

        def literal(name: str) -> Callable[..., Tensor]:
            def kernel(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
                z = _products(query, key)
                half = len(z) // 2 if self.running.both else 0
                inside = self._tokens(call, name, z.shape[2])
                for sample, row in enumerate(z[half:]):
                    if name in logits:
                        row[:, :, inside] = logits[name][sample]
                        row[:, inside, :] = logits[name][sample].transpose(1, 2)
                    elif name in crosses:
                        for column in columns[sample]:
                            row[:, ~inside, column] = torch.finfo(row.dtype).min
                return (z.softmax(-1) @ value.float()).to(query.dtype)

            return kernel

        crosses = [s.name for s in self.sites if s.kind == "cross" and spec.subject]
        with kernels(self.denoiser, [*logits, *crosses], literal):
            return self.stock(**call)

    def _logits(
        self, call: dict[str, Any], z: Tensor, ground: Tensor, thing: Tensor
    ) -> dict[str, Tensor]:
        """The logits of a step's prior, "B H N S", by layer."""
        composite, reference = ground.clone(), z.clone()
        composite[:, self.mask] = thing[:, self.mask]
        rest = thing if self.spec.around == "reference" else ground
        reference[:, :, ~self.mask] = rest[:, ~self.mask]
        composites = composite.expand_as(z)
        four = [composites, composites, reference, reference]
        own, other = self.running.cond, self.running.uncond
        beside = {**call, "sample": self._scaled(torch.cat(four)).to(call["sample"].dtype)}
        beside = _of_rows(beside, lambda x: torch.cat([other(x), other(x), own(x), own(x)]))
        found: dict[str, Tensor] = {}

        def literal(name: str) -> Callable[..., Tensor]:
            def kernel(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
                inside = self._tokens(call, name, query.shape[2])
                if not inside.any():
                    return (_products(query, key).softmax(-1) @ value.float()).to(query.dtype)
                count = len(z)
                logits = _products(query[-count:], key[:count])[..., inside]
                found[name] = logits
                out = logits.softmax(-1) @ value[:count, :, inside].float()
                return out.repeat(4, 1, 1, 1).to(query.dtype)

            return kernel

        with kernels(self.denoiser, list(self.spec.layers), literal):
            self.stock(**beside)
        return found

    def _prepare(self, call: dict[str, Any], z: Tensor) -> None:
        spec, grid = self.spec, z.shape[-2:]
        if spec.latents is not None:
            from safetensors.torch import load_file

            self.levels = {name: x.float() for name, x in load_file(spec.latents).items()}
            mask = read_mask(spec.mask)
            fine = mask.shape if isinstance(mask, Tensor) else grid
            inside = mask if isinstance(mask, Tensor) else sized("", mask, grid, grid).view(grid)
            region = inside if spec.box is None else sized("", spec.box, fine, fine).view(fine)
        else:
            size = (
                grid[1] * self.pipeline.vae_scale_factor,
                grid[0] * self.pipeline.vae_scale_factor,
            )
            ground, thing = (opened("", n, getattr(spec, n)) for n in ("background", "object"))
            made = arrange("", ground, thing, spec.mask, spec.box, size)
            self.levels = {
                "background": self._inverted(call, made.background),
                "object": self._inverted(call, made.reference),
            }
            if spec.domain == "same":
                self.levels["pasted"] = self._inverted(call, made.pasted)
            inside, region = made.mask, made.region
        self.mask = _every(inside, *grid)
        self.region = _every(region, *grid) | self.mask

    def _inverted(self, call: dict[str, Any], picture: Any) -> Tensor:
        """One picture's latents of every step: each step downwards is solved for where it began."""
        scheduler = self.pipeline.scheduler
        x = unet_inversion.encoded("", self.pipeline, [picture])
        text = unet_inversion.text_of("", self.pipeline, self.spec.invert)[0]
        one = _of_rows(call, lambda rows: rows[:1])
        found, below = [x], (1.0, 0.0)
        for level in unet_inversion.levels("", scheduler)[::-1]:
            guess = x
            for _ in range(self.spec.refine + 1):
                sample = guess.to(call["sample"].dtype)
                m = self.stock(
                    **{**one, "sample": sample, "timestep": level.t, _TEXT: text.to(sample.dtype)}
                )[0].float()

                down = partial(_down, m, level, below, scheduler.config.prediction_type)
                offset = down(torch.zeros_like(x))
                guess = (x - offset) / (down(torch.ones_like(x)) - offset)
            found.append(guess * level.factor)
            x, below = guess, (level.signal, level.noise)
        return torch.cat(found[::-1])

    def _scaled(self, z: Tensor) -> Tensor:
        scaled: Tensor = self.scale(z, self.pipeline.scheduler.timesteps[self.step])
        return scaled

    def _tokens(self, call: dict[str, Any], name: str, count: int) -> Tensor:
        """The tokens of a layer that are the subject's, "N"."""
        site = next(site for site in self.sites if site.name == name)
        grid = read_layout(self.denoiser, call).grid(site, count)
        if grid is None:
            raise NotImplementedError(f"the grid of {count} tokens isn't known")
        return _every(self.mask, *grid).flatten()

    def _columns(self, call: dict[str, Any], samples: int) -> list[list[int]]:
        """The columns of the subject's words, of each sample."""
        length = call[_TEXT].shape[1]
        parts = read_text(self.pipeline, samples, length)
        return [
            [c for word in self.spec.subject or () for c in columns_of("", word, parts, n, length)]
            for n in range(samples)
        ]


def _down(m: Tensor, level: Any, below: tuple[float, float], predicts: str, x: Tensor) -> Tensor:
    """A step downwards from latents, for which the model said m."""
    a, s = level.signal, level.noise
    if predicts == "epsilon":
        clean, noise = (x - s * m) / a, m
    else:
        clean, noise = a * x - s * m, s * x + a * m
    stepped: Tensor = below[0] * clean + below[1] * noise
    return stepped


def _products(query: Tensor, key: Tensor) -> Tensor:
    found: Tensor = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    return found


def _every(mask: Tensor, rows: int, columns: int) -> Tensor:
    """A mask on a grid, by the first pixel of each cell."""
    down, across = mask.shape[0] / rows, mask.shape[1] / columns
    cells = [[bool(mask[int(r * down), int(c * across)]) for c in range(columns)]
             for r in range(rows)]  # fmt: skip
    return torch.tensor(cells, device="cpu")


def _of_rows(call: dict[str, Any], cut: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A call with other rows of its text and what else each row has."""
    found = dict(call)
    found[_TEXT] = cut(call[_TEXT])
    added = call.get("added_cond_kwargs")
    if added:
        found["added_cond_kwargs"] = {
            name: [*map(cut, x)] if isinstance(x, list) else cut(x) for name, x in added.items()
        }
    return found
