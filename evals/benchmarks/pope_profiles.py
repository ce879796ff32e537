"""Readings of an answer by published POPE scripts.

The same answers score very differently under them, so a POPE number means nothing without the name
of its profile. Each rule below was checked against what the script itself returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regaze.evals.benchmarks.yes_no import Verdict, words


@dataclass(frozen=True)
class Profile:
    """Reading rule, prompt and arithmetic of one script.

    Attributes:
        source: Repository@commit and file.
        verdict: A function of answer and label ("yes" or "no") that reads the answer's verdict.
        suffix: Text that the script adds to each question.
        max_new_tokens: Longest answer that its runner generates.
        other_excluded: Answers that say neither leave accuracy's denominator instead of counting
            as wrong.
        other_missed: Answers that say neither count against recall where the label is yes.
        yes_ratio_of_labels: The script's yes ratio is the share of the labels, whatever the
            answers are.
    """

    source: str
    verdict: Callable[[str, str], Verdict]
    suffix: str = ""
    max_new_tokens: int = 10
    other_excluded: bool = False
    other_missed: bool = False
    yes_ratio_of_labels: bool = False


def _first_sentence(text: str) -> list[str]:
    # Split at single blanks only: a newline glues words together, as in the original.
    return text.partition(".")[0].replace(",", "").split(" ")


def _official(text: str, label: str) -> Verdict:
    return "yes" if {"No", "not", "no"}.isdisjoint(_first_sentence(text)) else "no"


def _opera(text: str, label: str) -> Verdict:
    words = text.replace(".", "").replace(",", "").split(" ")
    negative = not {"No", "not", "no", "NO"}.isdisjoint(words)
    return "no" if negative or any(word.endswith("n't") for word in words) else "yes"


def _vcd(text: str, label: str) -> Verdict:
    # Looks only for the label, as a substring: "snowboard" is a no where no is right, and
    # "yes and no" is right for both labels.
    found = label in text.strip().lower()
    return "yes" if found == (label == "yes") else "no"


def _icd(text: str, label: str) -> Verdict:
    if _official(text, label) == "no":
        return "no"
    return "other" if {"Yes", "yes"}.isdisjoint(_first_sentence(text)) else "yes"


def _lmms(text: str, label: str) -> Verdict:
    said = text.lower().strip()
    return "yes" if said == "yes" else "no" if said == "no" else "other"


def _vlmevalkit(text: str, label: str) -> Verdict:
    return words(text)


PROFILES: dict[str, Profile] = {
    "official": Profile("RUCAIBox/POPE@3df3ba1 evaluate.py", _official),
    "opera": Profile("shikiw/OPERA@61426ef pope_eval.py", _opera),
    "vcd": Profile("DAMO-NLP-SG/VCD@d6568ff experiments/eval/eval_pope.py", _vcd),
    "clearsight": Profile("ustc-hyin/ClearSight@5466c94 visaug/inference/eval_pope.py", _vcd),
    "icd": Profile(
        "p1k0pan/ICD@2fa44c5 experiments/eval_scripts/eval_pope.py", _icd, other_excluded=True
    ),
    "lmms": Profile(
        "EvolvingLMMs-Lab/lmms-eval@75571cf lmms_eval/tasks/pope/utils.py",
        _lmms,
        suffix="\nAnswer the question using a single word or phrase.",
        max_new_tokens=128,
        yes_ratio_of_labels=True,
    ),
    "vlmevalkit": Profile(
        "open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/utils/yorn.py, without a judge",
        _vlmevalkit,
        other_missed=True,
    ),
}
