"""A drawing for each method: which rows and columns of the attention map change, and how.

`DRAWN` says it for the methods that are known by name. A method that isn't there is drawn by what
its spec says: rows of its edit, or guidance, latents, further branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from builder.shapes import Mark, arrow, box, grid, spread, svg, text

_SYSTEM, _IMAGE, _QUESTION, _ANSWER = range(0, 2), range(2, 11), range(11, 15), range(15, 17)
_GROUPS = (("sys", 2), ("image", 9), ("question", 4), ("ans", 2))
_SIZE = 14.0
_SIDE = 17

Columns = Mapping[int, str]
"""From column numbers to the class of their cells."""


def drawing(name: str, acts_on: str, title: str) -> str:
    """The drawing of a method, as SVG.

    Args:
        name: The method's name.
        acts_on: As in `Intervention.acts_on`.
        title: The text for readers that don't see it.
    """
    usual = guidance if "diffusers" in acts_on else token_map
    return DRAWN.get(name, usual)(title)


def token_map(title: str, rows: str = "text", columns: Columns | None = None) -> str:
    """A causal map of a prompt and its answer, with the cells that change.

    Args:
        title: The drawing's title.
        rows: Rows that change: "text" behind the image, "last" (the prompt's last and each
            generated one), "prompt" (the prompt's last alone), "decode", or "all".
        columns: The change of the columns in these rows; by default the image gains.
    """
    marked = {column: "more" for column in _IMAGE} if columns is None else columns
    changed: Mapping[str, range | tuple[int, ...]] = {
        "text": range(11, _SIDE),
        "last": (14, 15, 16),
        "prompt": (14,),
        "decode": (15, 16),
        "all": range(_SIDE),
    }

    def mark(row: int, column: int) -> str:
        if column > row:
            return ""
        return marked.get(column, "cell") if row in changed[rows] else "cell"

    left, top, size = 78.0, 22.0, _SIZE
    names = [text(x, 14, name, "middle") for name, x in spread(left, size, _GROUPS)]
    sides = [
        text(left - 8, y + 4, name, "end")
        for name, y in spread(top, size, _GROUPS)
        if name != "sys"
    ]
    key = text(left + _SIDE * size + 14, top + 20, "orange: gains weight")
    key += text(left + _SIDE * size + 14, top + 40, "blue: loses weight")
    key += text(left + _SIDE * size + 14, top + 60, "grey: as the model has it")
    key += text(left + _SIDE * size + 14, top + 92, "rows look at columns")
    cells = grid(left, top, _SIDE, _SIDE, size, mark)
    return svg(490, top + _SIDE * size + 6, *names, *sides, cells, key, title=title)


def heads(title: str, kind: str = "more", share: float = 0.5, said: str = "") -> str:
    """Layers by heads, of which some change what they put out."""

    def mark(row: int, column: int) -> str:
        hit = (row * 3 + column * 5) % 8 < 8 * share
        return kind if 2 <= row <= 6 and hit else "cell"

    body = grid(70, 26, 8, 8, 20, mark)
    labels = text(150, 16, "heads", "middle") + text(60, 110, "layers", "end")
    note = text(250, 60, "orange: output grows" if kind == "more" else "blue: output shrinks")
    note += text(250, 82, said)
    return svg(490, 192, body, labels, note, title=title)


def contrast(title: str, second: str) -> str:
    """Two runs of the model, whose next-token scores are contrasted."""
    parts = (
        box(10, 14, 150, 44, "picture and question"),
        box(10, 84, 150, 44, *second.split("\n")),
        arrow(160, 36, 214, 36),
        arrow(160, 106, 214, 106),
        box(216, 14, 90, 44, "model"),
        box(216, 84, 90, 44, "model"),
        arrow(306, 36, 352, 62),
        arrow(306, 106, 352, 80),
        box(354, 46, 126, 52, "scores l and l′:", "l + α (l − l′)"),
    )
    return svg(490, 142, *parts, title=title)


def guidance(title: str, mark: Mark | None = None, said: str = "perturbed") -> str:
    """A denoiser and a second branch of it with another map; their difference guides."""

    def plain(row: int, column: int) -> str:
        return "more" if abs(row - column) <= 1 or (row * 3 + column) % 7 == 0 else "cell"

    parts = (
        box(10, 40, 82, 44, "latents"),
        arrow(92, 62, 128, 36),
        arrow(92, 62, 128, 98),
        grid(132, 8, 7, 7, 8, plain),
        grid(132, 74, 7, 7, 8, mark or _diagonal),
        text(196, 40, "its own map"),
        text(196, 106, said),
        arrow(378, 36, 410, 56),
        arrow(378, 102, 410, 74),
        box(412, 40, 140, 48, "ε + s (ε − ε′)"),
    )
    return svg(562, 138, *parts, title=title)


def latents(title: str, said: str) -> str:
    """Latents that a loss over the words' maps moves before a step."""

    def spot(at: tuple[int, int]) -> Mark:
        return lambda row, column: "more" if abs(row - at[0]) + abs(column - at[1]) < 3 else "cell"

    parts = (
        box(10, 40, 82, 44, "latents"),
        arrow(92, 62, 128, 62),
        grid(132, 30, 8, 8, 8, spot((2, 2))),
        grid(208, 30, 8, 8, 8, spot((5, 5))),
        text(164, 22, "“cat”", "middle"),
        text(240, 22, "“frog”", "middle"),
        arrow(282, 62, 318, 62),
        box(320, 40, 160, 44, *said.split("\n")),
        '<path class="line" d="M400 84V122H50V86M46 92L50 86L54 92"/>',
        text(225, 117, "moved down the gradient, then the step", "middle"),
    )
    return svg(490, 134, *parts, title=title)


def texts(title: str, mark: Mark, groups: tuple[tuple[str, int], ...], said: str) -> str:
    """Rows of the picture, columns of one or several texts."""
    total = sum(count for _, count in groups)
    names = [text(x, 14, name, "middle") for name, x in spread(84, 18, groups)]
    body = grid(84, 22, 8, total, 18, mark)
    return svg(
        490,
        178,
        *names,
        text(76, 98, "picture", "end"),
        body,
        text(84 + total * 18 + 14, 98, said),
        title=title,
    )


def frames(title: str, mark: Mark, said: str) -> str:
    """A map of four frames on four frames."""
    groups = tuple((f"frame {n + 1}", 4) for n in range(4))
    names = [text(x, 14, name, "middle") for name, x in spread(20, 13, groups)]
    body = grid(20, 22, 16, 16, 13, mark)
    lines = [text(250, 100 + 20 * n, line) for n, line in enumerate(said.split("\n"))]
    return svg(490, 236, *names, body, *lines, title=title)


def closer(title: str, both: bool) -> str:
    """A picture, what is looked at in it, and the part that is shown again."""

    def around(row: int, column: int) -> str:
        return "more" if 3 <= row <= 5 and 4 <= column <= 6 else "cell"

    parts = (
        grid(10, 16, 9, 9, 12, lambda *_: "cell"),
        arrow(124, 68, 158, 68),
        grid(164, 16, 9, 9, 12, around),
        arrow(278, 68, 312, 68),
        grid(318, 16, 3, 3, 36, lambda *_: "more"),
        text(64, 142, "picture", "middle"),
        text(218, 142, "looked at for this question", "middle"),
        text(372, 142, "shown beside it" if both else "shown instead", "middle"),
    )
    return svg(490, 152, *parts, title=title)


def _diagonal(row: int, column: int) -> str:
    return "more" if row == column else "none"


def _even(row: int, column: int) -> str:
    return "more"


def _shuffled(row: int, column: int) -> str:
    return "more" if column == (row * 3 + 2) % 7 else "cell"


def _skipped(row: int, column: int) -> str:
    return "none"


def _window(row: int, column: int) -> str:
    apart = abs(row // 4 - column // 4)
    near = abs(row % 4 - column % 4) <= (3, 1, 0, -1)[apart]
    return "more" if near or column < 4 else "none"


def _blocks(row: int, column: int) -> str:
    return "more" if row // 4 == column // 4 or (row // 4 + column // 4) % 4 == 3 else "none"


def _moved(row: int, column: int) -> str:
    if row < 4:
        return "cell"
    return "more" if column % 4 == (row + row // 4) % 4 and column // 4 <= row // 4 else "cell"


def _word(row: int, column: int) -> str:
    return "more" if column in (2, 5) else "cell"


def _halves(row: int, column: int) -> str:
    if column < 3:
        return "cell"
    return "more" if (row < 4) == (column < 6) else "none"


def _stripes(row: int, column: int) -> str:
    return "none" if 0 < column < row - 3 and column % 5 else "cell"


def _some(names: range, kind: str, every: int = 3) -> dict[int, str]:
    return {column: kind for column in names if column % every == 0}


_ALL = dict.fromkeys(range(_SIDE), "cell")
_GAIN = dict.fromkeys(_IMAGE, "more")
_TEXTS = (("base", 3), ("left", 3), ("right", 3))

DRAWN: Mapping[str, Callable[[str], str]] = {
    "pai": partial(token_map, rows="last"),
    "devils": partial(token_map, rows="last"),
    "scalingvis": partial(token_map, rows="prompt"),
    "adaptvis": partial(token_map, rows="prompt"),
    "vaf": partial(token_map, columns=_GAIN | dict.fromkeys(_SYSTEM, "less")),
    "avar": partial(token_map, columns=_GAIN | dict.fromkeys(_SYSTEM, "less")),
    "var": partial(token_map, columns=_GAIN | _some(_IMAGE, "less", 5)),
    "gift": partial(
        token_map, rows="last", columns=_some(_IMAGE, "more") | dict.fromkeys(_QUESTION, "more")
    ),
    "ilvad": partial(
        token_map, rows="last", columns=_some(_IMAGE, "more") | {12: "more", 15: "more"}
    ),
    "paint": partial(token_map, rows="last", columns=_some(_IMAGE, "more")),
    "pasta": partial(
        token_map, rows="all", columns=dict.fromkeys((*_SYSTEM, *_IMAGE, 11, 14), "less")
    ),
    "adhh": partial(token_map, rows="last", columns=dict.fromkeys((*_QUESTION, *_ANSWER), "less")),
    "logitbias": token_map,
    "columnscale": token_map,
    "tidal": partial(
        token_map, rows="decode", columns=_ALL | dict.fromkeys((1, 3, 4, 6, 7, 9, 11, 13), "none")
    ),
    "anchor": lambda title: frames(
        title,
        lambda r, c: "" if c > r else _stripes(r, c),
        "outlined: not computed\nfirst columns, near ones,\nand stripes are",
    ),
    "vhr": partial(heads, said="the half that reacts most to the image"),
    "spin": partial(heads, kind="less", share=0.25, said="those that look at the image least"),
    "headscale": partial(heads, said="the heads that you list"),
    "headablate": partial(heads, kind="less", share=0.25, said="the heads that you list"),
    "steer": partial(heads, share=0.25, said="a vector is added to the heads you list"),
    "patch": partial(heads, share=0.25, said="outputs are replaced in the heads you list"),
    "vcd": partial(contrast, second="noised picture\nand question"),
    "icd": partial(contrast, second="disturbing\ninstruction first"),
    "avisc": partial(contrast, second="blind tokens\nof the image alone"),
    "m3id": partial(contrast, second="question alone"),
    "dola": partial(contrast, second="an early exit\nof the same run"),
    "highlight": partial(contrast, second="a span\nmade faint"),
    "carve": partial(closer, both=False),
    "vicrop": partial(closer, both=True),
    "pag": partial(guidance, said="tokens see themselves"),
    "seg": partial(guidance, mark=_even, said="queries are blurred"),
    "softpag": partial(guidance, said="single heads, part of the way"),
    "tpg": partial(guidance, mark=_shuffled, said="tokens are shuffled"),
    "slg": partial(guidance, mark=_skipped, said="blocks are left out"),
    "stg": partial(guidance, mark=_skipped, said="a block is left out"),
    "attend_and_excite": partial(latents, said="loss: the faintest\nword's maximum"),
    "a_star": partial(latents, said="loss: overlap, and\nplaces lost"),
    "structured_diffusion": partial(
        texts,
        mark=_halves,
        groups=(("prompt", 3), ("phrase 1", 3), ("phrase 2", 3)),
        said="each phrase read alone",
    ),
    "nag": partial(
        texts,
        mark=lambda r, c: "more" if c < 4 else "less",
        groups=(("prompt", 4), ("negative", 4)),
        said="led away from the negative",
    ),
    "reweight": partial(
        texts, mark=_word, groups=(("words of the prompt", 8),), said="words weigh more or less"
    ),
    "regions": partial(texts, mark=_halves, groups=_TEXTS, said="each part reads its prompt"),
    "consistedit": partial(
        frames,
        mark=lambda r, c: "" if r < 8 and c >= 8 else "more" if r >= 8 and c < 8 else "cell",
        said="the edit (lower half) takes\nqueries, keys and values\nfrom its source",
    ),
    "primecomposer": partial(
        frames,
        mark=lambda r, c: "more" if 5 <= r <= 10 and 5 <= c <= 10 else "cell",
        said="the object's place takes\nlogits of a prior",
    ),
    "flow_warp": partial(
        frames, mark=_moved, said="each frame attends as the\none before, moved along\nthe flow"
    ),
    "bytheway": partial(
        frames,
        mark=lambda r, c: "more" if r % 4 == c % 4 else "cell",
        said="attention over time follows\nthe first decoder block's",
    ),
    "enhance_a_video": partial(
        frames,
        mark=lambda r, c: "more" if r // 4 != c // 4 else "cell",
        said="the more frames see of each\nother, the stronger",
    ),
    "radial": partial(
        frames,
        mark=_window,
        said="outlined: not computed\nwindows shrink with the\ndistance in time",
    ),
    "paro": partial(
        frames,
        mark=_blocks,
        said="outlined: not computed\ntokens are reordered, so\nthat few blocks matter",
    ),
}
