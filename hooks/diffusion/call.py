"""One attention call of an edited module: what a method is shown, and which rows it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Layout, Site

Made = TypeVar("Made")


_UNSPLIT = (
    "if splitting of the batch was switched on, switch it off; a model that always attends to one "
    "sample after the other, as Mochi does, can't be edited in this way"
)


@dataclass(frozen=True)
class Entered:
    """The rows that entered a module's forward.

    Attributes:
        batch: Samples (or chunks, or frames, or places, whatever the batch holds).
        tokens: Tokens of its main stream.
        text: Tokens of a text stream that enters beside it.
    """

    batch: int
    tokens: int
    text: int = 0

    @classmethod
    def of(cls, site: Site, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Entered:
        """Read the rows off a module's arguments.

        Raises:
            RuntimeError: They have no known form.
        """
        names = ("hidden_states", "x", "encoder_hidden_states")
        hidden = args[0] if args else next((kwargs[n] for n in names[:2] if n in kwargs), None)
        beside = args[1] if len(args) > 1 else kwargs.get(names[2])
        if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
            raise RuntimeError(
                f"{site.name} isn't called with hidden states (batch, tokens, size), so it can't "
                "be told whether all of its rows are edited"
            )
        tokens = hidden.shape[1] if hidden.ndim == 3 else hidden.shape[2] * hidden.shape[3]
        joint = site.kind == "joint" and isinstance(beside, Tensor) and beside is not hidden
        return cls(len(hidden), tokens, int(beside.shape[1]) if joint else 0)  # type: ignore[union-attr]

    def covered(self, calls: Sequence[tuple[int, int]]) -> bool:
        """True if calls of (batch, tokens) hold these rows, all of them and each once.

        Padding of a text stream that enters beside the main one may be left out.
        """
        rows = sum(batch * tokens for batch, tokens in calls)
        if rows == self.batch * (self.tokens + self.text):
            return True
        whole = all(self.tokens <= tokens <= self.tokens + self.text for _, tokens in calls)
        return whole and self.text > 0 and sum(batch for batch, _ in calls) == self.batch

    def __str__(self) -> str:
        beside = f" and {self.text} of text" if self.text else ""
        return f"{self.batch} x {self.tokens} rows{beside}"


class Samples(NamedTuple):
    """The division of a call's batch, from the outermost to the innermost.

    Attributes:
        branches: Branches of guidance.
        prompts: Prompts of each.
        images: Images of each prompt.
        frames: Frames of each image that the batch holds side by side.
    """

    branches: int
    prompts: int
    images: int
    frames: int


@dataclass(frozen=True)
class Call:
    """One kernel call of an edited module.

    Attributes:
        site: The attention module.
        layout: Layout of the forward pass's tokens.
        query: "B H N D".
        key: "B G N D".
        value: "B G N D".
        mask: The mask given to the kernel.
        scale: Factor of the logits.
        kernel: The stock kernel with the call's mask and scale: ``kernel(query, key, value)``.
        entered: The rows that entered the module, of which the call may hold a part.
        module: The module.
        pass_: The denoiser's forward pass.
        given: Head outputs that an edit before this one made of the call.
        factors: Factors by which the module's output will be multiplied; see `amplify`.
        made: Values that `once` keeps.
    """

    site: Site
    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    kernel: Callable[..., Tensor]
    entered: Entered | None = None
    module: nn.Module | None = None
    pass_: Pass | None = None
    given: Tensor | None = None
    factors: list[Tensor] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)

    def once(self, make: Callable[[], Made]) -> Made:
        """Make something at the first time alone, so that the edit's measurement costs nothing.

        Args:
            make: Makes what a work needs of this call, be it to edit it or to leave it unedited.
        """
        if not self.made:
            self.made.append(make())
        found: Made = self.made[0]
        return found

    def amplify(self, factor: Tensor) -> None:
        """Multiply what the module returns, its projection's bias included; the text's rows aren't.

        Args:
            factor: One for each sample of the batch, "B".

        Raises:
            RuntimeError: The call holds a part of the module's samples only.
        """
        if self.entered is None or len(self.query) != self.entered.batch:
            raise RuntimeError(
                f"{self.site.name} calls its kernel on {len(self.query)} of the samples that "
                f"entered it, so what it returns can't be scaled; {_UNSPLIT}"
            )
        self.factors.append(factor)

    @cached_property
    def output(self) -> Tensor:
        """The head outputs before this edit, "B H N D"; computed once, never to be written to."""
        if self.given is not None:
            return self.given
        result: Tensor = self.kernel(self.query, self.key, self.value)
        return result

    def image(self) -> slice:
        """The slice of the image's tokens among the rows.

        Raises:
            ValueError: It can't be told in this pass.
            RuntimeError: The call holds a part of the tokens only.
        """
        layout = self.layout
        if layout.segments:
            whole = layout.image(self.site.order, self.key.shape[2])
            rows = self.query.shape[2]
            return slice(*(min(max(0, n - self.first), rows) for n in (whole.start, whole.stop)))
        tokens = self._whole()
        if self.entered is None or not self.entered.text:
            return layout.image(self.site.order, tokens)
        # Padding of the text may have been left out.
        text = tokens - self.entered.tokens
        return replace(layout, n_text=text).image(self.site.order, tokens)

    @property
    def first(self) -> int:
        """The column of the first row, where rows are columns, too: mostly 0."""
        return self.key.shape[2] - self.query.shape[2] if self.layout.segments else 0

    @property
    def own(self) -> Tensor:
        """Values of the call's rows, "B G N D"."""
        return self.value[:, :, self.first :]

    def text(self) -> slice:
        """The slice of the text's tokens among the columns, of joint attention.

        Raises:
            ValueError: It can't be told in this pass.
            RuntimeError: The call holds a part of the tokens only.
        """
        if self.layout.segments:
            return self.layout.text(self.site.order, self.key.shape[2])
        tokens = self._whole()
        if self.entered is not None and tokens != self.entered.tokens + self.entered.text:
            raise RuntimeError(
                f"{self.site.name} leaves padding of the text out, so which tokens are which words "
                "isn't known"
            )
        return self.layout.text(self.site.order, tokens)

    def _whole(self) -> int:
        """The number of the call's tokens, once it is known that these are all."""
        tokens = self.query.shape[2]
        if self.entered is not None:
            alone, beside = self.entered.tokens, self.entered.text
            if not alone <= tokens <= alone + beside:
                raise RuntimeError(
                    f"{self.site.name} calls its kernel on {tokens} of the {alone} rows that "
                    "entered it, and where in the picture these are isn't known, which this edit "
                    "needs; choose other layers, or switch splitting (chunks, windows) off"
                )
        return tokens

    def samples(self) -> Samples:
        """The division of the batch into branches, prompts, images and frames.

        Raises:
            RuntimeError: It holds a part of the pass's rows, and it isn't known which.
        """
        batch, layout = len(self.query), self.layout
        frames = layout.frames or 1
        rows = batch // frames if self.pass_ is None else self.pass_.rows.batch
        each = layout.branches * layout.images
        if batch != rows * frames or rows % each or self.site.kind == "temporal":
            raise RuntimeError(
                f"{self.site.name} calls its kernel on {batch} samples, and the denoiser was "
                f"called with {rows * frames}: which these are isn't known, which this edit needs; "
                f"{_UNSPLIT}"
            )
        return Samples(layout.branches, rows // each, layout.images, frames)

    def visible(self) -> Tensor | None:
        """Rows that aren't padding, "B 1 N 1", if the mask says so: some row sees them."""
        if self.mask is None:
            return None
        mask = self.mask if self.mask.ndim == 4 else self.mask[:, None]
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return seen.any(-2)[:, :1, self.first :, None]

    def at_temperature(self, tau: float) -> Tensor:
        """The head outputs with all logits, mask included, divided by tau."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return self.kernel(self.query / tau, self.key, self.value)
        return self.kernel(self.query / tau, self.key, self.value, attn_mask=self.mask / tau)


Editor = Callable[[Call], Tensor]
"""A function that makes the head outputs of a call, "B H N D"."""
