"""CHAIR's words in small."""

from __future__ import annotations

import pytest

from regaze.evals.benchmarks import chair_tokens

TABLE = {
    word: name
    for name, words in {
        "person": "person man woman child",
        "dog": "dog puppy",
        "cat": "cat kitten",
        "bus": "bus",
        "chair": "chair seat",
        "toilet": "toilet",
        "motorcycle": "motorbike",
        "wine glass": "",
        "tie": "tie",
        "train": "train",
        "giraffe": "giraffe",
        "sports ball": "ball",
    }.items()
    for word in (name, *words.split())
}


def hide_nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise LookupError("Resource punkt_tab not found.\n" * 9)

    monkeypatch.setattr(chair_tokens, "_punkt", absent)
