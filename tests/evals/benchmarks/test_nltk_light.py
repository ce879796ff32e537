"""NLTK comes without scipy.stats, and with all that it can do."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from regaze.evals.benchmarks.chair_tokens import tokenize

assert tokenize("Dogs bark.", "rule") == ["dogs", "bark", "."]
assert "nltk" in sys.modules and "scipy.stats" not in sys.modules

from nltk.metrics import BigramAssocMeasures

got = BigramAssocMeasures.fisher(5, (10, 8), 100)
assert "scipy.stats" in sys.modules

from scipy.stats import fisher_exact

assert got == fisher_exact([[5, 3], [5, 87]], alternative="less")[1]
"""


def test_it_waits_until_it_is_called() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
