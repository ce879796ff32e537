"""Runs of every kind whose models are stubs: all of the protocol, and nothing to compute."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.runs import driver
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.distributed import World
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Counts, Item, Sums, Task
from regaze.interventions.base import Intervention


class StubTask(Task):
    """Items whose answers count."""

    name = "stub"
    profile = "stub"
    data_hash = "0" * 64
    directions: Mapping[str, int] = {"n": 1}

    def __init__(self, items: int = 6) -> None:
        self.items = [Item(f"item {number}", f"image {number}", "?") for number in range(items)]

    def counts(self, item: Item, text: str) -> Counts:
        return {"correct": 1.0, "n": 1.0}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        return {"n": sums["n"]}


@dataclass
class StubWork:
    """Answers that follow from condition, item and seed.

    Attributes:
        failing: Items that get an error.
        asked: Every batch that was done: condition, seed, ids of the batch and of those wanted.
        inputs: Inputs shown for items, where those aren't their image.
        why: The error.
    """

    task: StubTask = field(default_factory=StubTask)
    failing: Collection[str] = ()
    asked: list[tuple[str, int, list[str], list[str]]] = field(default_factory=list)
    inputs: Mapping[str, str] = field(default_factory=dict)
    why: str = "no such image"
    setting: int = 0
    seeds: Sequence[int] = (0, 1)
    limit: int | None = None
    name: str = "stub"
    device: str = "cpu"

    @property
    def items(self) -> Sequence[Item]:
        return self.task.items

    def settings(self) -> Mapping[str, Any]:
        from regaze.evals.runs.results import items_digest

        digest = items_digest(self.items)
        return {"items_sha256": digest, "seeds": list(self.seeds), "setting": self.setting}

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        return condition.specs

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        return {"image": condition.image}

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        return {"noted": plan.label}

    def batches(self) -> Sequence[Sequence[Item]]:
        return [self.items[start : start + 2] for start in range(0, len(self.items), 2)]

    def stands(self, plan: Plan, record: Record) -> bool:
        return record.ok

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        def do(seed: int, batch: Sequence[Item], wanted: Collection[Key]) -> Done:
            ids = [item.id for item in batch]
            self.asked.append((plan.label, seed, ids, sorted(name for name, _ in wanted)))
            found = [self._answer(plan, item, seed) for item in batch if (item.id, seed) in wanted]
            firing = {"fired": True, "interventions": []} if plan.specs else None
            return Done(found, Cost(len(batch), seconds=1.0), len(batch), firing)

        yield do

    def _answer(self, plan: Plan, item: Item, seed: int) -> Record:
        if item.id in self.failing:
            return Record(item.id, item.cluster, finish="error", error=self.why, seed=seed)
        shown = self.inputs.get(item.id, f"{plan.condition.image} {item.image}")
        text = f"{plan.label} {item.id} {seed}"
        return Record(item.id, item.cluster, text, seed=seed, inputs_sha256=shown)


def run_stub(out: Path, *labels: str, work: StubWork | None = None, **options: Any) -> RunResult:
    """Do the stub's items under conditions."""
    conditions = [Condition.parse(label) for label in labels]
    return driver.run(work or StubWork(), conditions, out=out, **options)


class _Attached:
    """Stand-ins for interventions that act."""

    current: str = ""

    def __init__(self, pipeline: Any, *specs: Intervention) -> None:
        self.specs = specs

    def __enter__(self) -> _Attached:
        _Attached.current = "+".join(f"{spec.name}{spec.to_dict()}" for spec in self.specs)
        return self

    def __exit__(self, *error: object) -> None:
        _Attached.current = ""

    def report(self) -> Any:
        told = {"fired": True, "interventions": []}
        return SimpleNamespace(fired=True, to_dict=lambda: told)


def _picture(*about: object) -> Image.Image:
    """Noise that follows from what it is of."""
    seed = zlib.crc32(repr(about).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class _Painter:
    """Paints what follows from what is attached, prompt and seed."""

    settings: Mapping[str, Any] = {"steps": 1}

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        self.pipeline = pipeline

    def paint(self, shots: Sequence[Any]) -> list[Any]:
        from regaze.evals.pictures.render import Picture

        return [
            Picture((_picture(_Attached.current, *shot),), shot.prompt == _HELD_BACK)
            for shot in shots
        ]


_HELD_BACK = ""


@contextmanager
def held_back(prompt: str) -> Iterator[None]:
    """Let a safety checker hold back all pictures of a prompt."""
    with patch(f"{__name__}._HELD_BACK", prompt):
        yield


def is_whole(path: Path) -> bool:
    """True if a picture is there and can be read to its end."""
    with Image.open(path) as image:
        image.load()
    return True


_PIPELINE = SimpleNamespace(device="cpu", unet=SimpleNamespace(dtype="float32"))
_LOADED: Any = SimpleNamespace(
    pipeline=_PIPELINE, identity={"name": "stub"}, name="stub", dtype="float32"
)


def questions(out: Path, world: World) -> object:
    """Questions with their controls, sampled twice; one can't be answered."""
    asked = with_controls([Condition.parse("vhr:alpha=4")])
    return driver.run(StubWork(failing=("item 3",)), asked, out=out, world=world)


def pictures(out: Path, world: World) -> object:
    """Pictures whose ids would be the same file without care, with a control."""
    from regaze.evals.pictures import runner
    from regaze.evals.pictures.prompts import Prompt
    from regaze.evals.pictures.task import Pictures

    prompts = [Prompt("a b", "a red circle"), Prompt("a_b", "a white triangle")]
    asked = [Condition.parse("pag:scale=5"), Condition.parse("pag:scale=-5")]
    with ExitStack() as stack:
        stack.enter_context(patch.object(runner, "attach", _Attached))
        stack.enter_context(patch.object(runner, "Painter", _Painter))
        task = Pictures(prompts, (0, 1, 2))
        return runner.run(task, _LOADED, asked, {}, out=out, batch_size=2, world=world)


def clips(out: Path, world: World) -> object:
    """Clips, one of whose conditions takes each clip's flow."""
    from regaze.evals.clips import runner
    from regaze.evals.clips.task import ClipSource

    def paint(pipeline: Any, normals: Any, prompt: str, seed: int, **call: Any) -> Any:
        told = _Attached.current.replace(str(out), "OUT")
        return [_picture(told, prompt, seed, number) for number in range(len(normals))]

    asked = [Condition.parse("flow_warp:weight=1.0")]
    with ExitStack() as stack:
        stack.enter_context(patch.object(runner, "attach", _Attached))
        stack.enter_context(patch.object(runner, "paint_clip", paint))
        source, identity = ClipSource("validation", 2, frames=2), {"name": "stub"}
        return runner.run(_PIPELINE, asked, source, out=out, identity=identity, world=world)


def heads(out: Path, world: World) -> object:
    """A search of heads."""
    from regaze.evals.pictures import head_hunter, head_tests
    from regaze.evals.pictures.render import Shot
    from regaze.interventions.diffusion.soft_pag import SoftPAG

    pool = [(layer, head) for layer in range(3) for head in range(2)]
    with ExitStack() as stack:
        stack.enter_context(patch.object(head_tests, "attach", _Attached))
        stack.enter_context(patch.object(head_hunter, "Painter", _Painter))
        stack.enter_context(patch.object(head_hunter, "heads_of", lambda *given: pool))
        return head_hunter.hunt(
            _LOADED,
            [Shot("a red circle", 0)],
            lambda images, texts: [float(np.asarray(image).mean()) for image in images],
            head_hunter.Search(2, 1, SoftPAG(scale=4.0, u=1.0)),
            out=out,
            arguments={},
            world=world,
        )


KINDS = {"questions": questions, "pictures": pictures, "clips": clips, "heads": heads}
