"""PIE-Bench: ``python -m regaze.evals.edits.pie_bench FOLDER --model ... --with consistedit``.

700 pictures with an edit each, cure-lab/PnPInversion@07f97f4, whose files are asked for there by a
form: ``mapping_file.json`` and ``annotation_images``. Pictures are inverted and edited under each
condition by `regaze.evals.edits.editing`, kept, and scored by the metrics of
`regaze.evals.edits.pie`, mean by mean over the edits that all conditions made. A command that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from regaze.evals import weights
from regaze.evals.edits import pie
from regaze.evals.edits.editing import Asked, edit
from regaze.evals.pictures.grid import save_png
from regaze.evals.pictures.pipelines import LoadedPipeline, load
from regaze.evals.pictures.task import open_picture
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.store import folder_name

KINDS = (
    "random", "object", "add", "delete", "content", "pose", "colour", "material", "background",
    "style",
)  # fmt: skip
"""Kinds of edits, by their numbers in the file."""

_MAPPING, _IMAGES, _SIDE = "mapping_file.json", "annotation_images", 512
_FIELDS = {
    "image_path": str, "original_prompt": str, "editing_prompt": str, "editing_type_id": str,
    "blended_word": str, "mask": list,
}  # fmt: skip


@dataclass(frozen=True)
class PieItem:
    """An edit that is asked for.

    Attributes:
        key: Name of the edit in the file.
        kind: One of `KINDS`.
        image: The picture's path.
        prompt: Description of the source picture.
        edit: The description of the edited picture.
        words: The prompt's words for what is edited; none where the file names none.
        mask: Starts and lengths of what is edited, see `regaze.evals.edits.pie.decode_mask`.
    """

    key: str
    kind: str
    image: Path
    prompt: str
    edit: str
    words: tuple[str, ...]
    mask: tuple[int, ...]

    @property
    def asked(self) -> Asked:
        """The words that are edited: the file's, and without them anywhere."""
        return Asked(self.prompt, self.edit, self.words, None if self.words else "all")


def read(folder: Path) -> list[PieItem]:
    """The edits of a folder, in the file's order.

    Raises:
        ValueError: The file isn't as the benchmark's; the message says where.
        OSError: It can't be read.
    """
    path = folder / _MAPPING
    return [_item(folder, path, key, row) for key, row in weights.read_object(path).items()]


def _item(folder: Path, path: Path, key: str, row: Any) -> PieItem:
    for name, kind in _FIELDS.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise ValueError(f"{path}, {key}: {name} must be a {kind.__name__}")
    number = row["editing_type_id"]
    if number not in map(str, range(len(KINDS))):
        raise ValueError(f"{path}, {key}: editing_type_id must be 0 to 9, got {number!r}")
    prompt, wanted = (
        " ".join(row[name].translate(_BRACKETS).split())
        for name in ("original_prompt", "editing_prompt")
    )
    # The source's word, then the edit's; edits that only add things repeat it or have none.
    words = tuple(row["blended_word"].translate(_BRACKETS).split()[:1])
    image = folder / _IMAGES / row["image_path"]
    return PieItem(key, KINDS[int(number)], image, prompt, wanted, words, tuple(row["mask"]))


_BRACKETS = str.maketrans("", "", "[]")


def score(
    item: PieItem, edited: Image.Image, keys_of: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """An edit's metrics.

    Args:
        item: The edit that was asked for.
        edited: The edited picture; resized to the benchmark's 512 pixels.
        keys_of: DINO's keys, for the structure distance, as `regaze.evals.edits.pie.dino_keys`
            gives them.
    """
    one, two = (x.resize((_SIDE, _SIDE)) for x in (open_picture(item.image), edited))
    found = asdict(pie.background(one, two, pie.decode_mask(item.mask, _SIDE)))
    if keys_of is not None:
        found["structure"] = pie.structure_distance(keys_of, one, two)
    return {name: value * pie.UNITS.get(name, 1.0) for name, value in found.items()}


def run(
    loaded: LoadedPipeline,
    conditions: Mapping[str, Condition],
    items: Sequence[PieItem],
    out: Path,
    arguments: Mapping[str, Any],
    keys_of: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Make the edits that aren't on the disk yet, and score all.

    Returns:
        Means by condition and kind, all kinds together as ``"all"``; how many edits they are of;
        and which weren't made, and why. Also written to ``scores.json``.

    Raises:
        ValueError: A condition or an argument doesn't fit the pipeline.
        OSError: A picture can't be read, or the directory not written.
    """
    refused: dict[str, str] = {}
    for item in items:
        names = {title: out / folder_name(title) / f"{item.key}.png" for title in conditions}
        missing = {title: conditions[title] for title in conditions if not names[title].exists()}
        if item.prompt == item.edit:
            refused[item.key] = "the edit prompt is the source's"
        elif missing:
            picture = open_picture(item.image)
            _, made = edit(loaded, missing, item.asked, arguments, image=picture)
            for one in made:
                about = {"condition": one.title, "prompt": item.prompt, "edit": item.edit}
                save_png(names[one.title], one.picture, about)
    found = [item for item in items if item.key not in refused]
    means = {}
    for title in conditions:
        folder = out / folder_name(title)
        rows = [score(item, open_picture(folder / f"{item.key}.png"), keys_of) for item in found]
        means[title] = _by_kind(found, rows)
    done = {"edits": len(found), "refused": refused, "means": means}
    files.write_json(out / "scores.json", done)
    return done


def _by_kind(
    items: Sequence[PieItem], rows: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    found = {}
    for kind in ("all", *dict.fromkeys(item.kind for item in items)):
        some = [row for item, row in zip(items, rows, strict=True) if kind in ("all", item.kind)]
        found[kind] = {name: _mean([row[name] for row in some]) for name in some[0]}
    return found


def _mean(values: Sequence[float]) -> float | None:
    """The mean of what is defined; an unchanged background has no finite PSNR and isn't counted."""
    finite = [value for value in values if math.isfinite(value)]
    return round(float(np.mean(finite)), 4) if finite else None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from regaze.evals.pictures import comparison

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"holds {_MAPPING} and {_IMAGES}")
    parser.add_argument("--model", required=True)
    parser.add_argument("--with", dest="conditions", action="append", metavar="CONDITION")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--limit", type=int, help="the first so many of each kind")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=7.0)
    parser.add_argument("--dino", type=Path, metavar="DIR", help="for the structure distance")
    parser.add_argument("--out", type=Path, default=Path("runs/pie-bench"))
    given = parser.parse_args(arguments)
    every = read(given.folder)
    kinds = given.kind or KINDS
    items = [i for kind in kinds for i in [x for x in every if x.kind == kind][: given.limit]]
    keys_of = None if given.dino is None else pie.dino_keys(given.dino)
    loaded = load(given.model)
    call = {
        **loaded.arguments, "num_inference_steps": given.steps, "guidance_scale": given.guidance
    }  # fmt: skip
    conditions = comparison.parse(given.conditions or ["none", "consistedit"])
    done = run(loaded, conditions, items, given.out, call, keys_of)
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
