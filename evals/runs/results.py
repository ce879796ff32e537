"""The results in a run directory, finished or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

from regaze.evals.runs import files, records, store
from regaze.evals.runs.controls import roles
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.records import Record
from regaze.evals.task import Item, Task


@dataclass(frozen=True)
class Answers:
    """The answers of one condition so far, and its manifest.

    Attributes:
        label: The condition's label.
        records: Answers and errors by item id; where answers are sampled, those of the first seed.
        manifest: As on the disk.
        by_seed: Answers and errors of every seed.
        folder: The folder that stores them.
    """

    label: str
    records: Mapping[str, Record]
    manifest: Mapping[str, Any]
    by_seed: Mapping[int, Mapping[str, Record]] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self) -> None:
        if not self.by_seed:
            object.__setattr__(self, "by_seed", {0: self.records})

    @property
    def cost(self) -> Cost | None:
        """The cost of answering, in all sessions and processes; None if it wasn't measured."""
        costs = [Cost.from_dict(c) for s in self.manifest["sessions"] if (c := s.get("cost"))]
        return Cost.total(costs) if costs else None

    @property
    def firing(self) -> Mapping[str, Any] | None:
        """The interventions' report of the last session that has one."""
        reports = [s["firing"] for s in self.manifest["sessions"] if s["firing"]]
        return reports[-1] if reports else None

    @property
    def silent(self) -> bool:
        """True if an intervention never acted, so that the answers say nothing about it."""
        reports = [s["firing"] for s in self.manifest["sessions"] if s["firing"]]
        return bool(reports) and not any(report["fired"] for report in reports)


@dataclass(frozen=True)
class RunResult:
    """All answers of one run directory.

    Attributes:
        task: The task, which scores them.
        items: The items that were asked, in order.
        answers: One entry per condition, the unedited model first.
        out: The directory.
        controls: The controls by their labels, each with the kind of control that it is.
    """

    task: Task
    items: Sequence[Item]
    answers: Sequence[Answers]
    out: Path
    controls: Mapping[str, str] = field(default_factory=dict)


def load(task: Task, out: Path) -> RunResult:
    """Read a run directory, finished or not.

    Raises:
        ValueError: It isn't one, its questions aren't the task's, a file in it is damaged, or
            conditions that show the same images were shown different ones.
    """
    plan = store.read_run(out)
    items = take(task.items, plan["limit"])
    digest = items_digest(items)
    answers = []
    inputs = Inputs()
    for condition in plan["conditions"]:
        folder = out / condition["folder"]
        manifest = cast(dict[str, Any], store.read_manifest(folder))
        if manifest["config"].get("items_sha256") != digest:
            raise ValueError(f"{folder} answers other questions than the {task.name} given")
        known = manifest["sessions"]
        manifest["sessions"] += [one for one in read_sessions(folder) if one not in known]
        seeds = manifest["config"].get("seeds", [0])
        found = records.read(*records.all_predictions(folder))
        inputs.check(condition["label"], manifest["config"].get("image", "given"), found.values())
        by_seed = {
            seed: {i.id: found[i.id, seed] for i in items if (i.id, seed) in found}
            for seed in seeds
        }
        answers.append(Answers(condition["label"], by_seed[seeds[0]], manifest, by_seed, folder))
    return RunResult(task, items, answers, out, _controls(plan["conditions"]))


def _controls(places: Sequence[store.Place]) -> Mapping[str, str]:
    """Controls as noted, so that no method need be imported; earlier versions noted none."""
    if any("control" not in place for place in places):
        return roles([place["label"] for place in places])
    return {place["label"]: name for place in places if (name := place.get("control"))}


class Inputs:
    """The inputs of each question: pairs are pairs if they are the same under all conditions.

    Conditions that show another image than the item's are compared among themselves.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[str, str]] = {}

    def check(self, label: str, image: str, found: Iterable[Record]) -> None:
        """Take answers in.

        Args:
            label: Their condition.
            image: The image that was asked about.
            found: The answers.

        Raises:
            ValueError: A question was asked with another image or text before.
        """
        for record in found:
            if not (record.ok and record.inputs_sha256):
                continue
            was, before = self._seen.setdefault((image, record.id), (record.inputs_sha256, label))
            if was != record.inputs_sha256:
                raise ValueError(
                    f"{record.id} was shown another image or text under {label} than under "
                    f"{before}, so the two can't be compared: images were replaced between runs. "
                    "Bring the first ones back, or give another --out"
                )


def session_files(folder: Path) -> list[Path]:
    """The files in which processes note what they do, until all have finished."""
    return sorted(folder.glob("session.rank*.json"))


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Sessions that aren't in the manifest yet."""
    return [
        cast(dict[str, Any], store.checked(path, store.Session)) for path in session_files(folder)
    ]


def take(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """The first items of every group, as many from each as ``limit`` allows, in their order.

    So 20 of POPE's three groups are the first 7, 7 and 6 questions: the same images in every group.

    Raises:
        ValueError: The limit isn't positive, two items share an id, or there are no items.
    """
    if not items:
        raise ValueError("there is nothing to ask: the data holds no items")
    if len({item.id for item in items}) < len(items):
        raise ValueError("two items have the same id, so their answers couldn't be told apart")
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"the limit must be at least 1, got {limit}")
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    in_turn = (item for turn in zip_longest(*groups.values()) for item in turn if item)
    chosen = {item.id for item in islice(in_turn, limit)}
    return [item for item in items if item.id in chosen]


def items_digest(items: Sequence[Item]) -> str:
    """SHA-256 of what is asked: ids, images and prompts in order."""
    return files.digest([(item.id, item.image, item.prompt, item.choices) for item in items])
