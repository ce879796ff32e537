"""An answer's text while its tokens come in: what may be sent already, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

_UNFINISHED = "\ufffd"
"""A decoder's stand-in for the first bytes of a letter."""

Finish = Literal["stop", "length"]


class Writer:
    """The text of one answer.

    The text is decoded as a whole at each token, as the finished answer's is, so the pieces of a
    stream add up to what a request without a stream gets.

    Attributes:
        tokens: The tokens generated, the end token included.
        most: Tokens that are allowed.
        finish: Reason why it ended; None while it goes on.

    Args:
        decode: Text of token ids.
        ends: Token ids that end an answer.
        most: Tokens that are allowed.
        stops: Texts that end an answer; it doesn't hold them.
        eager: `add` gives text as it comes.
        rejoins: The decoder takes spaces out again when more tokens follow.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        most: int,
        stops: Sequence[str] = (),
        *,
        eager: bool = False,
        rejoins: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.most = most
        self._decode, self._ends, self._stops = decode, ends, stops
        self._eager, self._rejoins = eager, rejoins
        self._sent = ""
        self._stopped: str | None = None

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._decode(self.tokens) if self._stopped is None else self._stopped

    def add(self, token: int) -> str:
        """Take the next token, and give the text that may be sent now."""
        self.tokens.append(token)
        text = self.text if self._eager or self._stops else ""
        if place := [at for stop in self._stops if (at := text.find(stop)) >= 0]:
            self._stopped = text[: min(place)]
            self.finish = "stop"
        elif token in self._ends:
            self.finish = "stop"
        elif len(self.tokens) >= self.most:
            self.finish = "length"
        if not self._eager:
            return ""
        return self._send(text[: self._settled(text)] if self.finish is None else self.text)

    def _send(self, text: str) -> str:
        """The new part of a text.

        Raises:
            RuntimeError: What was sent is no beginning of the finished text.
        """
        if text.startswith(self._sent):
            new, self._sent = text[len(self._sent) :], text
            return new
        if self.finish is not None:
            raise RuntimeError("the tokenizer changes text that was sent: ask without a stream")
        return ""

    def _settled(self, text: str) -> int:
        """The length of a text's beginning that stays, whatever follows."""
        most = len(text.rstrip(_UNFINISHED))
        if self._rejoins:
            most = min(most, max(text.rfind(" "), 0))
        for stop in self._stops:
            begun = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
            most = min(most, len(text) - next(begun, 0))
        return most
