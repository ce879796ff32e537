"""One stream of the picture beside several of text, in blocks that have a stream of each.

Rows that were added for a second text (`regaze.interventions.diffusion.second_text.more_rows`) show
the same picture as the first text's. So a block is run on the pipeline's own rows of the picture,
and on all of text, each modulated by its own pooled text; in attention, where a block's streams
meet, a sample's texts lie one behind the other. Behind the block the added rows get a copy of the
picture: what comes between blocks (a ControlNet) and behind them sees the rows that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.fork import Instead
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import take_rows


def with_one_picture(pass_: Pass) -> dict[str, Instead]:
    """The code in the place of a pass's blocks of two streams, SD3's or FLUX's, and of their parts.

    Args:
        pass_: One whose conditional rows have a second text in rows behind all others.
    """
    cond, denoiser = pass_.rows.cond or slice(0, pass_.rows.batch), pass_.denoiser
    rows = _Rows(pass_.rows.batch, cond)
    found: dict[str, Instead] = {}
    for number, block in enumerate(denoiser.transformer_blocks):
        name = f"transformer_blocks.{number}"
        found[name], found[f"{name}.norm1"] = rows.block, rows.norm
        found[f"{name}.norm1_context"] = rows.fold
        if getattr(block.attn, "to_add_out", None) is not None:  # The last block drops its text.
            found[f"{name}.attn.to_add_out"] = rows.unfold
    return found


@dataclass(frozen=True)
class _Rows:
    """The rows of a pass: ``batch`` that show a picture, of which ``cond`` have a second text."""

    batch: int
    cond: slice

    def block(self, run: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """A block on one picture: its text's stream and the picture's, a copy for each row."""
        picture, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        others: dict[str, Any] = {"hidden_states": picture[: self.batch]}
        if (turns := arguments.get("image_rotary_emb")) is not None:
            length = text.shape[1]  # Of both texts, whose tokens lie at the same places.
            others["image_rotary_emb"] = tuple(torch.cat([x[:length], x]) for x in turns)
        name = "joint_attention_kwargs"  # An adapter's tokens, which the picture reads.
        if (more := arguments.get(name)) is not None:
            others[name] = take_rows(more, slice(0, self.batch), len(picture))
        text, picture = run(**others)
        return text, torch.cat([picture, picture[self.cond]])

    def norm(self, run: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """The picture's modulation, by the first texts alone."""
        return run(emb=arguments["emb"][: self.batch])

    def fold(self, run: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Modulated texts on their way into attention, a sample's one behind the other."""
        found = run()
        text, *gates = found if isinstance(found, tuple) else (found,)
        first, second = text[: self.batch], text[self.batch :]
        # Other branches get it, too, and nobody reads it there.
        text = torch.cat([first, second.repeat(self.batch // len(second), 1, 1)], 1)
        return (text, *gates) if gates else text

    def unfold(self, run: Callable[..., Any], arguments: Mapping[str, Any]) -> Tensor:
        """Texts behind attention, in rows of their own again."""
        first, second = run().chunk(2, 1)
        return torch.cat([first, second[self.cond]])
