"""The steps of CONTRIBUTING.md, done as they stand in a copy of the repository, are enough.

A method, a benchmark, a model family and a diffusion method are added to the copy by nothing but
the listed edits; then promises that were written before they existed are tested on them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import ROOT, code

PARTS = ("regaze", "hooks", "interventions", "evals")

BLIND = '''"""Blind: guidance away from a branch whose chosen layers see nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.works import Guidance
from regaze.interventions.base import register
from regaze.interventions.diffusion.guided import Guided


@register
@dataclass(frozen=True)
class Blind(Guided):
    """Guidance away from a model whose tokens see nothing."""

    name: ClassVar[str] = "blind"
    summary: ClassVar[str] = "guide away from a branch whose tokens see nothing"
    paper: ClassVar[str] = "none"

    def literal_map(self, m: Map) -> Tensor:
        """``A' = 0``."""
        return torch.zeros_like(m.weights)

    def bind(self, host: Host) -> Guidance:
        """Make the guidance."""
        return Guidance.away_from(self.sites(host), _nothing, **self.window())


def _nothing(call: Call) -> Tensor:
    return torch.zeros_like(call.output)
'''

COUNTING_TEST = '''"""Counting reads the first number of an answer."""

from regaze.evals.benchmarks.counting import Counting
from regaze.evals.benchmarks.registry import BENCHMARKS


def test_the_first_number_counts(tmp_path):
    data = tmp_path / "q.jsonl"
    data.write_text('{"id": "1", "image": "1.png", "question": "How many?", "answer": 2}')
    (tmp_path / "1.png").touch()
    task = Counting.from_files(data, tmp_path)
    (item,) = task.items
    right = [task.counts(item, text)["correct"] for text in ("2 of 3", "3, not 2", "two")]
    assert right == [1, 0, 0]
    assert BENCHMARKS["counting"].title == "Counting"
'''

A_NEW_CLASS = """

import transformers as hf
from transformers.models.auto import configuration_auto, modeling_auto


class MadeUpConfig(hf.LlavaConfig):
    model_type = "made_up"


class MadeUpModel(hf.LlavaForConditionalGeneration):
    config_class = MadeUpConfig


modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["made_up"] = "MadeUpModel"
configuration_auto.CONFIG_MAPPING.register("made_up", MadeUpConfig)
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.register(MadeUpConfig, MadeUpModel)
"""
"""A family as a newer transformers would bring it, added when the tests of the copy begin."""

PROMISES = {
    "sharpen": (
        "tests/interventions/test_exactness.py::test_fused_edits_equal_edited_maps[llava-sharpen]",
        "tests/interventions/test_no_ops.py::test_strength_zero_changes_nothing[qwen2_vl-sharpen]",
        "tests/interventions/test_batches.py"
        "::test_a_left_padded_batch_equals_single_samples[llava-sharpen]",
        "tests/hooks/test_attach.py::test_detaching_leaves_no_trace[gemma3-sharpen]",
        "tests/interventions/test_support.py"
        "::test_every_method_and_every_field_of_the_matrix_is_known",
    ),
    "counting": ("tests/evals/benchmarks/test_counting.py::test_the_first_number_counts",),
    "made_up": (
        "tests/test_census_lvlm.py::test_every_class_is_in_the_table",
        "tests/test_census_lvlm.py"
        "::test_every_method_equals_its_literal_form_or_says_why_not[made_up]",
    ),
    "blind": (
        "tests/interventions/diffusion/test_promises.py::test_it_equals_its_literal_form[sd-blind]",
        "tests/interventions/diffusion/test_promises.py"
        "::test_strength_zero_changes_nothing[flux-blind]",
        "tests/interventions/diffusion/test_threads.py"
        "::test_threads_do_not_see_each_other[sd-blind]",
        "tests/test_methods.py::test_every_method_has_a_row",
        "tests/test_methods.py::test_every_row_is_held_to_every_promise_or_says_why_not[batch]",
    ),
}
"""The tests of the promises that are added, as pytest names them."""


def after(path: Path, line: str, added: str) -> None:
    """Put lines behind the first line that begins so."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"^{re.escape(line)}.*\n", re.MULTILINE)
    assert pattern.search(text), f"{path} has no line {line!r}"
    path.write_text(pattern.sub(lambda m: m[0] + added, text, count=1), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, importable as it is when installed."""
    root = tmp_path_factory.mktemp("contributed")
    ignored = shutil.ignore_patterns("__pycache__", "conformance", "runs")
    for part in (*PARTS, "tests"):
        # Runs is a folder of test data and a package.
        kept = shutil.ignore_patterns("__pycache__") if part != "tests" else ignored
        shutil.copytree(ROOT / part, root / part, ignore=kept)
    shutil.copy(ROOT / "pyproject.toml", root)
    installed = root / "lib" / "regaze"
    installed.mkdir(parents=True)
    for path in [*(root / "regaze").iterdir(), *(root / part for part in PARTS[1:])]:
        (installed / path.name).symlink_to(path)
    return root


def add_a_method(root: Path) -> None:
    (root / "interventions/lvlm/sharpen.py").write_text(
        '"""Sharpen."""\n\n' + code(ROOT / "docs/own-method.md", "python")[0]
    )
    after(
        root / "interventions/__init__.py",
        "    from regaze.interventions.lvlm.sinks import discover_sinks",
        "    from regaze.interventions.lvlm.sharpen import Sharpen as Sharpen\n",
    )
    table = root / "tests/support/methods.py"
    after(table, "from regaze.interventions import (", "    Sharpen,\n")
    after(
        table,
        '        Method("headablate"',
        '        Method("sharpen", Sharpen(3, layers=LAYERS), Sharpen(1, layers=LAYERS)),\n',
    )


def add_a_benchmark(root: Path) -> None:
    text = code(ROOT / "docs/own-benchmark.md", "python")[0]
    task = text.partition("\n\nCOUNTING =")[0]
    task = task.replace("from regaze.evals.benchmarks.building import with_images\n", "")
    task = re.sub(r"from regaze\.evals\.benchmarks\.registry import .*\n", "", task)
    (root / "evals/benchmarks/counting.py").write_text('"""Counting."""\n\n' + task)
    registry = root / "evals/benchmarks/registry.py"
    after(
        registry,
        "from regaze.evals.benchmarks.aokvqa",
        "from regaze.evals.benchmarks.counting import Counting\n",
    )
    after(
        registry,
        "BENCHMARKS: ",
        '    "counting": Benchmark(\n        "Counting",\n        "how many there are",\n'
        '        "none",\n        ("first",),\n        with_images(Counting.from_files),\n    ),\n',
    )
    (root / "tests/evals/benchmarks/test_counting.py").write_text(COUNTING_TEST)


def add_a_family(root: Path) -> None:
    after(
        root / "hooks/families.py",
        '    Family("aria"',
        '    Family("made_up", "Made-Up-VL", grid="square"),\n',
    )
    after(
        root / "tests/support/census_lvlm.py",
        "CHANGES: ",
        '    "made_up": {"text_config": {"num_key_value_heads": 1}},\n',
    )
    with (root / "tests/conftest.py").open("a", encoding="utf-8") as file:
        file.write(A_NEW_CLASS)


def add_a_diffusion_method(root: Path) -> None:
    (root / "interventions/diffusion/blind.py").write_text(BLIND)
    after(
        root / "interventions/__init__.py",
        "    from regaze.interventions.diffusion.attend_and_excite import",
        "    from regaze.interventions.diffusion.blind import Blind as Blind\n",
    )
    table = root / "tests/support/methods.py"
    after(table, "from regaze.interventions import (", "    Blind,\n")
    after(
        table,
        '        Method("pag", ',
        '        Method("blind", perturbing(Blind), scenes=("sd", "flux")),\n',
    )


def test_the_listed_edits_are_enough(copy: Path) -> None:
    add_a_method(copy)
    add_a_benchmark(copy)
    add_a_family(copy)
    add_a_diffusion_method(copy)
    wanted = [test for tests in PROMISES.values() for test in tests]
    # Not `python -m pytest`, which would put the copy's root, and so half a package, first.
    pytest_ = Path(sys.executable).with_name("pytest")
    run = subprocess.run(
        [pytest_, "-p", "no:cacheprovider", "-v", "-rN", *wanted],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "lib")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(wanted)} passed" in run.stdout
