"""The layout of a denoiser's tokens in one forward pass, read off its arguments.

One reader for each way in which denoisers are told the size of a picture. A picture that starts
from others (an edit, a continuation) may have their tokens beside its own: the picture's rows are
those that are being painted, never the references'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor

Order = Literal["image", "image-text", "text-image"]
"""The order in which an attention call holds its streams."""


class Place(Protocol):
    """The part of a `regaze.hooks.diffusion.Site` that a grid depends on."""

    @property
    def name(self) -> str:
        """The site's path."""

    @property
    def level(self) -> int:
        """The number of times that the grid is halved before it."""


@dataclass(frozen=True)
class Layout:
    """The layout of the tokens of one forward pass.

    Attributes:
        finest: (rows, columns) or (frames, rows, columns) of the finest token grid, if known.
        n_text: Length of the text stream, in tokens.
        halves: True if the grid halves from level to level (U-Nets), rounding up.
        branches: Number of branches of guidance that the batch holds, one after the other.
        images: Number of images of each prompt that lie side by side in a branch.
        frames: Number of frames of each sample that an attention call's batch holds side by side,
            where the denoiser puts them there (AnimateDiff).
        n_image: Number of tokens of the picture itself, which come first in its stream; None if its
            stream holds nothing else.
        stream: Length of the picture's stream with what else it holds (reference pictures,
            padding); None if nothing.
        registers: Number of tokens of the model's own that come first in the text stream.
        segments: True if a layer attends part by part, each part to itself and what comes before
            it: the rows of a call are the last of its columns.
        unclear: Reason why it can't be told where the picture is; empty if it can.
    """

    finest: tuple[int, ...] | None
    n_text: int
    halves: bool
    branches: int = 1
    images: int = 1
    frames: int | None = None
    n_image: int | None = None
    stream: int | None = None
    registers: int = 0
    segments: bool = False
    unclear: str = ""

    @property
    def n_words(self) -> int:
        """Tokens of the text alone, in the order of its encoders."""
        return self.n_text - self.registers

    def grid(self, site: Place, tokens: int) -> tuple[int, ...] | None:
        """The grid of a site's image tokens, or None if this picture's grid isn't known.

        Args:
            site: The site that they are in.
            tokens: Number of image tokens.

        Raises:
            ValueError: The picture has another number of tokens at the site's level.
        """
        if self.finest is None:
            return None
        grid = halved(self.finest, site.level) if self.halves else self.finest
        if math.prod(grid) != tokens:
            raise ValueError(
                f"{site.name} attends with {tokens} image tokens, and the picture has "
                f"{' x '.join(map(str, grid))} there: which place each of them is isn't known; "
                "switch off what merges, splits or rescales tokens (token merging, HyperTile, "
                "Deep Shrink), or choose other layers"
            )
        return grid

    def image(self, order: Order, tokens: int) -> slice:
        """The slice of the picture's tokens in a call.

        Args:
            order: Order of the streams in the call's rows.
            tokens: Number of tokens in the call.

        Raises:
            ValueError: It can't be told in this pass.
        """
        if self.unclear:
            raise ValueError(f"which tokens are the picture's can't be told: {self.unclear}")
        start = self.n_text if order == "text-image" else 0
        if self.n_image is not None:
            return slice(start, start + self.n_image)
        return slice(start, tokens - self.n_text if order == "image-text" else tokens)

    def text(self, order: Order, tokens: int) -> slice:
        """The slice of the text's tokens in a call.

        Args:
            order: Order of the streams in the call's rows.
            tokens: Number of tokens in the call.

        Raises:
            ValueError: It can't be told in this pass.
        """
        if self.unclear:
            raise ValueError(f"which tokens are the text's can't be told: {self.unclear}")
        if order == "text-image":
            return slice(self.registers, self.n_text)
        start = tokens - self.n_text if self.stream is None else self.stream
        return slice(start, start + self.n_text)


Reader = Callable[[Any, Mapping[str, Any]], Layout]
"""A function that reads a layout: ``reader(denoiser, call)``, the call's arguments by name."""


def halved(grid: tuple[int, ...], times: int) -> tuple[int, ...]:
    """A grid whose rows and columns were halved some times, rounding up."""
    *frames, rows, columns = grid
    for _ in range(times):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return (*frames, rows, columns)


def text_of(call: Mapping[str, Any], name: str = "encoder_hidden_states") -> int:
    """Length of a call's text stream."""
    text = call.get(name)
    return int(text.shape[1]) if isinstance(text, Tensor) else 0


def levels(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """U-Nets: a token for each latent, and half as many rows and columns at each level.

    An attention call of a video U-Net sees each frame apart: frames are folded into the batch.
    """
    shape = tuple(call["sample"].shape)
    frames = int(shape[2]) if len(shape) == 5 else None
    return Layout(shape[-2:], text_of(call), halves=True, frames=frames)


def frames_first(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """U-Nets whose sample is "B F C H W"."""
    return replace(levels(denoiser, call), frames=int(call["sample"].shape[1]))


def patches(axes: str = "hw") -> Reader:
    """Latents of which the denoiser itself cuts patches.

    Args:
        axes: The last axes, "c" for channels, of which "f", "h" and "w" make the grid; a sample of
            four axes is a picture and has no "f".
    """

    def read(denoiser: Any, call: Mapping[str, Any]) -> Layout:
        sample = call["hidden_states"]
        found = axes.replace("f", "") if sample.ndim == 4 else axes
        shape = dict(zip(found, sample.shape[-len(found) :], strict=True))
        sides = [shape[axis] for axis in "fhw" if axis in shape]
        patch = getattr(denoiser.config, "patch_size", None) or 1
        cut = list(patch) if isinstance(patch, (tuple, list)) else [patch, patch]
        if len(cut) < len(sides):
            cut = [getattr(denoiser.config, "patch_size_t", None) or 1, *cut]
        grid = tuple(n // p for n, p in zip(sides, cut[-len(sides) :], strict=True))
        count = math.prod(grid)
        return Layout(grid, text_of(call), halves=False, n_image=count, stream=count)

    return read


def positions(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Packed latents with a position for each token: the picture's, then those of references.

    They differ in the first axis.
    """
    ids = call["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[:, 0] == ids[0, 0]
    n_image, n_text = int(own.sum()), text_of(call)
    if call.get("kv_cache_mode") is not None:
        return Layout(None, n_text, False, unclear="reference pictures are kept in a cache")
    if not bool(own[:n_image].all()):
        return Layout(None, n_text, False, unclear="its tokens aren't the first of their stream")
    spread = ids[:n_image].amax(0) - ids[:n_image].amin(0)
    grid = (int(spread[1]) + 1, int(spread[2]) + 1)
    known = grid if math.prod(grid) == n_image else None
    return Layout(known, n_text, halves=False, n_image=n_image, stream=len(ids))


def all_positions(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Packed latents with positions of the text's tokens and the picture's in one argument."""
    ids = call["position_ids"][text_of(call) :]
    return positions(denoiser, {**call, "img_ids": ids})


def shapes(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Packed latents with the shapes of the pictures beside them, the painted one's first."""
    first = call["img_shapes"][0]
    all_ = [tuple(shape) for shape in first] if isinstance(first, list) else [tuple(first)]
    counts, n_text = [math.prod(shape) for shape in all_], text_of(call)
    if getattr(denoiser.config, "use_layer3d_rope", False):
        # A picture in layers, and what it is made of last.
        return Layout(None, n_text, False, n_image=sum(counts[:-1]), stream=sum(counts))
    return Layout(all_[0], n_text, halves=False, n_image=counts[0], stream=sum(counts))


def qwen_image21(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Qwen-Image 2.1: the text, which sees what comes before it alone, then the picture."""
    shapes_, n_text = call["img_shapes"][0], text_of(call)
    if call.get("kv_cache_mode") == "cached":
        return Layout(None, n_text, False, segments=True, unclear="the text is kept in a cache")
    if len(shapes_) > 1:
        why = "reference pictures lie between the words of the text"
        return Layout(None, n_text, False, segments=True, unclear=why)
    grid = tuple(shapes_[0])
    return Layout(grid, n_text, False, n_image=math.prod(grid), segments=True)


def sizes(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Packed latents with ``num_frames``, ``height`` and ``width`` beside them."""
    grid = tuple(call.get(name) or 0 for name in ("num_frames", "height", "width"))
    if math.prod(grid) == int(call["hidden_states"].shape[1]):
        return Layout(grid, text_of(call), halves=False)
    why = "the call holds other tokens than num_frames x height x width, such as given frames"
    return Layout(None, text_of(call), halves=False, unclear=why)


def beside(reader: Reader, *others: str) -> Reader:
    """A layout whose text stream also holds other arguments' tokens.

    Args:
        reader: Reads the rest.
        *others: Their names; what is None or absent isn't there.
    """

    def read(denoiser: Any, call: Mapping[str, Any]) -> Layout:
        layout = reader(denoiser, call)
        return replace(layout, n_text=layout.n_text + sum(text_of(call, n) for n in others))

    return read


def allegro(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Allegro: its text has an axis of one before the tokens'."""
    n_text = int(call["encoder_hidden_states"].shape[-2])
    return replace(patches("fhw")(denoiser, call), n_text=n_text)


def registers(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """AuraFlow: learned tokens before the text."""
    layout, count = patches("hw")(denoiser, call), int(denoiser.register_tokens.shape[1])
    return replace(layout, n_text=layout.n_text + count, registers=count)


def kandinsky5(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Kandinsky 5: channels come last, and sparse attention sorts tokens into blocks."""
    layout = patches("fhwc")(denoiser, call)
    sorted_ = (call.get("sparse_params") or {}).get("to_fractal")
    return replace(layout, finest=None) if sorted_ else layout


def lumina2(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Lumina 2: each row has its text without padding, then the picture."""
    lengths = set(call["encoder_attention_mask"].sum(1).tolist())
    layout = patches("hw")(denoiser, call)
    if len(lengths) > 1:
        why = f"the batch holds prompts of {len(lengths)} lengths, and the picture comes after them"
        return replace(layout, unclear=why, finest=None)
    return replace(layout, n_text=int(lengths.pop()))


_MULTIPLE = 32
"""Z-Image pads the picture and the text to a multiple of this many tokens."""


def z_image(denoiser: Any, call: Mapping[str, Any]) -> Layout:
    """Z-Image: the picture, then the text, both padded by learned tokens."""
    first = call["x"][0]
    if isinstance(first, list):
        return Layout(None, 0, False, unclear="reference pictures lie in the same list")
    cut = (call.get("f_patch_size") or 1, *[call.get("patch_size") or 2] * 2)
    grid = tuple(n // p for n, p in zip(first.shape[1:], cut, strict=True))
    n_image, n_text = math.prod(grid), max(len(text) for text in call["cap_feats"])
    stream = -(-n_image // _MULTIPLE) * _MULTIPLE
    return Layout(grid, n_text, halves=False, n_image=n_image, stream=stream)
