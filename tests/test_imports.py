"""Import rules between the parts, and no module loaded twice."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each part may import itself and the parts before it.
ORDER = ["hooks", "interventions", "evals"]
FILES = [path for part in ORDER for path in sorted((ROOT / part).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Full dotted names a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """The name a source file is imported under."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "regaze" else ("regaze", *parts)
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_part_imports_only_itself_and_the_parts_below(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    allowed = ORDER[: ORDER.index(part) + 1]
    ours = [name for name in imports(path) if name.split(".")[0] == "regaze"]
    assert [name for name in ours if name.split(".")[1:2] not in [[part] for part in allowed]] == []


def test_the_attention_formulas_need_torch_alone() -> None:
    roots = {name.split(".")[0] for name in imports(ROOT / "hooks" / "attention.py")}
    assert roots - sys.stdlib_module_names == {"torch"}


def test_importing_everything_from_the_repository_root_loads_no_file_twice() -> None:
    names = [module_name(path) for path in [*FILES, *sorted((ROOT / "regaze").rglob("*.py"))]]
    if find_spec("lmms_eval") is None:
        names.remove("regaze.evals.lmms_eval.model")  # A plugin, loaded by lmms-eval alone.
    if find_spec("gradio") is None:
        pages = [f"regaze.evals.play.{name}" for name in ("fields", "page", "parts", "serving")]
        names = [name for name in names if name not in pages]
    code = (
        "import collections, importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "names = collections.defaultdict(list)\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.split('.')[0] in ('regaze', 'hooks', 'interventions', 'evals'):\n"
        "        names[module.__file__].append(name)\n"
        "print(json.dumps(sorted(names.values())))\n"
    )
    # `python -c` puts the current folder first on the path, as running a script there would.
    command = [sys.executable, "-c", code, json.dumps(names)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == sorted([name] for name in set(names))


def test_importing_regaze_loads_no_model_code() -> None:
    code = "import regaze, sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = json.loads(out.stdout)
    models = [name for name in loaded if name.startswith("transformers.models.")]
    assert not [name for name in models if "modeling_" in name and ".auto." not in name]
