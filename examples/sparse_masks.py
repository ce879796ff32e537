"""Draw which parts of a map Radial Attention, PAROAttention and AnchorAttention compute.

Run:  python examples/sparse_masks.py sparse.png
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from regaze.interventions.diffusion.paro_plan import permutation
from regaze.interventions.diffusion.paro_survey import best_blocks
from regaze.interventions.diffusion.radial import block_mask
from regaze.interventions.lvlm.anchor import AnchorAttention
from regaze.interventions.lvlm.anchor_stripes import anchored

SIDE, GAP, HEAD, SIZE = 300, 16, 52, 64
GRID = (12, 12, 12)


def shown(weights: Tensor) -> Image.Image:
    """A map in grey, black where its weight is 1."""
    grey = Image.fromarray((255 * (1 - weights.float().clamp(0, 1))).byte().numpy())
    how = Image.Resampling.NEAREST if len(weights) <= SIDE else Image.Resampling.BOX
    return grey.convert("RGB").resize((SIDE, SIDE), how)


def radial(model: str, frames: int, decay: float, sink: bool) -> tuple[Image.Image, str, str]:
    """A clip's mask, 48 x 80 tokens a frame."""
    mask = block_mask(frames, 3840, frames * 3840, decay, sink)
    about = f"radial, {model}: {frames} frames of 48 x 80"
    return shown(mask), about, f"density {mask.float().mean():.3f}"


def along_time() -> Tensor:
    """The map of a head that looks at its place in other frames, and a little beside it."""
    axes = [torch.arange(n) for n in GRID]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2).float()
    apart = (place[:, None] - place).abs() * torch.tensor([0.1, 2.0, 2.0])
    return (-apart.sum(-1)).softmax(-1)


def paro(weights: Tensor, order: str) -> list[tuple[Image.Image, str, str]]:
    """A map in an order of its tokens' axes, and the blocks of it that are kept."""
    at = permutation(GRID, order)
    ordered = weights[at][:, at]
    number = len(at) // SIZE
    sums = ordered.view(number, SIZE, number, SIZE).sum((1, 3))
    keep = best_blocks(sums[None], 0.2)[0]
    share = float((sums * keep).sum() / sums.sum())
    dark = (ordered / ordered.amax(-1, keepdim=True)).sqrt()
    size = " x ".join(map(str, GRID))
    return [
        (shown(dark), f"a head that looks along time, {order}", f"{size} tokens"),
        (shown(keep), f"its blocks at density 0.2, {order}", f"hold {share:.1%} of its weights"),
    ]


def anchor(tokens: int) -> list[tuple[Image.Image, str, str]]:
    """The map of a prompt whose rows look near by and at a few columns, and what is kept of it."""
    draw, at = torch.Generator().manual_seed(0), 0.08 * torch.arange(tokens)
    sought, less = torch.rand(2, tokens, generator=draw)
    # A logit is the column's place, or the row's own less 1 to 5 where the column is sought.
    few = sought < 0.03
    key = torch.stack([torch.where(few, -1 - 4 * less, at), few.float()], -1)[None]
    query = torch.stack([torch.ones(tokens), at], -1)[None]
    spec = AnchorAttention(theta=4, block=16, step=4, init=16)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    whole = (query[0] @ key[0].T).masked_fill(~causal, -torch.inf).softmax(-1)
    _, density, kept = anchored(query, key, key, 1.0, spec, maps=True)
    read = kept[0] > 0 if kept is not None else causal
    share = float(whole[read].sum() / tokens)
    dark = (whole / whole.amax(-1, keepdim=True)).sqrt()
    return [
        (shown(dark), "a prompt's map", f"{tokens} tokens"),
        (shown(read), f"anchor's, {density:.2f} of it", f"hold {share:.1%} of its weights"),
    ]


def main(path: str) -> None:
    """Draw two rows of four panels."""
    masks = [radial("Wan", 18, 0.2, True), radial("HunyuanVideo", 30, 0.95, False)]
    pairs = [*(paro(along_time(), order) for order in ("fhw", "hwf")), anchor(576)]
    panels = [[masks[row], *(pair[row] for pair in pairs)] for row in range(2)]
    picture = Image.new("RGB", (4 * (SIDE + GAP) + GAP, 2 * (SIDE + HEAD) + GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for row, line in enumerate(panels):
        for column, (image, title, note) in enumerate(line):
            x, y = GAP + column * (SIDE + GAP), GAP + row * (SIDE + HEAD)
            draw.text((x, y - 4), title, "black", font)
            draw.text((x, y + 12), note, "#666666", font)
            picture.paste(image, (x, y + 30))
            draw.rectangle((x, y + 30, x + SIDE, y + 30 + SIDE), outline="#999999")
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
