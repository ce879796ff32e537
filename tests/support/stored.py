"""The files that a run has left on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def answers_on_disk(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All lines of a run's conditions, without what measures the machine."""
    measured = ("seconds", "t_prefill_s", "t_decode_s", "peak_bytes")
    return {
        path.parent.name: [
            {key: value for key, value in json.loads(line).items() if key not in measured}
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted(out.glob("*/predictions*.jsonl"))
    }
