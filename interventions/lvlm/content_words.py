"""The content words among a question's tokens, and the question's place in its prompt."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.hooks.host import Host

Tagger = Literal["spacy", "nltk", "all"]
Word = Mapping[str, Any]
"""A word as a tagger gives it: its "text", where it starts, and its "pos"."""

CONTENT = frozenset({"NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM"})
_PENN = {"NN": "NOUN", "VB": "VERB", "JJ": "ADJ", "RB": "ADV", "CD": "NUM"}
# What spaCy tags AUX, and Penn tags like any verb.
_AUXILIARY = frozenset(
    ["be", "am", "is", "are", "was", "were", "been", "being", "do", "does", "did", "not"]
)
_TRIMS = {"llava": (2, 5), "qwen2_vl": (1, 5), "qwen2_5_vl": (1, 5)}
"""Tokens of the template between image and question, and behind it, as in GIFT's code."""


def find_tagger(processor: Any) -> Tagger:
    """The best tagger here: spaCy's small English model, NLTK's, or "all" words alike.

    "all" also if there is no tokenizer to read the question with.
    """
    found: list[Tagger] = ["spacy", "nltk"]
    return next((one for one in found if _can(one, processor)), "all")


def require_tagger(method: str, tagger: Tagger, processor: Any) -> None:
    """Check that a tagger can be used.

    Raises:
        ValueError: It isn't installed, or there is no tokenizer; the message says what to do.
    """
    if _can(tagger, processor):
        return
    needs = {
        "spacy": "spaCy and its model (pip install spacy; python -m spacy download en_core_web_sm)",
        "nltk": "NLTK's data (python -m nltk.downloader averaged_perceptron_tagger_eng)",
    }[tagger]
    raise ValueError(
        f"{method}: {tagger} tells content words only with {needs} and the processor= of the "
        'model; words="all" needs neither'
    )


def _can(tagger: Tagger, processor: Any) -> bool:
    if not hasattr(_tokenizer(processor), "decode"):
        return False
    try:
        tag(tagger, "a red dog")
    except (ImportError, LookupError, OSError):
        return False
    return True


@functools.cache
def _spacy() -> Any:
    import spacy  # type: ignore[import-not-found, unused-ignore]

    return spacy.load("en_core_web_sm")


def tag(tagger: Tagger, text: str) -> list[Word]:
    """The words of a text with their parts of speech, in the universal tag set.

    Raises:
        ImportError, OSError, LookupError: The tagger, or its English model, isn't installed.
    """
    if tagger == "spacy":
        return [{"text": w.text, "start": w.idx, "pos": w.pos_} for w in _spacy()(text)]
    words = list(re.finditer(r"[\w'-]+|[^\w\s]", text))
    if tagger == "all":
        return [{"text": w[0], "start": w.start(), "pos": "NOUN"} for w in words]
    from nltk import pos_tag

    tagged = pos_tag([word[0] for word in words])
    return [
        {
            "text": word[0],
            "start": word.start(),
            "pos": "AUX" if word[0].lower() in _AUXILIARY else _PENN.get(penn[:2], "X"),
        }
        for word, (_, penn) in zip(words, tagged, strict=True)
    ]


def content_tokens(
    words: Sequence[Word], offsets: Sequence[Sequence[int]], repeats: Literal["all", "last"] = "all"
) -> list[int]:
    """The tokens that overlap content words.

    Args:
        words: The tagger, as in `tag`.
        offsets: Start and end of each token in the text.
        repeats: Places that count of a word that stands there twice: "all"; the released code keeps
            the "last" alone.
    """
    content = [word for word in words if word["pos"] in CONTENT]
    if repeats == "last":
        content = list({(word["text"], word["pos"]): word for word in content}.values())
    spans = [(word["start"], word["start"] + len(word["text"])) for word in content]
    return [
        token
        for token, (first, end) in enumerate(offsets)
        if any(first < stop and end > start for start, stop in spans)
    ]


def content_of(
    ids: Sequence[int], processor: Any, tagger: Tagger, repeats: Literal["all", "last"]
) -> list[int]:
    """The tokens of a question that are content words; all of them if none is."""
    if not ids:
        return []
    everything = list(range(len(ids)))
    tokenizer = _tokenizer(processor)
    if tagger == "all" or not hasattr(tokenizer, "decode"):
        return everything
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in everything]
    text = tokenizer.decode(ids)
    found = content_tokens(tag(tagger, text), list(zip([0, *ends], ends, strict=False)), repeats)
    if not found:
        warnings.warn(f"{text!r} has no content word, so all its tokens count", stacklevel=2)
    return found or everything


def find_trim(host: Host) -> tuple[int, int]:
    """Tokens of the chat template between the image and a question, and behind it.

    Read off the processor's template; without one those of known models, or none.
    """
    known = _TRIMS.get(host.model_type, (0, 0))
    tokenizer = _tokenizer(host.processor)
    template = getattr(host.processor, "chat_template", None)
    if not template or not callable(tokenizer):
        return known

    def ids(word: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": word}]
        turn = [{"role": "user", "content": content}]
        text = host.processor.apply_chat_template(turn, add_generation_prompt=True)
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    one, other = ids("red"), ids("blue")
    images = [at for at, token in enumerate(one) if token in host.image_ids]
    if not images or one == other:
        return known
    head = next(n for n in range(len(one)) if one[: n + 1] != other[: n + 1])
    tail = next(
        n for n in range(len(one)) if one[len(one) - n - 1 :] != other[len(other) - n - 1 :]
    )
    return max(0, head - images[-1] - 1), tail


def question_columns(text: Tensor, image: Tensor, trim: tuple[int, int]) -> list[int]:
    """Columns of a prompt's question: text behind the last image, less the template's.

    Args:
        text: Bool "T": question text.
        image: Bool "T".
        trim: Numbers of template tokens, as in `find_trim`.
    """
    column = torch.arange(len(text), device="cpu")
    last = int(column[image].max()) if bool(image.any()) else -1
    found: list[int] = column[text & (column > last)].tolist()
    return found[trim[0] : len(found) - trim[1]]


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)
