"""The verdict of an answer: yes, no or neither.

Each rule was compared with what the script it names returns; the same answers score very
differently under them.
"""

from __future__ import annotations

import re
from typing import Literal

from regaze.evals.benchmarks.vqa_text import without_punctuation

Verdict = Literal["yes", "no", "other"]


def exact(text: str) -> Verdict:
    """Nothing but ``Yes`` or ``No`` counts (junyangwang0410/AMBER@534babf ``inference.py``)."""
    return "yes" if text == "Yes" else "no" if text == "No" else "other"


def first(text: str) -> Verdict:
    """The first word that is yes or no decides, in any case and at any place.

    Of no script: it reads a sentence as a person would, where `exact` finds nothing to read and
    `words` gives up as soon as both words occur.
    """
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    if not found:
        return "other"
    return "yes" if found[1].lower() == "yes" else "no"


def opening(text: str) -> Verdict:
    """The first four characters decide, wherever in them yes or no begins and ends.

    MME's calculation tool, by its copy in zjunlp/Deco@a3ccc15 ``eval_tool/calculation.py``. Nothing
    is stripped, so two blanks before Yes hide it; "know" and "not" say no.
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def stripped_opening(text: str) -> Verdict:
    """`opening` without full stops and outer white space; y and n alone are words.

    EvolvingLMMs-Lab/lmms-eval@75571cf ``lmms_eval/tasks/mme/utils.py``.
    """
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return "yes" if said == "y" else "no" if said == "n" else "other"
    return opening(said)


def words(text: str) -> Verdict:
    """Yes or no anywhere among the words, unless both are.

    open-compass/VLMEvalKit@e8e78f0 ``vlmeval/dataset/utils/yorn.py``, without its judge.
    """
    found = without_punctuation(text.lower(), r"(?<!\d)\.(?!\d)").split()
    if ("yes" in found) == ("no" in found):
        return "other"
    return "yes" if "yes" in found else "no"
