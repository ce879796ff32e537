"""Bad files: benchmarks' questions, prompts, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_inputs.case import Case, command
from regaze.evals.benchmarks.registry import BENCHMARKS

_CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "blank lines": b"\n\n  \n",
    "null": b"null",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "half a list": b'[{"question": "a?"',
    "numbers": b"[1, 2, 3]",
    "strings": b'["a", "b"]',
    "lists": b"[[1], [2]]",
    "other keys": b'[{"a": 1}, {"b": 2}]',
    "lines of other keys": b'{"a": 1}\n{"b": 2}\n',
    "null values": json.dumps(
        [{key: None for key in ("question", "text", "image", "label", "answer", "id", "caption")}]
    ).encode(),
    "numbers for text": json.dumps(
        [{key: 5 for key in ("question", "text", "image", "label", "answer", "question_id")}]
    ).encode(),
    "lists for text": json.dumps(
        [{key: ["a"] for key in ("question", "text", "image", "label", "answer", "question_id")}]
    ).encode(),
    "UTF-16": "[{}]".encode("utf-16"),
    "bytes": bytes(range(256)),
    "deep nesting": b"[" * 100_000,
    "NaN": b'[{"question": NaN, "image": "a.png", "label": "yes"}]',
    "HTML": b"<html><body>404</body></html>",
}
_PROMPTS: dict[str, bytes] = {
    "p.txt": b"",
    "blank.txt": b" \n\n",
    "bytes.txt": bytes(range(128, 256)),
    "null.jsonl": b'{"prompt": null}\n',
    "number.jsonl": b'{"prompt": 5}\n',
    "list.jsonl": b'{"prompt": ["a"]}\n',
    "object.jsonl": b'{"prompt": {"a": 1}}\n',
    "empty.jsonl": b'{"prompt": "  "}\n',
    "missing.jsonl": b'{"text": "a"}\n',
    "half.jsonl": b'{"prompt": "a"\n',
    "deep.jsonl": b"[" * 100_000,
    "list2.jsonl": b'["a"]\n',
    "twice.jsonl": b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n',
    "key twice.jsonl": b'{"prompt": "a", "prompt": "b"}\n',
    "id.jsonl": b'{"prompt": "a", "id": ["x"]}\n',
    "group.jsonl": b'{"prompt": "a", "group": {"x": 1}}\n',
    "prompts.json": b'{"a": 1}',
    "half.json": b'[{"prompt": "a"}',
}


def cases() -> Iterator[Case]:
    """All of them."""
    for benchmark in BENCHMARKS:
        for what, content in _CONTENTS.items():
            for ending in (
                ("json", "jsonl") if what in ("half a list", "deep nesting") else ("json",)
            ):
                name = f"{what}.{ending}"
                yield command(
                    f"data: {benchmark}", "eval", benchmark, "--model", "toy", "--data", name,
                    "--images", "empty", "--limit", "4", "--max-new-tokens", "1",
                    files=_writer(name, content),
                )  # fmt: skip
    for name, content in _PROMPTS.items():
        yield command(
            "prompts", "compare", "--model", "painter", "--prompts", name, "--with", "none",
            "--steps", "1", "--seeds", "1", files=_writer(name, content),
        )  # fmt: skip


def _writer(name: str, content: bytes) -> Callable[[], int]:
    return lambda: Path(name).write_bytes(content)
