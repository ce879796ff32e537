"""Ablation: what becomes of the margin between yes and no without each head.

As `HeadAblate` does it, one head at a time: it puts out nothing (or attends alike to all it sees)
in every text row behind the image. What stands before isn't touched, so the prompt up to the
image's end is read once per item, and each head takes one row of a batch that reads the rest: with
L layers of H heads, Q tokens behind the image and P up to it, an item costs P + (L H + 1) Q token
rows instead of (L H + 1) (P + Q). Where a model can't go on from a beginning, it costs the latter.

Each item's margins are on the disk before the next is asked, so a stopped run goes on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from regaze.evals.analysis.asked import Subject
from regaze.evals.analysis.beginning import Beginning
from regaze.evals.analysis.direct import right_signs
from regaze.evals.analysis.head_per_row import HeadPerRow, To
from regaze.evals.analysis.maps import HeadMap, Pairs
from regaze.evals.asking.prompts import Question, margin
from regaze.evals.asking.settings import settings
from regaze.evals.runs import files, lines, meeting, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import reason
from regaze.evals.task import Item
from regaze.hooks.attach import Attachment, attach
from regaze.hooks.host import Host
from regaze.interventions.lvlm.common import require_patches
from regaze.interventions.lvlm.heads import choose_heads

MARGINS = "margins.jsonl"


class Margins(TypedDict):
    """The margins of one item: of the model as it is, and without each head, in order."""

    item: str
    plain: float
    margins: list[float]
    seconds: float
    columns: int


_ROW: TypeAdapter[Margins] = TypeAdapter(Margins)


@dataclass(frozen=True)
class Ablation:
    """The margins that were measured.

    Attributes:
        heads: Heads in the order of the margins.
        rows: Margins of each item.
        shared: True if prompts were read once up to the image's end.
        why: Why not.
    """

    heads: Pairs
    rows: Sequence[Margins]
    why: str | None

    @property
    def cost(self) -> str:
        """The cost, in words."""
        seconds = sum(row["seconds"] for row in self.rows)
        columns = sum(row["columns"] for row in self.rows)
        read = "each prompt read once up to the image's end"
        if self.why:
            read = f"each prompt read anew for each head: {self.why}"
        return (
            f"{len(self.heads)} heads x {len(self.rows)} items, {columns:,} token rows in "
            f"{seconds:.0f} s; {read}"
        )

    def maps(self, host: Host, items: Sequence[Item]) -> list[HeadMap]:
        """The heads' effects on the right answer, with its standard error, and for yes."""
        by_id = {item.id: item for item in items}
        asked = [by_id[row["item"]] for row in self.rows]
        plain = torch.tensor([row["plain"] for row in self.rows], dtype=torch.float64)
        without = torch.tensor([row["margins"] for row in self.rows], dtype=torch.float64)
        signs = right_signs([item.target for item in asked])
        effect = effects(plain, without)
        right = effect * signs[:, None]
        about = (
            "Fall of the margin (log odds of {}) when the head puts out nothing in the rows behind "
            "the image; mean over items. Above zero: the head speaks for {}."
        )
        answer, yes = about.format("the right answer", "it"), about.format("yes", "yes")
        error = standard_errors(right, [item.cluster for item in asked])
        told = "Standard error of the effect on the right answer, over images."
        return [
            HeadMap(name, title, "log odds", self._table(host, values), about=text)
            for name, title, values, text in (
                ("ablation", "Ablation effect on the right answer", right.mean(0), answer),
                ("ablation_yes", "Ablation effect on yes", effect.mean(0), yes),
                ("ablation_error", "Standard error of the ablation effect", error, told),
            )
        ]

    def _table(self, host: Host, values: Tensor) -> Tensor:
        found = torch.full((host.n_layers, host.n_heads), torch.nan, dtype=torch.float64)
        layers, heads = torch.tensor(self.heads).T
        found[layers, heads] = values
        return found


def effects(plain: Tensor, without: Tensor) -> Tensor:
    """Each head's share of the margin: "N H" of margins "N" and "N H"."""
    return plain[:, None] - without


def standard_errors(values: Tensor, clusters: Sequence[str]) -> Tensor:
    """Standard errors "H" of means over items "N H", which vary together within a cluster.

    NaN if there is one cluster only.
    """
    names = sorted(set(clusters))
    number = torch.tensor([names.index(one) for one in clusters])
    off = values - values.mean(0)
    sums = torch.zeros(len(names), values.shape[1], dtype=values.dtype).index_add(0, number, off)
    n = len(names)
    if n < 2:
        return torch.full_like(values[0], torch.nan)
    return (sums.square().sum(0) * n / (n - 1)).sqrt() / len(values)


def ablate(
    subject: Subject,
    out: Path,
    *,
    heads: Pairs | None = None,
    layers: Sequence[int] | None = None,
    to: To = "zero",
    identity: Any = None,
    rows: int = 64,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> Ablation:
    """Measure the margins of all items without each head, or go on with that.

    Args:
        subject: The model and the items.
        out: Directory of the margins.
        heads: Heads to try; by default all, of
        layers: these layers, by default of all that attend.
        to: The fate of a head; see `regaze.HeadAblate`.
        identity: Facts that tell this model from others, JSON-able.
        rows: Heads at once.
        progress: Called with items done and items in all, of this process.
        world: This process among those that share the items.

    Raises:
        ValueError: The benchmark isn't one of yes and no, a head doesn't exist, or the directory
            holds margins made with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    check(subject)
    host = subject.host
    wanted = None if layers is None else tuple(layers)
    named, where = choose_heads("ablation", host, heads or "all", wanted)
    pairs = named if named != "all" else tuple((i, j) for i in where for j in range(host.n_heads))
    config = {
        **settings(subject.task, subject.items, subject.answerer, identity or {}, rows),
        "heads": [list(pair) for pair in pairs],
        "to": to,
    }
    why = _why_apart(subject)

    def prepare() -> None:
        if not (out / store.MANIFEST).exists():
            files.write_json(out / store.MANIFEST, {"config": config})
        for path in lines.every(out / MARGINS):
            lines.repair(path)

    with meeting.alone(out, {out: config}, prepare, world):
        known = {row["item"] for row in meeting.read_together(world, partial(_read, out))}
        by_id = {item.id: item for item in subject.items}
        left = {key: 1 for key in by_id if key not in known}
        mine, finished = meeting.share_out("ablation", left, len(known), world, progress)
        with _attached(subject, where, to) as (attached, told):
            for key in mine:
                began = time.perf_counter()
                found, columns = _margins(
                    subject, by_id[key], pairs, attached, told, rows, why is None
                )
                row = Margins(
                    item=key,
                    plain=found[0],
                    margins=found[1:],
                    seconds=round(time.perf_counter() - began, 4),
                    columns=columns,
                )
                lines.append(lines.own(out / MARGINS, world.rank), [dict(row)])
                finished(key)
        order = {key: place for place, key in enumerate(by_id)}
        rows_found = meeting.read_together(world, partial(_read, out))
        done = sorted(rows_found, key=lambda row: order[row["item"]])
        meeting.by_first(world, lambda: lines.settle(out / MARGINS, [dict(row) for row in done]))
    return Ablation(pairs, done, why)


def check(subject: Subject) -> None:
    """Check that there are margins to measure.

    Raises:
        ValueError: There are none.
    """
    if not subject.task.yes_no or subject.answerer.yes_no is None:
        raise ValueError(
            f"ablation is measured by the margin between yes and no, and {subject.task.name} on "
            "this model has none"
        )
    require_patches("ablation", subject.host)


@contextmanager
def _attached(
    subject: Subject, layers: Sequence[int], to: To
) -> Iterator[tuple[Attachment, HeadPerRow]]:
    told = HeadPerRow(layers, to)
    with attach(subject.model, told, processor=subject.answerer.processor) as attached:
        yield attached, told


def _why_apart(subject: Subject) -> str | None:
    """Why prompts can't be gone on with from the image's end; None if they can."""
    item = subject.items[0]
    image = subject.image(item)
    return subject.answerer.why_apart(
        [Question(item.prompt, image), Question(f"{item.prompt} {item.prompt}", image)]
    )


@torch.inference_mode()
def _margins(
    subject: Subject,
    item: Item,
    pairs: Pairs,
    attached: Attachment,
    told: HeadPerRow,
    rows: int,
    share: bool,
) -> tuple[list[float], int]:
    """The margin as it is and without each head, and how many token rows that took."""
    answerer, image = subject.answerer, subject.image(item)
    told.heads = ()
    each: list[tuple[int, int] | None] = [None, *pairs]
    inputs = answerer.encode([item.prompt], [image])
    size = inputs["input_ids"].shape[1]
    begin = Beginning.read(subject, attached, inputs) if share else None
    odds: list[float] = []
    columns = begin.length if begin else 0
    for start in range(0, len(each), rows):
        told.heads = each[start : start + rows]
        count = len(told.heads)
        if begin:
            given = begin.continued(subject.model, count)
        else:
            given = answerer.encode([item.prompt] * count, [image] * count)
        columns += count * (size - (begin.length if begin else 0))
        config = copy.deepcopy(answerer.config)
        config.max_new_tokens, config.min_new_tokens = 1, None
        config.output_logits = config.return_dict_in_generate = True
        made = subject.model.generate(**given, generation_config=config)
        odds += margin(made.logits[0], *(answerer.yes_no or ([], [])))
    return odds, columns


def _read(out: Path) -> list[Margins]:
    """All that was measured, each item once, even if a killed run left it in two files."""
    rows = {
        row["item"]: row
        for path in lines.every(out / MARGINS)
        for row in lines.read(path, _row, "an item's margins")
    }
    return list(rows.values())


def _row(line: bytes) -> Margins:
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        raise ValueError(reason(error)) from error
