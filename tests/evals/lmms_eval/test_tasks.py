"""The tasks that docs/lmms-eval.md names, as lmms-eval ships them, on rows of their data's form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install regaze[lmms-eval]")

import datasets
import lmms_eval.api.task
import lmms_eval.tasks
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from regaze.evals.sandbox.tasks import load_image

SCENES = [load_image(f"test/{number:05}") for number in range(4)]
MMSTAR = {
    **{"index": 0, "question": "Is there a red circle?\nOptions: A: yes, B: no", "answer": "A"},
    **{"category": "coarse perception", "l2_category": "image emotion"},
}
REALWORLDQA = {"question": "Is there a red circle? A. yes B. no", "answer": "B"}
SCIENCEQA = {
    **{"question": "Is there a red circle?", "hint": "", "answer": 1},
    "choices": ["yes", "no"],
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "mmstar": ("mmstar", MMSTAR),
    "realworldqa": ("realworldqa", REALWORLDQA),
    "scienceqa_img": ("scienceqa", SCIENCEQA),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_named_task_runs_with_an_intervention(
    name: str, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    folder, row = ROWS[name]
    rows = [{**row, "image": scene} for scene in SCENES]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data = datasets.DatasetDict({"test": table, "val": table})
    monkeypatch.setattr(lmms_eval.api.task.datasets, "load_dataset", lambda **options: data)
    tasks = Path(lmms_eval.tasks.__file__).parent / folder
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    said = {}
    for intervention in ("none", "vhr:alpha=4,layers=[2,3]"):
        found = simple_evaluate(
            model="regaze_hf",
            model_args=f'pretrained=sandbox,intervention="{intervention}"',
            tasks=[name],
            task_manager=manager,
            batch_size=2,
            device="cpu",
            bootstrap_iters=0,
        )
        samples = found["samples"][name]
        assert len(samples) == len(SCENES)
        said[intervention] = [sample["filtered_resps"] for sample in samples]
    # The run ends in an error if the method never fires; here it changes what is said, too.
    assert len(set(map(str, said.values()))) == 2
    page = (root / "docs" / "lmms-eval.md").read_text(encoding="utf-8")
    assert re.search(rf"--tasks {name}\b", page)
