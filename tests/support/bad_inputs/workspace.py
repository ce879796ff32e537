"""The folder that bad inputs are tried in: a model, a pipeline, a run, and what is none of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny_painter
from toy import save_toy_model

from bad_inputs.case import answered

_PLUGINS = {
    "broken.py": b"def f(:\n",
    "raises.py": b"raise ValueError('a\\nb [red]')\n",
    "leaves.py": b"import sys\nsys.exit(3)\n",
    "again.py": b"from regaze.interventions.lvlm.vaf import VAF\n"
    b"from regaze.interventions import register\nregister(VAF)\n",
    "nothing.py": b"x = 1\n",
    "bytes.py": b"\xff\xfe\x00",
}
"""Files for ``--load`` that can't be taken."""


@contextmanager
def workspace() -> Iterator[Path]:
    """Make it, and go there; whatever cases leave behind is removed with it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        try:
            save_toy_model(folder / "toy")
            shutil.copytree(tiny_painter.folder(), folder / "painter")
            (folder / "file.txt").write_text("a red circle\n")
            for name, text in _PLUGINS.items():
                (folder / name).write_bytes(text)
            for one in ("empty", "folder.png", "folder.gif"):
                (folder / one).mkdir()
            made = ("--n-images", "2", "--max-new-tokens", "1", "--out", "run")
            answered("eval", "pope", "--model", "toy", "--split", "test", *made)
            assert (folder / "run" / "run.json").exists()
            yield folder
        finally:
            os.chdir(before)
