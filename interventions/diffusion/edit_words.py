"""Prompts of an edit: which of them are pairs, and which words differ."""

from __future__ import annotations

import difflib


def changed_words(source: str, edit: str) -> list[str]:
    """The words of a prompt that another one doesn't hold at their place.

    Raises:
        ValueError: The other one only adds words.
    """
    one, other = source.split(), edit.split()
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    found = [
        word.strip(".,;:!?\"'()")
        for kind, start, stop, *_ in blocks
        if kind in ("replace", "delete")
        for word in one[start:stop]
    ]
    if not any(found):
        raise ValueError(
            f"consistedit: {edit!r} only adds words to {source!r}, so which part of the picture it "
            'concerns isn\'t known; name words of the source, or a mask ("all")'
        )
    return list(dict.fromkeys(filter(None, found)))


def check_pairs(prompts: int, chain: int) -> None:
    """Check that a batch holds as many prompts for each source.

    Args:
        prompts: Number of prompts that it holds.
        chain: A source and its edits, together.

    Raises:
        ValueError: It doesn't.
    """
    if prompts % chain:
        what = "[source, edit]" if chain == 2 else f"a source and {chain - 1} edits"
        raise ValueError(
            f"consistedit: the batch holds {prompts} prompts, which are no pairs: give a list with "
            f"{what} for each picture"
        )
