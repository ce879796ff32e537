"""Make answers alike before comparing them, as VQA scripts do, and count who gave the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_TO_TEN = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_TO_TEN.split())} | {"none": "0"}
# Each is also recognised with one of its apostrophes left out, as people type it.
_CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
    you've
"""
_SPELLINGS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def m4c(answer: str) -> str:
    """An answer as TextVQA's evaluator compares it.

    haotian-liu/LLaVA@c121f04 ``llava/eval/m4c_evaluator.py``, which is MMF's and lmms-eval's too:
    lower case, without commas, question marks, articles and most punctuation, numbers to ten as
    digits, apostrophes of contractions put back.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(without_punctuation(text, r"\.(?!\d)"))


def vlmevalkit(answer: str) -> str:
    """An answer as open-compass/VLMEvalKit@e8e78f0 ``vlmeval/dataset/utils/vqa_eval.py`` does it.

    Unlike `m4c` it keeps commas and question marks until it knows what surrounds them, leaves 's
    where it is, and keeps a full stop after a digit.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    return _words(without_punctuation(text, r"(?<!\d)\.(?!\d)"))


def without_punctuation(text: str, stop: str) -> str:
    """Punctuation as the VQA evaluation removes it.

    A mark becomes nothing if anywhere in the text a blank is beside it or a comma is between
    digits, otherwise a blank.

    Args:
        text: The text to clean.
        stop: Pattern of full stops to remove.
    """
    glue_all = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if glue_all or beside_blank else " ")
    # At most 32: the originals pass the flag re.UNICODE where re.sub expects a count.
    return re.sub(stop, "", out, count=32)


def consensus(answer: str, given: Sequence[str]) -> float:
    """VQA accuracy: min(1, matches / 3) among the others' answers, averaged over leaving one out.

    Args:
        answer: The model's answer, made alike.
        given: People's answers, made alike; TextVQA has ten.
    """
    same = [other == answer for other in given]
    total = sum(same)
    return sum(min(1.0, (total - one) / 3) for one in same) / len(same)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)
