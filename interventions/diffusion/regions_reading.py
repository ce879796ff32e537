"""The work of `regions`: the picture reads, in each attention to text, its regions' prompts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.encode import Encoded, encode
from regaze.hooks.diffusion.fork import Instead
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.diffusion import regional
from regaze.interventions.diffusion.one_picture import with_one_picture
from regaze.interventions.diffusion.places import sized
from regaze.interventions.diffusion.second_text import (
    CROSS,
    conditional,
    joint_outputs,
    more_tokens,
    part_of,
    picture_of,
    regional_rows,
)


@dataclass(frozen=True)
class Regional(Work):
    """Gives a denoiser the regions' texts, and lets each region read its own.

    Attributes:
        prompts: The regions' prompts.
        base: Share of the base prompt in the regions.
        every: Of how many double and single blocks each first one keeps regions apart.
        overlap: Prompts that tokens in several regions read.
        model: The denoiser's class.
        encoded: The regions' prompts as embeddings, once they are known.
        masks: The regions' places.
        found: The groups of tokens on each grid, as far as one was needed.
    """

    places: ClassVar[bool] = True

    prompts: tuple[str, ...] = ()
    base: float = 1.0
    every: tuple[int, ...] = (1, 1)
    overlap: str | None = None
    model: str = ""
    encoded: Encoded | None = None
    masks: tuple[Any, ...] = ()
    found: dict[tuple[int, ...], list[regional.Group]] = field(default_factory=dict)

    def begin(self, run: Run) -> Work:
        """Read the regions' prompts."""
        if self.encoded is not None:
            return self
        return replace(self, encoded=encode(run.pipeline, self.model, self.prompts), found={})

    def arguments(self, call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
        """Add the regions' prompts behind the text; in FLUX the base's stream in further rows."""
        if pass_.rows.cond is None:
            return call
        if self.encoded is None:
            raise ValueError(
                "regions: a bare denoiser has no encoder to read prompts with, and a modular "
                "pipeline doesn't tell its own; give embeddings, or attach to a stock pipeline"
            )
        together = Encoded(self.encoded.text.flatten(0, 1)[None])
        if self.model == "FluxTransformer2DModel":
            return regional_rows("regions", call, pass_, together)
        return more_tokens("regions", call, pass_, together)

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """Every layer that sees the text, in passes with conditional rows."""
        return () if pass_.rows.cond is None else self.sites

    def blocks(self, pass_: Pass) -> dict[str, Instead]:
        """FLUX's blocks of two streams, which have one picture; its others begin with a copy."""
        flux = self.model == "FluxTransformer2DModel" and pass_.rows.cond is not None
        return with_one_picture(pass_) if flux else {}

    def attend(self, call: Call) -> Tensor:
        """Head outputs, the regions' and the base's mixed."""
        if call.pass_ is None or self.encoded is None:
            raise RuntimeError("regions edits passes of a denoiser that was given their prompts")
        own = int(call.pass_.call[call.pass_.family.text].shape[1])
        if self.model in CROSS:
            return self._cross(call, own)
        start, length = call.text().start, self.encoded.text.shape[0] * self.encoded.text.shape[1]
        words, prompts = slice(start, start + own), slice(start, start + length)
        apart = call.site.block.startswith("single_")
        if self.model != "FluxTransformer2DModel":
            prompts = slice(start + own, start + own + length)
        elif not apart:  # Both are padded to the longer one.
            words = slice(start + max(own, length), start + max(own, length) + own)
        return self._joint(call, words, prompts, apart)

    def unedited(self, call: Call) -> Tensor:
        """The same with nothing but the base prompt's share."""
        return replace(self, base=1.0).attend(call)

    def _cross(self, call: Call, own: int) -> Tensor:
        rows, count = conditional(call), len(self.masks)

        def read() -> tuple[Tensor, Tensor]:
            output = call.kernel(call.query, call.key[:, :, :own], call.value[:, :, :own])
            texts = torch.stack([x[rows, :, own:] for x in (call.key, call.value)])
            texts, query = texts.unflatten(3, (count, -1)), call.query[rows]
            groups = self._groups(call, query.shape[2])
            return output, regional.cross(call.kernel, query, texts, groups, output[rows])

        output, region = call.once(read)
        mixed = self._mixed(region, output[rows])
        return torch.cat([output[: rows.start], mixed, output[rows.stop :]])

    def _joint(self, call: Call, words: slice, prompts: slice, apart: bool) -> Tensor:
        """Joint attention.

        Args:
            call: The attention call.
            words: Tokens of the base's text.
            prompts: Tokens of the regions' texts.
            apart: True if the base's are in rows behind the regions', with a picture of their own.
        """
        image, half, every = picture_of(call), len(call.query) // 2, slice(0, len(call.query))
        rows, others = (slice(0, half), slice(half, None)) if apart else (conditional(call), every)

        def read() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            base = joint_outputs(call, part_of(call, others, image), part_of(call, others, words))
            picture, texts = (part_of(call, rows, tokens) for tokens in (image, prompts))
            return *base, *self._regions(call, picture, texts)

        plain, text, region, texts = call.once(read)
        output = torch.zeros_like(call.query)
        output[others, :, image], output[others, :, words] = plain, text
        output[rows, :, image] = self._mixed(region, plain if apart else plain[rows])
        output[rows, :, prompts] = texts
        return output

    def _regions(self, call: Call, picture: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The picture's rows and the texts', apart or, between these blocks, all together."""
        single = call.site.block.startswith("single_")
        index = int(call.site.block.rpartition(".")[2])
        if index % self.every[single]:
            return joint_outputs(call, picture, texts)
        groups = self._groups(call, picture.shape[3])
        return regional.joint(call.kernel, picture, texts, groups, len(self.masks))

    def _mixed(self, region: Tensor, base: Tensor) -> Tensor:
        mixed: Tensor = torch.lerp(region, base, self.base)
        return mixed if self.base else region

    def _groups(self, call: Call, tokens: int) -> list[regional.Group]:
        """The groups of a layer's tokens.

        Raises:
            ValueError: The grid isn't known, or masks have other proportions or overlap.
        """
        layout = call.layout
        if layout.stream is not None and layout.stream != layout.n_image:
            raise ValueError(
                "regions: this picture is made of reference pictures, whose tokens lie in no region"
            )
        grid = layout.grid(call.site, tokens)
        if grid is None or layout.finest is None:
            raise ValueError(f"regions: {call.site.name} has {tokens} tokens of an unknown grid")
        if grid not in self.found:
            masks = [sized("regions", mask, layout.finest, grid) for mask in self.masks]
            inside = regional.ruled(torch.stack(masks), self.overlap)
            self.found[grid] = regional.groups(inside.to(call.query.device))
        return self.found[grid]
